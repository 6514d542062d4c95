"""The rule of the verdict, the tests on planted units, and what budgets run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from helpers_models import tiny_model
from helpers_oracle import random_pairs
from subspacelens.audit import judge
from subspacelens.audit.audit import chosen_tests
from subspacelens.audit.decomposition import attribute_readers
from subspacelens.audit.evidence import TESTS
from subspacelens.audit.evidence.path import _frozen
from subspacelens.audit.verdict import EXACT, decide
from subspacelens.bench.planted import Units, planted
from subspacelens.capture import capture
from subspacelens.errors import LensError
from subspacelens.model import LensModel
from subspacelens.modelmap import build_map
from subspacelens.replay import Replay
from subspacelens.results import Estimate
from subspacelens.results import Test as Found
from subspacelens.site import Site
from subspacelens.subspace import made_by
from subspacelens.task_capture import TaskCapture, capture_task
from subspacelens.tasks import Task
from subspacelens.tasks.pairset import PairSet

SITE = Site(1, "mlp_act", "X")
LARGE = Estimate(value=1.0, low=0.9, high=1.1)


def shares(**values: tuple[float, float, float] | None) -> dict[str, Found]:
    def test(bounds) -> Found:
        if bounds is None:
            return Found(value=None, reading="void")
        return Found(value=bounds[1], low=bounds[0], high=bounds[2], reading="said")

    usual = dict.fromkeys(("full_component", "row_effect", "covariation", "support"), (0.8, 0.9, 1))
    return {name: test(bounds) for name, bounds in (usual | values).items()}


LOW, HIGH, WIDE = (-0.1, 0.0, 0.2), (0.5, 0.9, 1.2), (0.1, 0.4, 0.7)


@pytest.mark.parametrize(
    ("exact", "values", "label"),
    [
        (True, {}, "faithful"),
        *((True, {name: LOW}, "illusory") for name in EXACT),
        *((True, {name: WIDE}, "undetermined") for name in EXACT),
        *((True, {name: None}, "undetermined") for name in EXACT),
        (True, {"support": LOW}, "faithful"),
        (True, {"covariation": None, "row_effect": LOW}, "illusory"),
        (False, {}, "faithful"),
        (False, {"row_effect": LOW, "covariation": LOW}, "faithful"),
        (False, {"support": LOW}, "undetermined"),
        (False, {"support": LOW, "full_component": LOW}, "illusory"),
    ],
)
def test_the_rule(exact, values, label):
    verdict = decide(shares(**values), LARGE, LARGE, 64, exact=exact)
    assert verdict.label == label
    assert verdict.reasons and verdict.assumptions and verdict.objection


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        (dict(units=15), "too few"),
        (dict(effect=Estimate(value=0.1, low=-0.1, high=0.3)), "too small"),
        (dict(fldd=Estimate(value=0.09, low=0.08, high=0.1)), "too small"),
        (dict(fldd=Estimate(value=None)), "nothing to explain"),
        (dict(rank_too_low=True), "too low a rank"),
    ],
)
def test_what_cannot_be_known_is_undetermined(changes, word):
    arguments = dict(effect=LARGE, fldd=LARGE, units=64) | changes
    verdict = decide(shares(**{name: LOW for name in EXACT}), exact=True, **arguments)
    assert verdict.label == "undetermined" and word in verdict.reasons[0]


def test_the_score_falls_with_every_share_that_is_left():
    def score(**values) -> float:
        tests = shares(**values) | {"read_source": Found(value=0.0, reading="")}
        return decide(tests, LARGE, LARGE, 64, exact=True).score

    best = score(row_effect=(1, 1, 1), covariation=(1, 1, 1))
    assert best == 0 and score(row_effect=LOW) == 1
    assert score(full_component=(0.1, 0.2, 0.3)) > score(full_component=(2, 3, 4)) == score()
    for name in ("row_effect", "covariation"):
        values = [score(**{name: (x, x, x)}) for x in (0.2, 0.4, 0.6, 0.8)]
        assert values == sorted(values, reverse=True) and len(set(values)) == 4


@pytest.fixture(scope="module")
def lens() -> LensModel:
    model = tiny_model("llama", dtype=torch.float64)
    return LensModel(model, None, "llama", build_map(model))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def task() -> Task:
    def split(name: str, count: int, seed: int) -> PairSet:
        pairs = random_pairs([(9, 4)] * count, seed)
        return PairSet(
            "random", name, tuple(replace(p, z=(i % 2, 1 - i % 2)) for i, p in enumerate(pairs))
        )

    return Task("random", split("train", 60, 1), split("test", 20, 2))


@pytest.fixture(scope="module")
def units(lens) -> Units:
    """A faithful unit, a sensor, and one that never varies; what they write outweighs the rest."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    reads, writes = draw(3, lens.map.d_model), 30 * draw(lens.map.d_model, 3)
    reads[2], writes[:, 1] = 0, 0
    mixing, _ = torch.linalg.qr(draw(3, 3))
    return Units(reads, torch.zeros(3), writes, mixing, ("faithful", "sensor", "dormant"))


