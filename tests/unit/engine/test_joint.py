"""Patches at several places together, on every architecture: they equal plain hooks."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers_models import FAMILIES, tiny_lens
from helpers_oracle import random_pairs, site_module
from subspacelens.core.errors import SubspaceError, TaskError
from subspacelens.core.places import Place, Span, parse_places
from subspacelens.core.site import Site
from subspacelens.engine.capture import capture
from subspacelens.engine.joint import JointReplay, joint_replay
from subspacelens.engine.patches import Full, PairwisePatch, Patch, SubspacePatch, ZeroSetting
from subspacelens.model.hooks import on_input, on_output
from subspacelens.model.lens import LensModel
from subspacelens.tasks.pairset import PairSet, Prompt

LENGTHS = [(9, 4), (12, 7), (9, 0), (11, 6), (8, 7), (9, 4), (10, 5)]
LABELS = ("X", "END")
CASES = (
    ("L1.mlp_act@X", "L2.resid_post@END", "L1.head_z.1@X"),
    ("L1.attn_k@X", "L1.attn_q@END", "L2.attn_v.0@X", "L3.resid_pre@END", "L3.head_z@END"),
    ("L2.resid_mid@X", "L2.mlp_out@X:", "L1.attn_out@*", "L2.attn_v@END", "L2.resid_pre@X"),
    ("L3.resid_post@X+END", "L3.mlp_out@END"),
    ("L3.attn_k@*", "L0.resid_pre@X:"),
)


@pytest.fixture(scope="module", params=FAMILIES)
def lens(request) -> LensModel:
    return tiny_lens(request.param)


@pytest.fixture(scope="module")
def llama() -> LensModel:
    return tiny_lens("llama")


def close(got: Tensor, expected: Tensor) -> None:
    """1e-5 relative: some families compute attention weights in float32 whatever the dtype."""
    atol = 1e-9 + 1e-5 * float(expected.detach().abs().max())
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=atol)


def places_of(lens: LensModel, case: tuple[str, ...]) -> list[Place]:
    """Those of a case that the architecture has."""
    found = [place for text in case for place in parse_places(text, LABELS)]
    return [p for p in found if p.site.stream not in lens.map.blocks[p.site.layer].missing]


def columns_of(prompt: Prompt, place: Place) -> list[int]:
    end = len(prompt.ids)
    first = 0 if place.span is Span.ALL else prompt.columns[place.site.label]
    return list(range(first, first + 1 if place.span is Span.AT else end))


def hooks(lens: LensModel, place: Place, columns: list[int], change):
    """Plain hooks that apply `change` (columns, dim) at a place; a change of the stream between
    attention and MLP is one of what the MLP reads and of what leaves the block."""
    block, part = lens.map.blocks[place.site.layer], lens.map.part(place.site)
    moved: list[Tensor] = []

    def changed(x: Tensor) -> Tensor:
        every = x.reshape(-1, x.shape[-1]).clone()
        new = change(every[columns][:, part])
        moved.append(new - every[columns][:, part])
        rows = torch.tensor(columns)[:, None]
        every[rows, torch.arange(every.shape[1])[part]] = new
        return every.reshape(x.shape)

    def carried(x: Tensor) -> Tensor:
        every = x.reshape(-1, x.shape[-1]).clone()
        every[columns] += moved[0]
        return every.reshape(x.shape)

    if place.site.stream == "resid_mid":
        return [on_input(block.middle, changed), on_output(block.module, carried)]
    module, is_input = site_module(lens, place.site)
    return [(on_input if is_input else on_output)(module, changed)]


def oracle(lens: LensModel, pair, places: list[Place], patches: list[Patch]) -> Tensor:
    """Logits at the last token of a full pass with a hook for each patch."""
    sources = []
    with torch.no_grad():
        for place in places:
            seen: list[Tensor] = []
            with ExitStack() as stack:
                columns = columns_of(pair.source, place)
                keep = lambda h, seen=seen: seen.append(h.clone()) or h  # noqa: E731
                for hook in hooks(lens, place, columns, keep):
                    stack.enter_context(hook)
                lens.model(torch.tensor([pair.source.ids]), use_cache=False)
            sources.append(seen[0])
    with ExitStack() as stack:
        for place, patch, source in zip(places, patches, sources, strict=True):
            columns = columns_of(pair.base, place)
            change = lambda h, p=patch, s=source: h + p.delta(h, s)  # noqa: E731
            for hook in hooks(lens, place, columns, change):
                stack.enter_context(hook)
        return lens.model(torch.tensor([pair.base.ids]), use_cache=False).logits[0, -1]


def patches_for(lens: LensModel, places: list[Place]) -> tuple[list[Patch], list[Tensor]]:
    """The whole component at every other place, planes at the others, and the planes' bases."""
    generator = torch.Generator().manual_seed(0)
    patches, bases = [], []
    for number, place in enumerate(places):
        dim = lens.map.dim(place.site)
        plane = torch.linalg.qr(torch.randn(dim, 2, generator=generator).double())[0]
        if number % 2:
            patches.append(Full())
        else:
            bases.append(plane.requires_grad_(True))
            patches.append(SubspacePatch(plane))
    return patches, bases


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_values_and_gradients_equal_plain_hooks(lens, case):
    pairs, places = random_pairs(LENGTHS), places_of(lens, case)
    patches, bases = patches_for(lens, places)
    replay = joint_replay(lens, pairs, places).patching(patches)
    for piece in replay.pieces():
        logits = piece.logits(piece.of(replay.source[None]))[0]
        expected = torch.stack(
            [oracle(lens, pairs[index], places, patches) for index in piece.pairs.tolist()]
        )
        close(logits, expected)
        if bases:
            pulled = torch.autograd.grad(logits.square().sum(), bases)
            wanted = torch.autograd.grad(expected.square().sum(), bases)
            for ours, theirs in zip(pulled, wanted, strict=True):
                close(ours, theirs)


