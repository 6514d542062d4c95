"""Single experts of a mixture: a patch is what it would be inside the expert, or it is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear
from transformers import AutoConfig, AutoModelForCausalLM

from helpers_models import VOCABULARY, lens_of, tiny_lens
from helpers_oracle import random_pairs
from subspacelens.bench.tiny import make_loud
from subspacelens.certify import certify
from subspacelens.core.errors import SiteError, SubspaceError
from subspacelens.core.places import Place
from subspacelens.core.site import Site
from subspacelens.engine.capture import capture
from subspacelens.engine.gradient_pass import gradient_pass
from subspacelens.engine.joint import joint_replay
from subspacelens.engine.patches import Full, SubspacePatch
from subspacelens.engine.routing import routed
from subspacelens.interop.names import spellings
from subspacelens.measure.patch import patch
from subspacelens.measure.splits import exact_split
from subspacelens.model.lens import LensModel
from subspacelens.tasks.pairset import PairSet, Task

SMALL = dict(
    hidden_size=32, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    num_experts_per_tok=2,
)  # fmt: skip
OTHERS = {
    "olmoe": dict(intermediate_size=40, num_experts=4),
    "qwen2_moe": dict(
        intermediate_size=40, num_experts=4, moe_intermediate_size=40,
        shared_expert_intermediate_size=24, decoder_sparse_step=1,
    ),
    "gpt_oss": dict(intermediate_size=40, num_local_experts=4, head_dim=8),
}  # fmt: skip
LENGTHS = [(9, 4), (12, 7), (9, 1), (11, 6), (8, 7), (9, 4), (10, 5)] * 8


def model_of(family: str) -> LensModel:
    if family not in OTHERS:
        return tiny_lens(family)
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, vocab_size=VOCABULARY, **SMALL | OTHERS[family])
    model = AutoModelForCausalLM.from_config(
        config, dtype=torch.float64, experts_implementation="eager"
    )
    model = model.eval().requires_grad_(False)
    make_loud(model)
    for parameter in model.parameters():
        if parameter.ndim == 3:
            parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
    return lens_of(model, family)


@pytest.fixture(scope="module", params=["mixtral", "qwen3_moe", "olmoe", "qwen2_moe"])
def lens(request) -> LensModel:
    return model_of(request.param)


@pytest.fixture(scope="module")
def mixtral() -> LensModel:
    return model_of("mixtral")


def module_of(lens: LensModel, layer: int) -> torch.nn.Module:
    (found,) = (m for m in lens.map.blocks[layer].module.modules() if hasattr(m, "gate_up_proj"))
    return found


@contextmanager
def inside(lens: LensModel, site: Site, change: Callable[[Tensor, int], Tensor]) -> Iterator[None]:
    """All experts of a block written out token by token, with `change` of what the down-projection
    of the site's expert reads of a token, given with its column: for a single prompt."""
    module = module_of(lens, site.layer)

    def forward(hidden, numbers, weights):
        rows = []
        for column, token in enumerate(hidden):
            total = torch.zeros_like(token)
            for number, weight in zip(numbers[column].tolist(), weights[column], strict=True):
                gate, up = linear(token, module.gate_up_proj[number]).chunk(2)
                act = module.act_fn(gate) * up
                if number == site.head:
                    act = change(act, column)
                total = total + weight * linear(act, module.down_proj[number])
            rows.append(total)
        return torch.stack(rows)

    module.forward = forward
    try:
        yield
    finally:
        del module.forward


def logits_of(lens: LensModel, ids: tuple[int, ...]) -> Tensor:
    return lens.model(torch.tensor([ids]), use_cache=False).logits[0, -1]


def seen(lens: LensModel, prompt, site: Site) -> Tensor | None:
    """What the expert computes of the labelled token; None where it is not asked."""
    found = []

    def keep(act: Tensor, column: int) -> Tensor:
        if column == prompt.columns[site.label]:
            found.append(act)
        return act

    with torch.no_grad(), inside(lens, site, keep):
        logits_of(lens, prompt.ids)
    return found[0] if found else None


def close(got: Tensor, expected: Tensor) -> None:
    """1e-5 relative: routers take their softmax in float32 whatever the dtype."""
    atol = 1e-5 * float(expected.detach().abs().max())
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=atol)


def sent(lens: LensModel, *sites: Site) -> PairSet:
    pairs = routed(lens, random_pairs(LENGTHS * len(sites) ** 4), sites)
    assert len(pairs) >= 4
    return pairs[:20]


@pytest.mark.parametrize("text", ["L1.expert_act.2@X", "L3.expert_act.1@END", "L0.expert_act.3@X"])
def test_values_and_gradients_equal_a_patch_inside_the_expert(lens, text):
    site = Site.parse(text)
    pairs = sent(lens, site)
    captured = capture(lens, pairs, [site])
    replay = captured.at(site)
    delta = captured.difference(site)[None].clone().requires_grad_(True)
    assert float(delta.detach().abs().max()) > 0.01
    for piece in replay.pieces():
        logits = piece.logits(piece.of(delta))[0]
        pulled = torch.autograd.grad(logits.square().sum(), delta, retain_graph=True)[0][0]
        for row, index in enumerate(piece.pairs.tolist()):
            pair, column = pairs[index], pairs[index].base.columns[site.label]
            for prompt, held in ((pair.base, captured.base), (pair.source, captured.source)):
                close(held[site][index], seen(lens, prompt, site))
            change = delta[0, index].detach().requires_grad_(True)
            add = lambda h, at, c=change, here=column: h + c if at == here else h  # noqa: E731
            with inside(lens, site, add):
                full = logits_of(lens, pair.base.ids)
            close(logits[row], full)
            close(pulled[index], torch.autograd.grad(full.square().sum(), change)[0])