def judged(lens, task: Task, units: Units, weights: dict[int, float], **options):
    with planted(lens, 1, units) as wide:
        captures: TaskCapture = capture_task(wide, task, [SITE])
        basis = units.direction(weights, wide.map.dim(SITE))[:, None]
        subspace = made_by(wide, SITE, basis, task.train.sha256, {"method": "planted"})
        return judge(wide, captures, subspace, **options)


def test_what_a_used_unit_writes_follows_what_it_reads(lens, task, units):
    tests = judged(lens, task, units, {0: 1.0}, budget="fast").tests
    assert tests["covariation"].value == pytest.approx(1, abs=0.1)
    assert tests["covariation"].low <= tests["covariation"].value <= tests["covariation"].high
    assert tests["row_effect"].value == pytest.approx(1, abs=0.1)
    assert tests["read_source"].value == pytest.approx(0, abs=0.1)


def test_what_a_sensor_reads_is_not_followed(lens, task, units):
    tests = judged(lens, task, units, {1: 0.5**0.5, 2: 0.5**0.5}, budget="fast").tests
    assert tests["covariation"].value == pytest.approx(0, abs=0.1)
    assert tests["row_effect"].value == pytest.approx(0, abs=0.1)
    assert tests["read_source"].value == pytest.approx(1, abs=0.1)
    assert float(tests["null_effect"].value) < 1e-6


def test_a_sensor_alone_has_nothing_to_judge(lens, task, units):
    found = judged(lens, task, units, {1: 1.0}, budget="fast")
    assert found.tests["covariation"].value is None
    assert found.verdict.label == "undetermined"


def test_all_tests_say_something(lens, task, units):
    found = judged(lens, task, units, {0: 1.0})
    assert set(found.tests) == set(TESTS) - {"stability"}
    assert all(test.reading for test in found.tests.values())
    assert found.tests["chance"].value <= 0.1
    assert found.tests["natural_range"].value > 0.5
    assert 0 < found.tests["gradient_agreement"].value <= 1
    assert found.tests["selectivity"].value > 0
    assert "_proj" in found.tests["path"].reading
    assert found.tests["generalisation"].value is None
    assert set(found.effects) >= {"random", "reversed"}


def test_budgets_and_names():
    fast, standard, full = (chosen_tests(budget) for budget in ("fast", "standard", "full"))
    assert set(fast) < set(standard) < set(full) == set(TESTS)
    assert set(chosen_tests("standard", ["chance"])) == {
        "chance", "full_component", "row_effect", "covariation", "support", "read_source",
    }  # fmt: skip
    with pytest.raises(LensError, match="unknown budget 'long'"):
        chosen_tests("long")
    with pytest.raises(LensError, match="unknown test 'luck'"):
        chosen_tests("fast", ["luck"])


def test_after_the_last_block_nobody_reads(lens):
    site = Site(3, "mlp_act", "END")
    captured = capture(lens, random_pairs([(9, 4)] * 4), [site])
    assert attribute_readers(lens, Replay(lens, captured, site), captured.difference(site)) == ()


def test_frozen_readers_hide_what_only_they_read(lens):
    """With every reader of every later block frozen, nothing but the direct path is left; with
    none, everything is."""
    captured = capture(lens, random_pairs([(9, 4)] * 4), [SITE])
    replay = Replay(lens, captured, SITE)
    delta = captured.difference(SITE)
    readers = list(attribute_readers(lens, replay, delta))
    clean = captured.clean.logit_diff
    patched = replay.outcomes(delta).logit_diff
    # X is not the last column: what is written there reaches the answer through attention alone.
    torch.testing.assert_close(_frozen(replay, readers, delta), clean)
    torch.testing.assert_close(_frozen(replay, [], delta), patched)
    some = _frozen(replay, readers[:1], delta)
    assert float((some - clean).norm()) > 1e-6 < float((some - patched).norm())