def test_all_columns_of_what_enters_the_first_block_make_the_source_of_the_base(lens):
    pairs = random_pairs(LENGTHS)
    (place,) = parse_places("L0.resid_pre@*", LABELS)
    replay = joint_replay(lens, pairs, [place])
    got = replay.delta_logits(replay.source)
    with torch.no_grad():
        for pair, logits in zip(pairs, got, strict=True):
            full = lens.model(torch.tensor([pair.source.ids]), use_cache=False).logits[0, -1]
            torch.testing.assert_close(logits, full.float(), rtol=1e-4, atol=1e-4)


def joined(lens: LensModel, pairs: PairSet, *texts: str, **options) -> JointReplay:
    places = [place for text in texts for place in parse_places(text, LABELS)]
    return joint_replay(lens, pairs, places, **options)


def test_each_alone_is_what_the_site_alone_does_and_the_rest_is_interaction(llama):
    pairs, texts = random_pairs(LENGTHS), ("L1.mlp_act@X", "L2.resid_post@X", "L2.attn_q@END")
    effect = joined(llama, pairs, *texts).together()
    assert tuple(effect.single) == texts
    captured = capture(llama, pairs, texts)
    alone = {text: captured.at(text).effect(Full()) for text in texts}
    for text, own in alone.items():
        torch.testing.assert_close(
            effect.single[text].patched.logit_diff, own.patched.logit_diff, rtol=1e-5, atol=1e-5
        )
    clean = captured.clean.logit_diff
    both = clean - effect.patched.logit_diff
    beyond = both - sum(clean - own.patched.logit_diff for own in alone.values())
    assert effect.interaction.value == pytest.approx(float(beyond.mean()), abs=1e-5)
    share = float(beyond.sum() / clean.sum()) if float(clean.sum()) > 0 else None
    assert effect.interaction_fldd.value == pytest.approx(share, abs=1e-4)
    assert effect.interaction.low < effect.interaction.value < effect.interaction.high  # type: ignore[operator]


