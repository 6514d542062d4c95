"""The tests of the audit on planted units, and what budgets run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers_models import tiny_lens
from helpers_oracle import random_pairs
from helpers_planted import Channels, planted
from subspacelens.audit import audit, judge
from subspacelens.audit.evidence import TESTS
from subspacelens.audit.evidence.downstream import held, value_range
from subspacelens.audit.evidence.refits import halves_of, shuffled
from subspacelens.audit.judging import chosen_tests
from subspacelens.core.errors import LensError
from subspacelens.core.site import Site
from subspacelens.core.statistics import Units, auroc, auroc_interval, ratio
from subspacelens.engine.capture import capture
from subspacelens.engine.patches import SubspacePatch
from subspacelens.engine.task_capture import TaskCapture, capture_task
from subspacelens.fit import closed_form, das, mean_difference, pca
from subspacelens.fit.subspace import made_by
from subspacelens.measure.readers import attribute_readers, frozen
from subspacelens.model.hooks import on_input
from subspacelens.model.lens import LensModel
from subspacelens.model.loading import load_model
from subspacelens.tasks import Task, ioi
from subspacelens.tasks.pairset import PairSet

SITE = Site(1, "mlp_act", "X")
LAST = Site(3, "resid_post", "END")


@pytest.fixture(scope="module")
def lens() -> LensModel:
    return tiny_lens("llama", dtype=torch.float64)


@pytest.fixture(scope="module")
def task() -> Task:
    def split(name: str, count: int, seed: int) -> PairSet:
        pairs = random_pairs([(9, 4)] * count, seed)
        return PairSet(
            "random", name, tuple(replace(p, z=(i % 2, 1 - i % 2)) for i, p in enumerate(pairs))
        )

    return Task("random", split("train", 60, 1), split("test", 20, 2))


@pytest.fixture(scope="module")
def able(lens) -> Task:
    """Token 10 or 11: z is 0 for the half of the prompts after which the first is likelier."""
    drawn = [replace(p, answer=10, target=11) for p in random_pairs([(9, 4)] * 200, 3)]
    clean = capture(lens, PairSet("able", "all", tuple(drawn)), [LAST]).clean.logit_diff
    first, second = (
        [
            pair.base
            for pair, d in zip(drawn, clean, strict=True)
            if (d > clean.median()) == likelier
        ]
        for likelier in (True, False)
    )
    pairs = [
        replace(drawn[0], base=ours, source=theirs, answer=10 + z, target=11 - z, z=(z, 1 - z))
        for i, both in enumerate(zip(first, second, strict=False))
        for z in (i % 2,)
        for ours, theirs in (both[::-1] if z else both,)
    ][:80]
    return Task("able", *(PairSet("able", name, tuple(pairs[part])) for name, part in (
        ("train", slice(40)), ("test", slice(40, 60)), ("held out", slice(60, 80))
    )))  # fmt: skip


@pytest.fixture(scope="module")
def channels(lens) -> Channels:
    """A faithful unit, a sensor, and one that never varies; what they write outweighs the rest."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    reads, writes = draw(3, lens.map.d_model), 30 * draw(lens.map.d_model, 3)
    reads[2], writes[:, 1] = 0, 0
    mixing, _ = torch.linalg.qr(draw(3, 3))
    return Channels(reads, torch.zeros(3), writes, mixing)


def judged(lens, task: Task, channels: Channels, weights: dict[int, float], **options):
    with planted(lens, 1, channels) as wide:
        captures: TaskCapture = capture_task(wide, task, [SITE])
        basis = channels.direction(weights, wide.map.dim(SITE))[:, None]
        subspace = made_by(wide, SITE, basis, task.train.sha256, {"method": "planted"})
        return judge(wide, captures, subspace, **options)


def test_what_a_used_unit_writes_follows_what_it_reads(lens, task, channels):
    tests = judged(lens, task, channels, {0: 1.0}, budget="fast").tests
    assert tests["covariation"].value == pytest.approx(1, abs=0.1)
    assert tests["covariation"].low <= tests["covariation"].value <= tests["covariation"].high
    assert tests["row_effect"].value == pytest.approx(1, abs=0.1)
    assert tests["read_source"].value == pytest.approx(0, abs=0.1)
    assert tests["comovement"].value == pytest.approx(1, abs=0.1)