def test_which_pairs_are_kept_is_what_the_router_does(lens):
    site, pairs = Site.parse("L2.expert_act.0@X"), random_pairs(LENGTHS)
    there = [
        pair
        for pair in pairs
        if all(seen(lens, prompt, site) is not None for prompt in (pair.base, pair.source))
    ]
    assert list(routed(lens, pairs, [site])) == there and 0 < len(there) < len(pairs)
    assert routed(lens, pairs, ["L2.mlp_out@X"]) is pairs


def test_a_token_that_is_not_sent_there_is_refused(lens):
    pairs, text = random_pairs(LENGTHS), "L2.expert_act.0@X"
    for attempt in (
        lambda: capture(lens, pairs, [text]),
        lambda: patch(lens, pairs, {text: None, "L1.mlp_out@X": None}),
    ):
        with pytest.raises(SiteError, match=r"does not send \d+ of 56 tokens to expert 0.*--skip"):
            attempt()


def test_a_whole_task_is_kept_split_by_split(mixtral):
    site, pairs = Site.parse("L2.expert_act.0@END"), random_pairs(LENGTHS)
    task = Task("mine", pairs[:20], pairs[20:40], pairs[40:])
    kept = routed(mixtral, task, [site])
    assert [len(part) for part in kept.splits] == [
        len(routed(mixtral, part, [site])) for part in task.splits
    ]


def test_patches_together_equal_patches_inside(lens):
    """An earlier one may send the token past the later one's expert, which is then left alone."""
    first, second = Site.parse("L1.expert_act.2@X"), Site.parse("L2.expert_act.0@X")
    pairs = sent(lens, first, second)
    plane = torch.linalg.qr(torch.randn(lens.map.dim(second), 2).double())[0].requires_grad_(True)
    patches = [Full(), SubspacePatch(plane)]
    replay = joint_replay(lens, pairs, [Place(first), Place(second)]).patching(patches)
    for piece in replay.pieces():
        logits = piece.logits(piece.of(replay.source[None]))[0]
        expected = []
        for index in piece.pairs.tolist():
            pair = pairs[index]
            column = pair.base.columns["X"]
            one, two = (seen(lens, pair.source, site) for site in (first, second))

            def change(h, at, patch, source, column=column):
                return h + patch.delta(h[None], source[None])[0] if at == column else h

            with (
                inside(lens, first, lambda h, at, s=one, c=change: c(h, at, patches[0], s)),
                inside(lens, second, lambda h, at, s=two, c=change: c(h, at, patches[1], s)),
            ):
                expected.append(logits_of(lens, pair.base.ids))
        close(logits, torch.stack(expected))
        ours, theirs = (
            torch.autograd.grad(x.square().sum(), plane)[0] for x in (logits, torch.stack(expected))
        )
        close(ours, theirs)


def test_a_later_patch_of_one_activation_sees_the_earlier(mixtral):
    """Two labels that name one token."""
    site = Site.parse("L1.expert_act.2@END")
    pairs = [
        pair for pair in random_pairs([(9, 8)] * 40) if None not in
        (seen(mixtral, pair.base, site), seen(mixtral, pair.source, site))
    ]  # fmt: skip
    pairs = PairSet("random", "test", tuple(pairs))
    twice = patch(mixtral, pairs, "L1.expert_act.2@X+END")
    once = patch(mixtral, pairs, site)
    torch.testing.assert_close(twice.patched.logit_diff, once.patched.logit_diff)
    assert float(abs(once.drop).max()) > 0.01


def test_an_expert_certifies_itself(lens):
    certificate = certify(lens, "L1.expert_act.2@S2")
    assert certificate.passed, certificate.failures
    names = {proof.name for proof in certificate.proofs}
    assert {"hook writes", "hook acts", "kernel", "replay", "gradient", "batch"} <= names


def test_what_the_down_projection_does_not_read_does_nothing(lens):
    site = Site.parse("L1.expert_act.2@X")
    weight = module_of(lens, 1).down_proj[2]
    assert torch.equal(lens.map.linear_writer(site), weight)
    if weight.shape[1] <= weight.shape[0]:
        return
    null = torch.linalg.svd(weight).Vh[weight.shape[0] :].T.contiguous().float()
    split = exact_split(lens, site, null, centred=False)
    assert float(split.row.norm()) < 1e-5 * float(split.null.norm())
    pairs = sent(lens, site)
    effect = patch(lens, pairs, site, {"null": null, "whole": Full()})
    assert float(abs(effect["null"].drop).max()) < 1e-4 < float(abs(effect["whole"].drop).max())


def test_experts_that_cannot_be_shown_are_refused_by_name():
    lens = model_of("gpt_oss")
    with pytest.raises(SiteError, match=r"L1\.expert_act\.0@X: model\.layers\.1: what its experts"):
        lens.map.block(Site.parse("L1.expert_act.0@X"))
    with pytest.raises(SiteError, match="block 1 has no experts"):
        tiny_lens("llama").map.block(Site.parse("L1.expert_act.0@X"))


def test_what_an_expert_is_not(mixtral):
    with pytest.raises(SiteError, match="experts 0 to 3, not 4"):
        mixtral.map.block(Site.parse("L1.expert_act.4@X"))
    with pytest.raises(SiteError, match="needs the number of an expert"):
        Site.parse("L1.expert_act@X")
    site = Site.parse("L1.expert_act.2@X")
    with pytest.raises(SiteError, match="single experts are not mapped"):
        gradient_pass(mixtral, random_pairs(LENGTHS), [site])
    assert {each.name for each in spellings(mixtral, site)} == {None}
    with pytest.raises(SubspaceError, match="the basis at L1"):
        patch(mixtral, random_pairs(LENGTHS), site, torch.ones(3))
