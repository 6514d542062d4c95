"""The engine's contract on every architecture: replay equals the full pass with a plain hook."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from helpers_models import FAMILIES, tiny_lens
from helpers_oracle import activation, hooked_logits, random_pairs
from subspacelens.core.errors import SiteError
from subspacelens.core.site import EXPERT, STREAMS, Site
from subspacelens.engine.capture import capture
from subspacelens.model.lens import LensModel

LENGTHS = [(9, 4), (12, 7), (9, 0), (11, 6), (8, 7), (9, 4), (10, 5)]
EVEN = [(9, 4), (12, 7)]
MIXTURES = ("mixtral", "qwen3_moe")
PARALLEL = ("gpt_neox", "phi", "falcon")
IN_FLOAT32 = ("gpt_neo",)
"""Multiplies queries and keys in float32: a batch of another shape gives other last bits."""


@pytest.fixture(scope="module", params=FAMILIES)
def lens(request) -> LensModel:
    return tiny_lens(request.param)


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    """1e-5 relative: some families compute attention weights in float32 whatever the dtype. What is
    nothing but rounding, as the gradient of a query that has one key alone, is 0."""
    atol = 1e-9 + 1e-5 * float(expected.detach().abs().max())
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=atol)


def exactly(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)


def streams(lens: LensModel) -> list[str]:
    return [name for name in lens.map.blocks[1].entries if name not in ("resid_mid", EXPERT)]


def sites(lens: LensModel) -> list[Site]:
    found = [Site(i, name, label) for name in streams(lens) for i, label in ((1, "X"), (3, "END"))]
    found += [Site(2, "head_z", "X", head=1), Site(0, "resid_post", "X")]
    projected = lens.map.blocks[2].projected.items()
    return found + [Site(2, name, "X", head=0) for name, heads in projected if not heads.mixed]


def test_missing_streams_are_refused_by_name(lens):
    expected = set()
    if lens.id in MIXTURES:
        expected = {"mlp_act"}
    if lens.id in PARALLEL:
        expected = {"resid_mid"}
    assert set(lens.map.blocks[1].missing) == expected
    for stream in expected:
        with pytest.raises(SiteError, match=f"L1.{stream}@END"):
            lens.map.block(Site(1, stream, "END"))
    experts = {EXPERT} if lens.id in MIXTURES else set()
    assert set(lens.map.blocks[1].entries) == set(STREAMS) - expected | experts


@pytest.mark.parametrize("lengths", [LENGTHS, EVEN])
def test_values_and_gradients_equal_plain_hooks(lens, lengths):
    pairs = random_pairs(lengths)
    captured = capture(lens, pairs, sites(lens))
    for site in sites(lens):
        expected_base = torch.stack([activation(lens, p.base, site) for p in pairs])
        expected_source = torch.stack([activation(lens, p.source, site) for p in pairs])
        same = close if lens.id in IN_FLOAT32 else exactly
        same(captured.base[site], expected_base)
        same(captured.source[site], expected_source)

        replay = captured.at(site)
        delta = captured.difference(site)[None].clone().requires_grad_(True)
        for piece in replay.pieces():
            logits = piece.logits(delta[:, piece.pairs])[0]
            pulled = torch.autograd.grad(logits.square().sum(), delta, retain_graph=True)[0][0]
            for row, index in enumerate(piece.pairs.tolist()):
                pair = pairs[index]
                change = delta[0, index].detach().requires_grad_(True)
                full = hooked_logits(
                    lens,
                    pair.base.ids,
                    site,
                    pair.base.columns[site.label],
                    lambda h, change=change: h + change,
                )
                close(logits[row], full)
                expected = torch.autograd.grad(full.square().sum(), change)[0]
                close(pulled[index], expected)


def test_resid_mid_equals_the_patch_of_both_that_read_it(lens):
    if "resid_mid" in lens.map.blocks[1].missing:
        return
    pairs = random_pairs(LENGTHS)
    site = Site(1, "resid_mid", "X")
    block = lens.map.blocks[1]
    captured = capture(lens, pairs, [site, Site(1, "attn_out", "X"), Site(1, "resid_pre", "X")])
    replay = captured.at(site)
    delta = torch.randn(captured.base[site].shape, dtype=torch.float64)
    got = torch.empty(len(pairs), lens.map.tail.head.weight.shape[0], dtype=torch.float64)
    with torch.no_grad():
        for piece in replay.pieces():
            got[piece.pairs] = piece.logits(delta[None, piece.pairs])[0]
    for index, pair in enumerate(pairs):
        column = pair.base.columns["X"]

        def double(_module, args, kwargs, column=column, index=index):
            hidden = args[0] if args else kwargs["hidden_states"]
            hidden = hidden.clone()
            hidden[0, column] += delta[index]
            return (
                ((hidden, *args[1:]), kwargs)
                if args
                else (args, kwargs | {"hidden_states": hidden})
            )

        attention = {}

        def keep(_module, _args, output, attention=attention):
            attention["out"] = output

        def restore(_module, _args, output, attention=attention):
            return attention["out"]

        handle = block.out_proj.module.register_forward_hook(keep)
        with torch.no_grad():
            lens.model(torch.tensor([pair.base.ids]), use_cache=False)
        handle.remove()
        handles = [
            block.module.register_forward_pre_hook(double, with_kwargs=True),
            block.out_proj.module.register_forward_hook(restore),
        ]
        with torch.no_grad():
            full = lens.model(torch.tensor([pair.base.ids]), use_cache=False).logits[0, -1]
        for handle in handles:
            handle.remove()
        close(got[index], full)


def test_many_patches_in_one_replay_equal_one_by_one(lens):
    pairs = random_pairs(LENGTHS)
    site = Site(1, "attn_out", "X")
    captured = capture(lens, pairs, [site])
    replay = captured.at(site)
    delta = torch.randn(5, *captured.base[site].shape, dtype=torch.float64)
    together = replay.delta_outcomes(delta)
    tight = replace(replay, memory=1).delta_outcomes(delta)
    for which in range(5):
        alone = replay.delta_outcomes(delta[which])
        torch.testing.assert_close(together.logit_diff[which], alone.logit_diff)
        torch.testing.assert_close(tight.logit_diff[which], alone.logit_diff)
        assert torch.equal(together.top[which], alone.top)
    none = replay.delta_outcomes(torch.zeros_like(delta[0]))
    torch.testing.assert_close(none.logit_diff, captured.clean.logit_diff.float())


def test_nothing_is_left_on_the_model(lens):
    def hooks() -> int:
        return sum(
            len(m._forward_hooks) + len(m._forward_pre_hooks) + ("forward" in m.__dict__)
            for m in lens.model.modules()
        )

    before, weights = hooks(), {k: v.clone() for k, v in lens.model.state_dict().items()}
    pairs = random_pairs(LENGTHS)
    site = Site(1, "head_z", "X")
    captured = capture(lens, pairs, [site])
    captured.at(site).delta_outcomes(captured.difference(site))
    assert hooks() == before
    assert all(torch.equal(v, weights[k]) for k, v in lens.model.state_dict().items())


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_padding_on_the_right_does_not_pass_the_last_position(family):
    lens = tiny_lens(family)
    site, pairs = Site(1, "mlp_act", "X"), random_pairs([(64, 50), (60, 30)])
    captured = capture(lens, pairs, [site])
    (bucket,) = captured.buckets["X"]
    assert bucket.prefix + bucket.suffix > 64 and not bucket.even
    delta = captured.difference(site)
    found = captured.at(site).delta_outcomes(delta).logit_diff
    for pair, change, value in zip(pairs, delta, found, strict=True):
        column = pair.base.columns["X"]
        full = hooked_logits(lens, pair.base.ids, site, column, lambda h, c=change: h + c)
        expected = full[pair.answer] - full[pair.target]
        assert float(value) == pytest.approx(float(expected), abs=1e-5)


def test_buckets_are_joined_where_a_pass_costs_more_than_its_padding():
    lens = tiny_lens("llama")
    site = Site(1, "mlp_act", "X")

    def sizes(lengths) -> list[tuple[int, int]]:
        found = capture(lens, random_pairs(lengths), [site]).buckets["X"]
        return [(len(bucket.pairs), bucket.suffix) for bucket in found]

    assert sizes([(9, 7), (9, 3)]) == [(2, 6)]
    assert sizes([(9, 7)] * 20 + [(12, 2)] * 20) == [(20, 2), (20, 10)]
