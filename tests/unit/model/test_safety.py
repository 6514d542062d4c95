"""Whatever happens, the user's model is left as it was found, and so are the user's own hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from helpers_models import tiny_lens
from helpers_oracle import hooked_logits, random_pairs
from subspacelens.certify import centred, certify, require
from subspacelens.core.errors import ModelError
from subspacelens.core.site import Site
from subspacelens.engine.capture import Capture, capture
from subspacelens.model.lens import LensModel, wrap
from subspacelens.model.mapping import build_map

FAMILIES = ("llama", "gpt2", "gemma2", "gpt_neox")
LENGTHS = [(9, 4), (12, 7), (9, 4), (10, 5)]
SITE = Site(1, "attn_out", "X")


@pytest.fixture(params=FAMILIES)
def lens(request) -> LensModel:
    return tiny_lens(request.param)


@pytest.fixture
def llama() -> LensModel:
    return tiny_lens("llama")


def everything(model) -> tuple:
    """Hooks, replaced forwards and modes of every module; bits, flags and gradients of the rest."""
    modules = [
        (
            name,
            *(
                tuple(getattr(module, kind).items())
                for kind in (
                    "_forward_hooks",
                    "_forward_pre_hooks",
                    "_forward_hooks_with_kwargs",
                    "_forward_pre_hooks_with_kwargs",
                    "_backward_hooks",
                    "_backward_pre_hooks",
                )
            ),
            module.__dict__.get("forward"),
            module.training,
        )
        for name, module in model.named_modules()
    ]
    weights = [
        (name, p.detach().numpy().tobytes(), p.requires_grad, p.grad, p.data_ptr(), p._version)
        for name, p in model.named_parameters()
    ]
    buffers = [(name, b.numpy().tobytes()) for name, b in model.named_buffers()]
    return modules, weights, buffers, model.config.to_dict(), model.config._attn_implementation


@contextmanager
def unchanged(model) -> Iterator[None]:
    before = everything(model)
    yield
    assert everything(model) == before


def captured_of(lens: LensModel) -> Capture:
    return capture(lens, random_pairs(LENGTHS), [SITE, Site(2, "mlp_act", "END")])


def gradients(lens: LensModel, captured: Capture) -> torch.Tensor:
    replay = captured.at(SITE)
    delta = captured.difference(SITE)[None].clone().requires_grad_(True)
    for piece in replay.pieces():
        piece.logit_diff(delta[:, piece.pairs]).sum().backward(inputs=[delta])
    assert delta.grad is not None
    return delta.grad


def operations(lens: LensModel, captured: Capture) -> dict[str, Callable[[], Any]]:
    """Everything that touches the model."""
    difference = captured.difference(SITE)
    return {
        "capture": lambda: captured_of(lens).base[SITE],
        "replay": lambda: captured.at(SITE).delta_outcomes(difference).logit_diff,
        "gradient": lambda: gradients(lens, captured),
        "certify": lambda: len(certify(lens, SITE).failures),
        "centred": lambda: centred(lens),
        "map": lambda: build_map(lens.model).names,
    }


NAMES = ("capture", "replay", "gradient", "certify", "centred", "map")


# Nothing is left behind.


@pytest.mark.parametrize("name", NAMES)
def test_the_model_is_bit_identical_afterwards(lens, name):
    captured = captured_of(lens)
    lens.model.requires_grad_(True)
    with unchanged(lens.model):
        operations(lens, captured)[name]()


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_left_after_an_exception_at_any_point(lens, name, error):
    """A hook of the user's raises at its first, second, ... call, until there is no such call."""
    captured = captured_of(lens)
    operation = operations(lens, captured)[name]
    expected = operation()
    countdown = [0]

    def maybe(*_):
        countdown[0] -= 1
        if countdown[0] == 0:
            raise error("in the middle")

    block = lens.map.blocks[2]
    block.module.register_forward_hook(maybe)
    block.out_proj.module.register_forward_pre_hook(maybe)
    for call in range(1, 200):
        countdown[0] = call
        # A certificate would be remembered: whoever asks with other hooks gets another one.
        handle = lens.model.register_forward_hook(lambda *_: None)
        with unchanged(lens.model):
            try:
                operation()
            except (error, ModelError) as raised:
                assert "in the middle" in str(raised)
        handle.remove()
        if countdown[0] > 0:
            break
    else:
        raise AssertionError("the hook is always called again")
    assert call > 1
    countdown[0] = 0
    again = operation()
    if isinstance(expected, torch.Tensor):
        assert torch.equal(again, expected)
    else:
        assert again == expected


# The user's own hooks.


@pytest.mark.parametrize("name", NAMES)
def test_hooks_of_the_user_survive_and_still_fire(lens, name):
    captured = captured_of(lens)
    calls = {"forward": 0, "pre": 0, "inner": 0}

    def count(kind: str):
        def hook(*_):
            calls[kind] += 1

        return hook

    # The centring proof writes before the first block, all others later.
    block = lens.map.blocks[2]
    block.module.register_forward_hook(count("forward"))
    block.module.register_forward_pre_hook(count("pre"))
    block.out_proj.module.register_forward_hook(count("inner"))
    with unchanged(lens.model):
        operations(lens, captured)[name]()
    assert min(calls.values()) > 0
    seen = dict(calls)
    lens.model(torch.tensor([[5, 6, 7]]), use_cache=False)
    assert calls == {kind: count + 1 for kind, count in seen.items()}