def test_what_a_sensor_reads_is_not_followed(lens, task, channels):
    tests = judged(lens, task, channels, {1: 0.5**0.5, 2: 0.5**0.5}, budget="fast").tests
    assert tests["covariation"].value == pytest.approx(0, abs=0.1)
    assert tests["row_effect"].value == pytest.approx(0, abs=0.1)
    assert tests["read_source"].value == pytest.approx(1, abs=0.1)
    assert tests["comovement"].value == pytest.approx(0, abs=0.1)
    assert abs(tests["null_effect"].value) < 1e-6
    assert "nats, as it must be" in tests["null_effect"].reading


def test_a_sensor_alone_has_nothing_to_judge(lens, task, channels):
    judgement = judged(lens, task, channels, {1: 1.0}, budget="fast")
    assert judgement.tests["covariation"].value is None
    assert judgement.verdict.label == "undetermined"


def test_all_tests_say_something(lens, task, channels):
    found = judged(lens, task, channels, {0: 1.0})
    assert set(found.tests) == set(TESTS) - {"stability", "shuffled_labels", "vacuity"}
    assert all(test.reading for test in found.tests.values())
    assert found.tests["chance"].value < 0.2 and found.tests["chance"].control == 0
    assert found.tests["natural_range"].value > 0.5
    assert 0 < found.tests["gradient_agreement"].value <= 1
    assert found.tests["selectivity"].value > 0
    assert "_proj" in found.tests["path"].reading
    assert found.tests["generalisation"].value is None
    assert set(found.effects) >= {"random", "reversed"}


def test_a_task_that_the_model_does_not_do_is_said_first(lens, task):
    captures = capture_task(lens, task, [SITE])
    result = audit(lens, captures, mean_difference(lens, captures.train, SITE), budget="fast")
    assert result.record.clean.top_answer.value < 0.5
    assert result.record.notes[0].startswith("the model gives the right answer in ")
    assert "it says token " in result.record.notes[0]


@pytest.mark.parametrize("shared", [3, 12])
def test_test_pairs_that_share_their_beginning_with_fitted_ones_are_left_out(lens, task, shared):
    """Of 20 test pairs `shared` have the first five tokens of a training pair, label included."""

    def begins_as(pair, other):
        prompts = {
            role: replace(getattr(pair, role), ids=getattr(other, role).ids[:5]
                          + getattr(pair, role).ids[5:])
            for role in ("base", "source")
        }  # fmt: skip
        return replace(pair, **prompts)

    test = [
        begins_as(pair, other) if number < shared else pair
        for number, (pair, other) in enumerate(zip(task.test, task.train, strict=False))
    ]
    leaking = Task("random", task.train, PairSet("random", "test", tuple(test)))
    captures = capture_task(lens, leaking, [SITE])
    judgement = judge(lens, captures, mean_difference(lens, captures.train, SITE), budget="fast")
    if shared == 3:
        assert judgement.left_out == 3 and len(judgement.case.replay.pairs) == 17
    else:  # Too few would be left.
        assert judgement.left_out == 0 and len(judgement.case.replay.pairs) == 20
        assert judgement.verdict.code == "leak" and "12 pairs" in judgement.verdict.reasons[0]


def test_repeated_training_prompts_are_one_unit(lens, task, channels):
    thin = Task("thin", task.train[:20], task.test)
    often = Task("often", PairSet("random", "train", task.train.pairs[:20] * 5), task.test)
    tests = [
        judged(lens, each, channels, {0: 0.8, 1: 0.6}, budget="fast").tests["covariation"]
        for each in (thin, often)
    ]
    assert tests[0].value == pytest.approx(tests[1].value)
    assert (tests[0].low, tests[0].high) == pytest.approx((tests[1].low, tests[1].high), abs=1e-6)
    few = Task("few", task.train[:10], task.test)
    assert "10 distinct" in judged(lens, few, channels, {0: 1.0}, budget="fast").verdict.reasons[0]


def test_auroc_intervals_are_over_units():
    scores, z = np.arange(8.0), np.array([0, 0, 1, 0, 1, 0, 1, 1])
    alone = auroc_interval(scores, z, np.arange(8))
    assert alone.value == pytest.approx(auroc(scores, z)) and alone.low < alone.value < alone.high
    again = auroc_interval(np.tile(scores, 4), np.tile(z, 4), np.tile(np.arange(8), 4))
    assert (again.low, again.high) == pytest.approx((alone.low, alone.high))
    assert auroc_interval(scores[:3], z[:3], np.zeros(3, dtype=int)).low is None