def test_patches_that_do_not_meet_do_not_interact(llama):
    """Behind the last block no column reads another; X is END in prompts of length (8, 7)."""
    pairs = random_pairs([lengths for lengths in LENGTHS if lengths != (8, 7)])
    effect = joined(llama, pairs, "L3.resid_post@X", "L3.resid_post@END").together()
    assert effect.single["L3.resid_post@X"].drop == pytest.approx(np.zeros(len(pairs)), abs=1e-5)
    assert effect.interaction.value == pytest.approx(0, abs=1e-5)


def test_a_later_patch_is_computed_against_what_an_earlier_one_left(llama):
    """Zero setting depends on the activation alone: after an earlier whole patch it is another."""
    pairs = random_pairs(LENGTHS)
    v = torch.randn(llama.map.d_model, generator=torch.Generator().manual_seed(3)).double() / 6
    replay = joined(llama, pairs, "L1.resid_pre@END", "L2.resid_pre@END")
    effect = replay.patching([Full(), ZeroSetting(v)]).together()
    places = [move.place for move in replay.moves]
    for index, pair in enumerate(pairs):
        with torch.no_grad():
            logits = oracle(llama, pair, places, [Full(), ZeroSetting(v)])
        expected = float(logits[pair.answer] - logits[pair.target])
        assert float(effect.patched.logit_diff[index]) == pytest.approx(expected, abs=1e-5)


def test_pieces_and_subsets_say_the_same(llama):
    replay = joined(llama, random_pairs(LENGTHS), "L1.mlp_act@X:", "L2.head_z.1@*")
    whole = replay.together()
    tight = replace(replay, memory=1).together()
    torch.testing.assert_close(tight.patched.logit_diff, whole.patched.logit_diff)
    chosen = torch.tensor([3, 0, 3])
    some = replay.subset(chosen).together()
    torch.testing.assert_close(some.patched.logit_diff, whole.patched.logit_diff[chosen])
    examples = whole.examples(2)
    assert examples[0].before != examples[0].after


def test_labels_of_a_source_in_other_columns_are_allowed_only_when_asked(llama):
    pairs = random_pairs([(9, 4), (10, 5)], shift=1)
    with pytest.raises(TaskError, match="allow it with --shifted"):
        joined(llama, pairs, "L1.mlp_act@X+END")
    shifted = joined(llama, pairs, "L1.mlp_act@X+END", "L2.mlp_act@X:", shifted=True)
    patches = [move.patch for move in shifted.moves]
    for index, pair in enumerate(pairs):
        with torch.no_grad():
            logits = oracle(llama, pair, [move.place for move in shifted.moves], patches)
        close(shifted.delta_logits(shifted.source)[index], logits.float())
    with pytest.raises(TaskError, match=r"site L1.mlp_act@\*: .* has 9 tokens there and .* 10"):
        joined(llama, pairs, "L1.mlp_act@*", shifted=True)


def test_what_cannot_be_joined_is_refused(llama):
    pairs = random_pairs(LENGTHS)
    replay = joined(llama, pairs, "L1.mlp_act@X", "L2.mlp_act@X")
    rows = torch.zeros(len(pairs), 56)
    with pytest.raises(SubspaceError, match=r"L2\.mlp_act@X: patches that differ by pair"):
        replay.patching([Full(), PairwisePatch(rows, rows)])
    with pytest.raises(TaskError, match="no label 'S9'"):
        joined(llama, pairs, "L1.mlp_act@X+S9")


def test_a_place_is_one_stream_at_columns():
    texts = [str(place) for place in parse_places("L9.attn_q.3@X+S2:+*", ("X", "S2"))]
    assert texts == ["L9.attn_q.3@X", "L9.attn_q.3@S2:", "L9.attn_q.3@*"]
    assert parse_places("L1.mlp_act@S+1", ("S+1",)) == (Place(Site(1, "mlp_act", "S+1")),)
    assert parse_places("L1.mlp_act@S+S", ("S",)) == (Place(Site(1, "mlp_act", "S")),)