def test_a_hook_that_steers_the_model_is_part_of_it(lens):
    """Replay equals the full pass with the user's hooks in place."""
    direction = torch.randn(32, dtype=torch.float64)
    plain = captured_of(lens)

    def steer(_module, _args, output):
        if isinstance(output, tuple):
            return (output[0] + direction, *output[1:])
        return output + direction

    lens.map.blocks[2].module.register_forward_hook(steer)
    lens.map.blocks[1].out_proj.module.register_forward_hook(lambda _m, _a, out: 1.1 * out)
    captured = captured_of(lens)
    assert not torch.allclose(captured.clean.logit_diff, plain.clean.logit_diff)
    replay = captured.at(SITE)
    delta = captured.difference(SITE)
    for piece in replay.pieces(gradients=False):
        logits = piece.logits(delta[None, piece.pairs])[0]
        for row, index in enumerate(piece.pairs.tolist()):
            base = captured.pairs[index].base
            change = delta[index]
            full = hooked_logits(lens, base.ids, SITE, base.columns["X"], lambda h, c=change: h + c)
            torch.testing.assert_close(logits[row], full, rtol=1e-5, atol=1e-5)


def test_steered_models_certify(llama):
    llama.map.blocks[2].module.register_forward_hook(lambda _m, _a, out: out + 0.5)
    for stream in ("resid_pre", "resid_mid", "resid_post", "mlp_out", "attn_out", "head_z"):
        for layer in (1, 2, 3):
            assert require(llama, Site(layer, stream, "END")).passed


def test_a_hook_that_counts_columns_is_refused_by_its_certificate(llama):
    """In a suffix the fifth column is another one: such a hook and the replay do not go together,
    and the certificate says so instead of giving wrong numbers."""

    def fifth(_module, _args, output):
        output = output.clone()
        output[:, 5:6] = output[:, 5:6].flip(-1)
        return output

    llama.map.blocks[2].module.register_forward_hook(fifth)
    certificate = certify(llama, SITE)
    assert not certificate.passed


# Several engines on one model.


def test_two_replays_of_one_model_interleave(lens):
    captured = captured_of(lens)
    one, two = (captured.at(site) for site in captured.sites)
    deltas = [captured.difference(site)[None] for site in captured.sites]
    expected = [
        captured.at(site).delta_outcomes(delta[0]).logit_diff
        for site, delta in zip(captured.sites, deltas, strict=True)
    ]
    with unchanged(lens.model):
        first = deltas[0].clone().requires_grad_(True)
        second = deltas[1].clone().requires_grad_(True)
        results = torch.empty(2, len(captured.pairs))
        pending = []
        pieces_of = one.pieces(), two.pieces()
        for number in range(max(map(len, pieces_of))):
            for which, (delta, pieces) in enumerate(zip((first, second), pieces_of, strict=True)):
                if number < len(pieces):
                    piece = pieces[number]
                    found = piece.logit_diff(delta[:, piece.pairs])
                    results[which, piece.pairs] = found[0].detach().float()
                    pending.append(found.sum())
        for loss in pending:
            loss.backward()
    for which in range(2):
        torch.testing.assert_close(results[which], expected[which], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(first.grad, gradients(lens, captured), rtol=1e-9, atol=1e-12)


def test_a_replay_inside_a_hook_of_the_user(lens):
    """The hook runs while a pass of the same model is under way; both come out right."""
    captured = captured_of(lens)
    delta = captured.difference(SITE)
    expected = captured.at(SITE).delta_outcomes(delta).logit_diff
    ids = torch.tensor([[5, 6, 7, 8]])
    clean = lens.model(ids, use_cache=False).logits
    found = []

    def hook(*_):
        if not found:
            found.append(None)
            found[0] = captured.at(SITE).delta_outcomes(delta).logit_diff

    for module in (lens.map.blocks[2].module, lens.map.blocks[0].out_proj.module):
        found.clear()
        handle = module.register_forward_hook(hook)
        logits = lens.model(ids, use_cache=False).logits
        handle.remove()
        assert torch.equal(found[0], expected)
        assert torch.equal(logits, clean)


@pytest.mark.parametrize("inner", ["capture", "replay"])
def test_an_engine_inside_a_replay_is_right_or_refused(lens, inner):
    """The hook runs at a replay's first, second, ... use of a block, also where the blocks are only
    asked for their arguments."""
    captured = captured_of(lens)
    delta = captured.difference(SITE)
    operation = operations(lens, captured)[inner]
    expected = operation()
    clean = captured.at(SITE).delta_outcomes(delta).logit_diff
    countdown, found, wrong = [0], [], []

    def hook(*_):
        countdown[0] -= 1
        if countdown[0] == 0:
            try:
                found.append(operation())
            except (ModelError, KeyError) as error:
                found.append(error)

    lens.map.blocks[2].module.register_forward_hook(hook)
    for call in range(1, 50):
        countdown[0] = call
        found.clear()
        with unchanged(lens.model):
            outer = captured.at(SITE).delta_outcomes(delta).logit_diff
        torch.testing.assert_close(outer, clean)
        if not found:
            break
        refused = isinstance(found[0], ModelError)
        if not refused and not (
            isinstance(found[0], torch.Tensor)
            and torch.allclose(found[0], expected, rtol=1e-5, atol=1e-5)
        ):
            wrong.append(call)
    assert call > 1
    assert not wrong


# Training mode.


def test_a_model_in_training_mode_is_refused(llama):
    captured = captured_of(llama)
    llama.model.train()
    for refused in (
        lambda: wrap(llama.model, None),  # type: ignore[arg-type]
        lambda: capture(llama, captured.pairs, [SITE]),
        lambda: certify(llama, SITE),
    ):
        with unchanged(llama.model), pytest.raises(ModelError, match="training mode"):
            refused()


def test_a_model_put_into_training_mode_after_the_capture_is_refused(llama):
    captured = captured_of(llama)
    replay = captured.at(SITE)
    llama.model.train()
    with pytest.raises(ModelError, match="training mode"):
        replay.delta_outcomes(captured.difference(SITE))