@pytest.mark.parametrize("family", ["gemma2", "olmo2", "gpt_neox", "gpt2"])
def test_every_stream_of_other_families_is_audited(family, task):
    lens = tiny_lens(family)
    streams = [name for name in lens.map.blocks[1].entries if name != "resid_mid"]
    sites = [replace(SITE, stream=stream) for stream in streams]
    captures = capture_task(lens, task, sites)
    for site in sites:
        subspace = mean_difference(lens, captures.train, site)
        judgement = judge(lens, captures, subspace)
        assert set(judgement.tests) == set(chosen_tests("standard"))


def test_readers_are_the_same_however_prompts_are_put_together(lens):
    """Three prompts of one length after the label are replayed to the last column alone; beside a
    shorter one they are not."""
    even = random_pairs([(9, 4)] * 3)
    site = Site(2, "mlp_act", "X")
    both = PairSet("random", "test", (*even.pairs, random_pairs([(9, 6)], seed=5)[0]))
    alone, beside = (capture(lens, pairs, [site]) for pairs in (even, both))
    assert alone.buckets["X"][0].even and not beside.buckets["X"][0].even
    beside = beside.at(site).subset(torch.arange(3))
    shares = [
        {r.name: r.attribution for r in attribute_readers(replay, alone.difference(site))}
        for replay in (alone.at(site), beside)
    ]
    assert shares[0] == pytest.approx(shares[1], abs=1e-9)
    assert not any("gate_proj" in name for name in shares[0])


