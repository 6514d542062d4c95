"""Additions of which it is known what they are, in a tiny model that does its task."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import subspacelens as sl
from helpers_knowing import knowing_lens, knowing_task
from subspacelens.audit.addition.case import Addition
from subspacelens.audit.addition.controls import planted
from subspacelens.audit.addition.curve import leaves
from subspacelens.audit.addition.judging import judge, judge_blind
from subspacelens.audit.addition.tests import TESTS, behaviour
from subspacelens.audit.controls.spikes import Plan
from subspacelens.audit.controls.words import USED
from subspacelens.audit.evidence import Setting
from subspacelens.audit.judging import set_apart
from subspacelens.core.errors import LensError, ResultError, SubspaceError
from subspacelens.core.files import file_sha256
from subspacelens.core.records import EffectRecord
from subspacelens.core.site import Site
from subspacelens.engine.task_capture import capture_task
from subspacelens.fit.closed_form import by_class
from subspacelens.report.addition_page import write_addition_page
from subspacelens.tasks import Task
from subspacelens.tasks.pairset import PairSet

STREAM, UNITS = Site(2, "resid_post", "END"), Site(2, "mlp_act", "END")


@pytest.fixture(scope="module")
def task() -> Task:
    return knowing_task()


@pytest.fixture(scope="module")
def lens():
    return knowing_lens()


@pytest.fixture(scope="module")
def captures(lens, task):
    return capture_task(lens, task, [STREAM, UNITS])


def class_difference(captures, site: Site) -> torch.Tensor:
    x, z = by_class(captures.train.at(site))
    return (x[z == 1].mean(dim=0) - x[z == 0].mean(dim=0)).double()


def judged(lens, captures, vector, alpha=1.0, site=STREAM):
    return judge(lens, captures, site, vector, alpha, budget="fast", tests=None, seed=0)


def case_of(captures, vector, alpha=1.0, site=STREAM) -> Addition:
    chosen, _ = set_apart(captures, site)
    replay = captures.test.at(site).subset(chosen)
    setting = Setting(captures=captures, replay=replay, chosen=chosen)
    return Addition(setting=setting, vector=vector, alpha=alpha)


def test_the_class_difference_is_faithful_at_its_own_dose_and_beyond_nature_at_ten_times(
    lens, captures
):
    vector = class_difference(captures, STREAM)
    once = judged(lens, captures, vector)
    assert once.verdict.label == "faithful", once.verdict.reasons
    assert once.tests["natural"].value == pytest.approx(1, abs=0.05)
    assert once.tests["reach"].value == pytest.approx(1, abs=0.2)
    assert once.tests["separation"].value > 0.9
    often = judged(lens, captures, vector, 10.0)
    assert (often.verdict.label, often.verdict.code) == ("undetermined", "dose")
    assert f"up to alpha {leaves(often.case):.3g} they stay inside" in often.verdict.reasons[0]
    assert 1 < leaves(often.case) < 3


def test_the_dose_that_is_named_stays_inside_and_the_next_does_not(captures):
    case = case_of(captures, class_difference(captures, STREAM), 10.0)
    last = leaves(case)
    assert case.inside(last).mean() >= 0.9 * case.usual > case.inside(1.03 * last).mean()
    assert leaves(replace(case, alpha=-10.0)) < 0


def test_a_vector_is_taken_as_long_as_it_is(lens, captures):
    vector = class_difference(captures, STREAM)
    one, other = judged(lens, captures, vector), judged(lens, captures, vector / 7, 7.0)
    for name, test in one.tests.items():
        assert other.tests[name].value == pytest.approx(test.value, abs=1e-6), name


def test_turned_signs(lens, captures):
    vector = class_difference(captures, STREAM)
    wrong, right = judged(lens, captures, -vector), judged(lens, captures, -vector, -1.0)
    assert (wrong.verdict.code, right.verdict.label) == ("small", "faithful")
    assert "stronger" in wrong.verdict.reasons[0] and "--alpha" in wrong.verdict.objection
    assert wrong.tests["separation"].value < 0.1 and "z = 0" in wrong.tests["separation"].reading
    assert right.tests["separation"].value > 0.9


def test_a_random_vector_is_no_better_than_chance(lens, captures):
    vector = class_difference(captures, STREAM)
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        random = torch.randn(len(vector), generator=generator, dtype=torch.float64)
        found = judged(lens, captures, random * vector.norm() / random.norm())
        assert found.verdict.label == "undetermined"
        assert found.verdict.code in ("chance", "small"), found.verdict.reasons


def test_without_z_it_is_added_alike_and_cannot_be_judged(lens, task):
    bare = Task("bare", *(PairSet("bare", s.split, tuple(replace(p, z=None) for p in s))
                          for s in (task.train, task.test)))  # fmt: skip
    captures = capture_task(lens, bare, [STREAM])
    vector = captures.train.difference(STREAM)[0].double()
    case = case_of(captures, vector, 0.5)
    torch.testing.assert_close(case.delta, (0.5 * vector).expand(case.delta.shape))
    record = sl.audit_addition(lens, captures, STREAM, vector, alpha=0.5, controls=True).record
    assert record.verdict.label == "undetermined"
    assert {n for n, t in record.tests.items() if t.value is None} >= {
        "natural", "beyond", "reach", "separation", "behaviour",
    }  # fmt: skip
    assert record.tests["natural_range"].value is not None and "mean" not in record.effects
    assert not record.controls.spikes and record.curve.classes is None


@pytest.mark.parametrize("site", [STREAM, UNITS], ids=str)
def test_planted_vectors_are_told_apart(captures, site):
    """What a channel writes between the classes, what a dormant and a sensor would."""
    chosen, _ = set_apart(captures, site)
    replay = captures.test.at(site).subset(chosen)
    setting = Setting(captures=captures, replay=replay, chosen=chosen)
    plans = [
        Plan(k=1, fldd=0.7, within=0.05, shared=0.5, drift=0.05, angle=45, mix=45, column=1.5,
             write=write)
        for write in ("gradient", "half", "classes", "half")
    ]  # fmt: skip
    said: dict[str, list] = {}
    for own, spikes in planted(setting, plans, seed=0):
        for spike in spikes:
            verdict, case = judge_blind(own, spike.vector)
            assert case.delta.abs().max() > 0
            said.setdefault(spike.kind, []).append((verdict.label, verdict.code))
    assert all(code == "small" for _, code in said["sensor"])
    assert not any(label in USED for label, _ in said["illusory"])
    assert not any(label == "illusory" for label, _ in said["faithful"])
    assert sum(label in USED for label, _ in said["faithful"]) >= 3
    if site == STREAM:
        # What the answer reacts to at these units is hardly more than one direction.
        assert sum(label == "illusory" for label, _ in said["illusory"]) >= 2


def test_a_dormant_is_never_faithful_at_any_dose(captures):
    """Nor beside an inert direction that moves with z as much as is added."""
    chosen, _ = set_apart(captures, STREAM)
    replay = captures.test.at(STREAM).subset(chosen)
    setting = Setting(captures=captures, replay=replay, chosen=chosen)
    plan = Plan(k=1, fldd=0.7, within=0.05, shared=0.5, drift=0.05, angle=45, mix=45, column=1.5,
                write="half")  # fmt: skip
    ((own, spikes),) = planted(setting, [plan], seed=0)
    vectors = {spike.kind: spike.vector for spike in spikes}
    for dose in (0.3, 1.0, 3.0):
        for vector in (vectors["illusory"], vectors["illusory"] + vectors["sensor"] / dose):
            verdict, _ = judge_blind(own, dose * vector)
            assert verdict.label not in USED


@pytest.mark.parametrize("site", [STREAM, UNITS], ids=str)
def test_the_parts_of_an_addition_by_hand(captures, site):
    """c is the least-squares amount of the class difference where the answer reacts; what nature
    and what is beyond it make are patches of their own."""
    difference = class_difference(captures, site)
    other = captures.train.at(site).gradients()[0].cpu().double()
    vector = 0.6 * difference - 0.3 * other * difference.norm() / other.norm()
    case = case_of(captures, vector, 1.5, site)
    acting, write = case.nature.acting, case.written
    seen, wanted = acting.T @ write(difference), acting.T @ write(1.5 * vector)
    amount = float(torch.linalg.lstsq(seen[:, None], wanted[:, None]).solution)
    assert case.nature.amount == pytest.approx(amount, rel=1e-6) and amount > 0.1
    natural = sl.patching.Add(difference, amount, case.sign)
    effect = case.replay.effect(natural)
    assert case.taken_apart["natural"] == pytest.approx(effect.drop, abs=1e-5)
    rest = case.replay.effect(sl.patching.Add(1.5 * vector - amount * difference, 1.0, case.sign))
    assert case.taken_apart["beyond"] == pytest.approx(rest.drop, abs=1e-5)
    assert case.share(case.taken_apart["along"]).value == pytest.approx(1, abs=0.3)
    matched = case.matched(torch.eye(len(vector), dtype=torch.float64)[:5])
    size = write(1.5 * vector).norm()
    torch.testing.assert_close(write(matched).norm(dim=1), size.expand(5))


def test_what_is_disconnected_of_a_vector_changes_nothing(lens, captures):
    """At units with a kernel: the same verdict with and without a long part that nobody reads."""
    difference = class_difference(captures, UNITS)
    vector = difference * 4
    split = case_of(captures, vector, 1.0, UNITS).setting.split
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(len(vector), 1, generator=generator, dtype=torch.float64)
    other = vector + 5 * difference.norm() * split.null(noise)[:, 0]
    one, two = (judged(lens, captures, each, 1.0, UNITS) for each in (vector, other))
    assert one.verdict.label == two.verdict.label
    for name in ("natural", "beyond", "reach", "natural_range", "separation"):
        assert two.tests[name].value == pytest.approx(one.tests[name].value, abs=1e-4), name


@pytest.fixture(scope="module")
def result(lens, captures):
    vector = class_difference(captures, STREAM)
    return sl.audit_addition(lens, captures, str(STREAM), vector, controls=True, command="here")


def test_a_record_comes_back_as_it_was(result, tmp_path):
    folder = result.save(tmp_path)
    assert sl.load_addition(folder / "addition.json") == result.record
    stored = torch.from_numpy(np.load(folder / "vector.npy"))
    torch.testing.assert_close(stored, result.vector)
    assert result.record.vector.sha256 == file_sha256(folder / "vector.npy")
    assert result.record.effect("unknown") == EffectRecord.absent()
    page = write_addition_page(tmp_path)
    assert page.name == "addition.html" and str(STREAM) in page.read_text()


def test_what_is_in_a_record(result, captures):
    record = result.record
    assert result.label == record.verdict.label and "FLDD" in repr(result)
    assert record.vector.cosine == pytest.approx(1) and record.vector.norm > 0
    assert set(record.tests) == set(TESTS)
    assert record.tests["unrelated_text"].value is None  # This model has no tokenizer.
    assert record.effects["mean"].nats.value == pytest.approx(record.effects["add"].nats.value)
    curve = record.curve
    at = curve.dose.index(1.0)
    assert curve.effect[at] == pytest.approx(record.effects["add"].nats.value, abs=1e-5)
    assert curve.classes[at] == pytest.approx(1, abs=1e-6)
    assert curve.effect[curve.dose.index(0.0)] == pytest.approx(0, abs=1e-5)
    assert curve.leaves > 1 and curve.effect_inside.value > curve.effect[at]
    assert sum(abs(reader.share) for reader in record.readers) <= 1 + 1e-9
    kinds = {row.kind for row in record.controls.spikes}
    assert kinds == {"faithful", "illusory", "mixed", "sensor"}
    judged_illusions = [row.label for row in record.controls.spikes if row.kind == "illusory"]
    assert not any(label in USED for label in judged_illusions)


def test_behaviour_is_the_slope_within_classes(captures):
    """By hand, on readings and answers less their class means."""
    case = case_of(captures, class_difference(captures, STREAM))
    t = case.along(case.replay.base.double()).numpy()
    towards, z = -case.sign.numpy() * case.clean, case.z[: len(t)]
    for value in (0, 1):
        t[z == value] -= t[z == value].mean()
        towards[z == value] -= towards[z == value].mean()
    slope = (t * towards).sum() / (t * t).sum() / case.drop.mean()
    test = behaviour(case)
    assert test.value is None or test.value == pytest.approx(slope, rel=1e-5)


def test_everywhere_is_the_addition_at_all_tokens(result, captures, lens):
    case = case_of(captures, class_difference(captures, STREAM))
    added = sl.patching.Add(case.vector, 1.0, case.sign)
    effect = sl.patch(lens, case.replay.pairs, "L2.resid_post@*", added)
    share = effect.drop.sum() / case.drop.sum()
    assert result.record.tests["everywhere"].value == pytest.approx(share, rel=1e-4)
    assert abs(share - 1) > 1e-4  # Earlier tokens are read too.


@pytest.mark.parametrize(
    ("keys", "to", "message"),
    [
        (("curve", "alpha"), [1.0], "as many of each"),
        (("tests", "chance"), {"value": 2.0, "reading": "p"}, "chance: a p-value"),
        (("verdict", "code"), "luck", "verdict.code"),
        (("vector", "norm"), -1.0, "vector.norm"),
        (("schema",), "subspacelens.addition/0", "schema"),
    ],
)
def test_numbers_that_no_audit_gives_are_refused(result, tmp_path, keys, to, message):
    data = json.loads(result.record.model_dump_json(by_alias=True))
    inner = data
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = to
    (tmp_path / "addition.json").write_text(json.dumps(data))
    with pytest.raises(ResultError, match=message):
        sl.load_addition(tmp_path / "addition.json")


def test_what_cannot_be_added_is_refused(lens, captures):
    width = lens.map.dim(STREAM)
    for vector, message in (
        (torch.ones(width + 1), "33 numbers|cannot be added"),
        (torch.zeros(width), "zero or not finite"),
        (torch.full((width,), torch.nan), "zero or not finite"),
    ):
        with pytest.raises(SubspaceError, match=message):
            sl.audit_addition(lens, captures, STREAM, vector)
    for options, message in (
        ({"alpha": 0.0}, "alpha 0"),
        ({"budget": "long"}, "unknown budget"),
        ({"tests": ["covariation"]}, "no test 'covariation'"),
    ):
        with pytest.raises(LensError, match=message):
            sl.audit_addition(lens, captures, STREAM, torch.ones(width), **options)
