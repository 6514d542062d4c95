"""One site of a capture: what it knows, what it refuses, what patches of it do."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from helpers_models import tiny_model
from helpers_oracle import hooked_logits, random_pairs
from subspacelens.core.errors import ModelError, SiteError, TaskError
from subspacelens.core.site import Site
from subspacelens.engine.activations import activations
from subspacelens.engine.capture import capture
from subspacelens.engine.patches import Full, NoOp, SubspacePatch
from subspacelens.model.hooks import on_output
from subspacelens.model.lens import LensModel, wrap
from subspacelens.tasks.pairset import Pair, PairSet, Prompt

SITE = Site(1, "mlp_act", "X")
LENGTHS = [(9, 4), (12, 7), (9, 4), (10, 5), (9, 4)]


@pytest.fixture(scope="module")
def lens() -> LensModel:
    return wrap(tiny_model("llama"), None, "llama")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def pairs() -> PairSet:
    return random_pairs(LENGTHS)


@pytest.fixture(scope="module")
def replay(lens, pairs):
    return capture(lens, pairs, [SITE]).at(SITE)


def test_a_site_is_named_by_its_text_too(lens, pairs, replay):
    same = capture(lens, pairs, [str(SITE)]).at(str(SITE))
    assert same.site == SITE and torch.equal(same.difference, replay.source - replay.base)


def test_a_site_that_was_not_captured_is_refused(lens, pairs):
    with pytest.raises(SiteError, match=r"L0.mlp_act@X is not in the capture of L1.mlp_act@X"):
        capture(lens, pairs, [SITE]).at("L0.mlp_act@X")


def test_a_capture_is_refused_by_another_model(lens, pairs):
    captured = capture(lens, pairs, [SITE])
    other = wrap(tiny_model("llama", seed=1), None, "other")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"the capture was made with model llama, not with other"):
        captured.at(SITE, other)
    assert captured.at(SITE, lens).site == SITE


def test_a_capture_is_refused_by_its_own_model_once_that_has_changed(pairs):
    lens = wrap(tiny_model("llama"), None, "llama")  # type: ignore[arg-type]
    captured = capture(lens, pairs, [SITE])
    with torch.no_grad():
        next(lens.model.parameters()).mul_(1.01)
    with pytest.raises(ModelError, match="its weights"):
        captured.at(SITE, lens)


def test_effects_agree_with_plain_hooks(lens, pairs, replay):
    basis = torch.linalg.qr(torch.randn(replay.base.shape[1], 2).double())[0]
    effects = replay.effects({"whole": Full(), "plane": SubspacePatch(basis), "none": NoOp()})
    for index, pair in enumerate(pairs):
        column, moved = pair.base.columns["X"], replay.difference[index]
        for name, change in (("whole", moved), ("plane", basis @ (basis.T @ moved))):
            logits = hooked_logits(
                lens, pair.base.ids, SITE, column, lambda h, change=change: h + change
            )
            expected = float(logits[pair.answer] - logits[pair.target])
            measured = float(effects[name].patched.logit_diff[index])
            assert measured == pytest.approx(expected, abs=1e-5)
            assert int(effects[name].patched.top[index]) == int(logits.argmax())
    clean = replay.clean.logit_diff
    torch.testing.assert_close(effects["none"].patched.logit_diff, clean, atol=1e-5, rtol=0)
    assert effects["none"].nats.value == pytest.approx(0, abs=1e-6)


def test_logit_differences_and_hits_need_no_vocabulary(replay):
    deltas = torch.stack([scale * replay.difference for scale in (-3.0, 0.5, 1.0, 3.0)])
    tokens = replay.delta_outcomes(deltas).top[2].tolist()
    roles = ("target", "answer", "target", "answer", "target")
    pairs = [
        replace(pair, **{role: token})
        for pair, role, token in zip(replay.pairs, roles, tokens, strict=True)
    ]
    told = replace(replay, pairs=PairSet("random", "told", tuple(pairs)))
    targets = torch.tensor([pair.target for pair in pairs])
    whole, decided = (told.delta_outcomes(deltas, decided=known) for known in (False, True))
    torch.testing.assert_close(decided.logit_diff, whole.logit_diff)
    torch.testing.assert_close(told.logit_diffs(deltas), whole.logit_diff)
    torch.testing.assert_close(told.logit_diffs(deltas[0]), whole.logit_diff[0])
    assert torch.equal(decided.top == targets, whole.top == targets)
    likelier = whole.logit_diff > 0
    assert bool((decided.top[likelier] == -1).all()) and bool(likelier.any())
    assert torch.equal(decided.top[~likelier], whole.top[~likelier])
    assert bool((whole.top == targets)[~likelier].any())


def test_activations_alone_are_those_of_a_capture(lens, pairs):
    sites = [SITE, Site(2, "resid_post", "X"), Site(0, "mlp_out", "END")]
    captured = capture(lens, pairs, sites)
    found = activations(lens, [p.base for p in pairs] + [p.source for p in pairs], sites)
    for site in sites:
        both = torch.cat([captured.base[site], captured.source[site]])
        torch.testing.assert_close(found[site], both)


def test_what_is_done_around_base_prompts_is_not_done_around_sources(lens, pairs):
    seen = []

    def around(batch):
        seen.extend(batch)
        return on_output(lens.model.get_input_embeddings(), lambda x: 2 * x)

    plain, changed = capture(lens, pairs, [SITE]), capture(lens, pairs, [SITE], around=around)
    torch.testing.assert_close(changed.source[SITE], plain.source[SITE])
    with on_output(lens.model.get_input_embeddings(), lambda x: 2 * x):
        twice = capture(lens, pairs, [SITE])
    torch.testing.assert_close(changed.base[SITE], twice.base[SITE])
    assert not torch.allclose(changed.base[SITE], plain.base[SITE])
    assert {prompt.ids for prompt in seen} == {pair.base.ids for pair in pairs}


def test_fldd_is_one_less_the_ratio_of_means_and_none_without_a_preference(replay):
    effect = replay.effect(Full())
    clean, patched = replay.clean.logit_diff.mean(), effect.patched.logit_diff.mean()
    sign = math.copysign(1, clean)
    turned = replace(
        effect,
        clean=replace(effect.clean, logit_diff=sign * effect.clean.logit_diff),
        patched=replace(effect.patched, logit_diff=sign * effect.patched.logit_diff),
    )
    assert turned.fldd.value == pytest.approx(float(1 - patched / clean), abs=1e-5)
    against = replace(turned, clean=replace(effect.clean, logit_diff=-turned.clean.logit_diff))
    assert against.fldd.value is None and against.nats.value is not None


def test_a_frame_has_a_row_a_pair_and_examples_have_tokens_before_and_after(lens, pairs, replay):
    effect = replay.effect(Full())
    frame = effect.frame()
    assert len(frame) == len(pairs)
    drops = frame["clean_logit_diff"] - frame["patched_logit_diff"]
    assert drops.mean() == pytest.approx(effect.nats.value)
    examples = effect.examples(3, tokens=4)
    assert len(examples) == 3 and len(examples[0].before) == len(examples[0].after) == 4
    drops = [example.clean_logit_diff - example.patched_logit_diff for example in examples]
    assert drops == sorted(drops, reverse=True)
    first = int(effect.drop.argmax())
    assert examples[0].before[0] == str(int(replay.clean.top[first]))
    assert examples[0].after[0] == str(int(effect.patched.top[first]))


def test_gradients_are_those_of_the_logit_difference(replay):
    step = 1e-2 * torch.randn(replay.base.shape, generator=torch.Generator().manual_seed(0))
    up, down = (replay.delta_outcomes(sign * step).logit_diff for sign in (1, -1))
    expected = (step * replay.gradients()).sum(1).float()
    torch.testing.assert_close((up - down) / 2, expected, rtol=2e-2, atol=2e-5)
    with torch.no_grad():
        assert torch.equal(replay.gradients(), replay.gradients())


def test_a_pair_may_be_chosen_twice(replay):
    some = replay.subset(torch.tensor([3, 0, 3, 3]))
    whole = replay.outcomes(Full())
    torch.testing.assert_close(
        some.outcomes(Full()).logit_diff, whole.logit_diff[[3, 0, 3, 3]], atol=1e-5, rtol=0
    )
    assert [pair.base.ids for pair in some.pairs] == [
        replay.pairs[i].base.ids for i in (3, 0, 3, 3)
    ]


def test_a_pair_that_is_not_there_cannot_be_chosen(replay):
    with pytest.raises(IndexError):
        replay.subset(torch.tensor([len(replay.pairs)]))


@pytest.mark.parametrize("shape", [(6, 0), (4, 0), (5, 1), (2, 6, 0)])
def test_a_change_of_another_shape_is_refused(replay, shape):
    delta = torch.zeros(*shape[:-1], replay.base.shape[1] + shape[-1])
    with pytest.raises(TaskError, match=r"is not one of 5 pairs that are \d+ wide"):
        replay.delta_outcomes(delta)


def test_where_base_and_source_agree_there_is_nothing_to_patch(lens):
    same = (5, 6, 7)
    columns = {"X": 2, "END": 4}
    base, source = (Prompt("", (*same, changed, 9), columns) for changed in (8, 10))
    pair = Pair(base=base, source=source, answer=11, target=12)
    captured = capture(lens, PairSet("same", "test", (pair,)), [SITE, replace(SITE, label="END")])
    with pytest.raises(TaskError, match=r"L1.mlp_act@X: .* first differ in column 3, .* column 2 "):
        captured.at(SITE).require_difference()
    assert captured.at("L1.mlp_act@END").require_difference().site.label == "END"