@pytest.mark.parametrize("stream", ["mlp_act", "resid_post"])
def test_sixteen_dimensions(lens, task, stream):
    site = replace(SITE, stream=stream)
    captures = capture_task(lens, task, [site])
    generator = torch.Generator().manual_seed(0)
    draw = torch.randn(lens.map.dim(site), 16, generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(draw)[0]
    subspace = made_by(lens, site, basis, task.train.sha256, {"method": "planted"})
    judgement = judge(lens, captures, subspace)
    assert set(judgement.tests) == set(chosen_tests("standard"))
    assert all(test.reading for test in judgement.tests.values())
    row, null = (judgement.effects[name].nats.value for name in ("row", "null"))
    assert row is not None and null is not None


def test_the_whole_component_moves_other_text_as_much_as_itself(tiny_folder):
    lens = load_model(tiny_folder, dtype="float64")
    site = Site(1, "attn_out", "END")
    small = ioi(lens.tokenizer, train=20, test=20, held_out=0)
    captures = capture_task(lens, small, [site])
    whole = torch.eye(lens.map.dim(site), dtype=torch.float64)
    few = {}
    for name, basis in (("whole", whole), ("one", whole[:, :1])):
        subspace = made_by(lens, site, basis, small.train.sha256, {"method": "planted"})
        few[name] = judge(lens, captures, subspace, budget="fast", tests=["unrelated_text"])
    tests = {name: judgement.tests["unrelated_text"] for name, judgement in few.items()}
    assert tests["whole"].value == pytest.approx(1, abs=1e-6) == tests["whole"].control
    assert 0 < tests["one"].value < 1 and 0 < tests["one"].control < 1
    assert "nothing to do with the task" in tests["one"].reading


def test_the_share_of_an_axis_is_that_of_its_own_patch(lens, task):
    captures = capture_task(lens, task, [SITE])
    subspace = das(lens, captures.train, SITE, dim=3)
    judgement = judge(lens, captures, subspace, budget="fast")
    basis, replay = subspace.basis.double(), judgement.case.replay
    inside = captures.train.difference(SITE) @ basis
    axes = torch.linalg.svd(inside, full_matrices=False).Vh
    whole = replay.effect(SubspacePatch(basis)).drop
    assert len(judgement.axes) == 3
    for axis, turned in zip(judgement.axes, axes, strict=True):
        own = replay.effect(SubspacePatch((basis @ turned)[:, None])).drop
        assert axis.share.value == pytest.approx(own.sum() / whole.sum(), rel=1e-3, abs=1e-6)


def test_sites_captured_together_are_judged_as_each_is_alone(lens, task):
    sites = [Site(0, "mlp_act", "X"), Site(1, "resid_post", "X")]
    together = capture_task(lens, task, sites)
    for site in sites:
        subspace = mean_difference(lens, together.train, site)
        found, alone = (
            judge(lens, captures, subspace, tests=["hidden_pathway"]).tests["hidden_pathway"]
            for captures in (together, capture_task(lens, task, [site]))
        )
        assert found.value == pytest.approx(alone.value) and found.value is not None
        assert found.reading == alone.reading
    assert len(together.shared) == 1


def test_budgets_and_names():
    fast, standard, full = (chosen_tests(budget) for budget in ("fast", "standard", "full"))
    assert set(fast) < set(standard) < set(full) == set(TESTS)
    assert set(chosen_tests("standard", ["path"])) == {
        "path", "chance", "full_component", "row_effect", "covariation", "read_source", "natural",
        "beyond", "acting", "comovement",
    }  # fmt: skip
    with pytest.raises(LensError, match="unknown budget 'long'"):
        chosen_tests("long")
    with pytest.raises(LensError, match="unknown test 'luck'"):
        chosen_tests("fast", ["luck"])


def test_after_the_last_block_nobody_reads(lens):
    site = Site(3, "mlp_act", "END")
    captured = capture(lens, random_pairs([(9, 4)] * 4), [site])
    assert attribute_readers(captured.at(site), captured.difference(site)) == ()


def test_frozen_readers_hide_what_only_they_read(lens):
    """With every reader of every later block frozen, nothing but the direct path is left; with
    none, everything is."""
    captured = capture(lens, random_pairs([(9, 4)] * 4), [SITE])
    replay = captured.at(SITE)
    delta = captured.difference(SITE)
    readers = list(attribute_readers(replay, delta))
    clean = captured.clean.logit_diff
    patched = replay.delta_outcomes(delta).logit_diff
    # X is not the last column: what is written there reaches the answer through attention alone.
    torch.testing.assert_close(frozen(replay, delta, readers).logit_diff, clean)
    torch.testing.assert_close(frozen(replay, delta, []).logit_diff, patched)
    some = frozen(replay, delta, readers[:1]).logit_diff
    assert float((some - clean).norm()) > 1e-6 < float((some - patched).norm())


def test_units_held_downstream_equal_a_plain_pass_with_two_hooks(lens, task):
    captured = capture(lens, task.test, [SITE, replace(SITE, layer=2)])
    replay, delta = captured.at(SITE), captured.difference(SITE)
    low, high = value_range(captured.base[replace(SITE, layer=2)][:6])
    drops, outside = held(replay, delta, {2: (low, high)})

    def plain(number: int) -> float:
        pair = task.test[number]
        column = pair.base.columns["X"]

        def patch(x):
            return x.index_add(1, torch.tensor([column]), delta[number][None, None])

        def hold(x):
            return torch.cat(
                [x[:, :column], x[:, column, None].clamp(low, high), x[:, column + 1 :]], dim=1
            )

        first, second = (lens.map.blocks[i].down_proj.module for i in (1, 2))
        with torch.no_grad(), on_input(first, patch), on_input(second, hold):
            logits = lens.model(torch.tensor([pair.base.ids])).logits[0, -1]
        return float(logits[pair.answer] - logits[pair.target])

    expected = [plain(number) for number in range(len(task.test))]
    assert drops.tolist() == pytest.approx(expected, abs=1e-5) and 0 < outside < 1
    untouched, none = held(replay, delta, {})
    assert untouched.tolist() == pytest.approx(
        replay.delta_outcomes(delta).logit_diff.tolist(), abs=1e-6
    )
    assert none == 0


def test_stability_sees_both_classes_in_either_half(lens, task):
    """z alternates from pair to pair here: halves by parity would each hold one value of it."""
    captures = capture_task(lens, task, [SITE])
    halves = list(halves_of(captures.train, SITE, seed=0))
    first, second = ({pair.base.ids for pair in half.pairs} for half in halves)
    assert len(first) == len(second) == 30 and not first & second
    for half in halves:
        assert sum(pair.z[0] for pair in half.pairs) == 15
        number = task.train.pairs.index(half.pairs[0])
        torch.testing.assert_close(half.base[SITE][0], captures.train.base[SITE][number])


def test_stability_is_of_three_halvings(lens, able):
    """By hand: the squared cosine of the class-mean differences of either half."""
    captures = capture_task(lens, able, [LAST])
    subspace = mean_difference(lens, captures.train, LAST)
    judgement = judge(lens, captures, subspace, budget="fast", tests=["stability"], seed=5)
    z = np.array([pair.z[0] for pair in able.train])
    x = captures.train.difference(LAST) * torch.from_numpy(1 - 2 * z)[:, None]
    shared, fldd = [], []
    for seed in (5, 6, 7):
        means = [x[half].mean(dim=0) for half in captures.train.at(LAST).units.halves(z, seed)]
        shared.append(float(torch.cosine_similarity(*means, dim=0)) ** 2)
        patches = [SubspacePatch((mean / mean.norm())[:, None]) for mean in means]
        fldd.append([captures.test.at(LAST).effect(patch).fldd.value for patch in patches])
    test = judgement.tests["stability"]
    assert (test.value, test.low, test.high) == pytest.approx(
        (np.mean(shared), min(shared), max(shared)), abs=1e-5
    )
    error = (np.diff(fldd) ** 2).mean() ** 0.5 / 2
    assert f"is {np.min(fldd):.2f} to {np.max(fldd):.2f}" in test.reading
    assert f"adds about ± {error:.2f} (standard error)" in test.reading


def test_shuffled_labels_are_turned_in_half_of_the_units_of_either_class(lens, task):
    captured = capture_task(lens, task, [SITE]).train
    turned = shuffled(captured, SITE, seed=0)
    changed = np.array([a != b for a, b in zip(captured.pairs, turned.pairs, strict=True)])
    z = np.array([pair.z[0] for pair in captured.pairs])
    assert changed[z == 0].sum() == changed[z == 1].sum() == 15
    for before, after in zip(captured.pairs, turned.pairs, strict=True):
        if before != after:
            assert (after.answer, after.target) == (before.target, before.answer)
            assert after.z == before.z[::-1]
    sign = torch.from_numpy(np.where(changed, -1.0, 1.0))
    replay = turned.at(SITE)
    torch.testing.assert_close(replay.clean.logit_diff, captured.clean.logit_diff * sign.float())
    torch.testing.assert_close(replay.gradients(), captured.at(SITE).gradients() * sign[:, None])
    nothing = replay.delta_outcomes(torch.zeros_like(replay.base))
    torch.testing.assert_close(nothing.logit_diff, replay.clean.logit_diff)


def test_a_fit_to_shuffled_labels_finds_little(lens, able):
    captures = capture_task(lens, able, [LAST])

    def found(subspace):
        tests = judge(lens, captures, subspace, budget="fast", tests=["shuffled_labels"]).tests
        return tests["shuffled_labels"]

    test = found(mean_difference(lens, captures.train, LAST))
    assert 0 <= test.low <= test.value <= test.high and test.value < 0.5
    assert "labels that say nothing" in test.reading
    blind = found(pca(lens, captures.train, LAST))
    assert blind.value is None and "looks at no labels" in blind.reading


@pytest.mark.parametrize("count", [2, 4])
def test_templates_are_units_too(lens, able, count):
    test = tuple(replace(p, template=f"t{i % count}") for i, p in enumerate(able.test))
    captures = capture_task(lens, Task("able", able.train, PairSet("able", "test", test)), [LAST])
    subspace = closed_form(lens, captures.train, LAST)
    record = audit(lens, captures, subspace, budget="fast").record
    notes = [note for note in record.notes if "templates instead of prompts" in note]
    if count == 2:
        assert record.over_templates is None and not notes
        return
    effect = captures.test.at(LAST).effect(SubspacePatch(subspace.basis.double()))
    drop, clean = (
        np.array([x[i::count].sum() for i in range(count)])
        for x in (effect.drop, effect.clean.logit_diff.double().numpy())
    )
    own, expected = record.effects["subspace"].fldd, ratio(drop, clean, Units(np.arange(count)))
    over = record.over_templates
    assert over.count == count and over.fldd.value == pytest.approx(own.value)
    assert (over.fldd.low, over.fldd.high) == pytest.approx((expected.low, expected.high))
    bounded = expected.low is not None
    assert bool(notes) == (not bounded or expected.high - expected.low > own.high - own.low)


def test_generalisation_takes_both_effects_as_estimated(lens, able):
    captures = capture_task(lens, able, [LAST])
    subspace = closed_form(lens, captures.train, LAST)
    judgement = judge(lens, captures, subspace, budget="fast", tests=["generalisation"])
    there = captures.held_out.at(LAST).effect(SubspacePatch(subspace.basis.double())).fldd
    here, test = judgement.effects["subspace"].fldd, judgement.tests["generalisation"]
    assert test.value == pytest.approx(there.value / here.value)
    assert test.high - test.low > 1.1 * (there.high - there.low) / here.value


def test_vacuity_fits_again_in_a_copy_and_leaves_the_model_alone(lens, task):
    site = Site(2, "resid_post", "END")
    captures = capture_task(lens, task, [site])
    before = lens.weights_sha256
    subspace = das(lens, captures.train, site, dim=8, steps=30)
    vacuity = judge(lens, captures, subspace, budget="fast", tests=["vacuity"]).tests["vacuity"]
    assert "random matrices" in vacuity.reading
    assert LensModel(lens.model, None, "again", lens.map).weights_sha256 == before  # type: ignore[arg-type]
