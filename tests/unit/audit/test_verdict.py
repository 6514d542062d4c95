"""The rule of the verdict, case by case."""

from __future__ import annotations

import pytest

from subspacelens.audit.record import Axis
from subspacelens.audit.record import Test as Found
from subspacelens.audit.verdict import EXACT, OTHER, Evidence, decide
from subspacelens.core.records import Estimate

LARGE = Estimate(value=1.0, low=0.9, high=1.1)
LOW, HIGH, WIDE, HALF = (-0.1, 0.0, 0.2), (0.8, 0.9, 1.0), (0.1, 0.4, 0.9), (0.4, 0.5, 0.55)
USUAL = dict.fromkeys(("full_component", "row_effect", "covariation", "natural"), HIGH)
DEAF = {"acting": LOW, "natural": (0.3, 0.4, 0.45), "beyond": HALF, "comovement": LOW}
ILLUSION = {"natural": LOW, "beyond": HIGH, "acting": HALF, "comovement": LOW}
APART = {
    "natural": LOW, "beyond": HIGH, "acting": (0.0, 0.05, 0.1), "comovement": LOW,
}  # fmt: skip
"""Nothing of it is what nature does, nothing of what acts is read, and little of it is written."""


def found(bounds: tuple[float, float, float] | None, control: float | None = None) -> Found:
    if bounds is None:
        return Found(value=None, reading="void")
    return Found(value=bounds[1], low=bounds[0], high=bounds[2], control=control, reading="read")


def evidence(exact: bool, *, chance: tuple[float, float] = (0.02, 0.05), **changes) -> Evidence:
    usual = {
        "beyond": LOW,
        "read_source": LOW,
        "acting": HALF if exact else HIGH,
        "comovement": HIGH,
    }
    values = USUAL | usual | changes.pop("tests", {})
    tests = {name: found(bounds, 0.6) for name, bounds in values.items()}
    tests["chance"] = Found(value=chance[0], control=chance[1], reading="by chance")
    known = dict(effect=LARGE, fldd=LARGE, units=64)
    return Evidence(tests=tests, exact=exact, **(known | changes))


def axis(number: int, label: str, share: float = 0.5, dimensions: int = 1) -> Axis:
    estimate = Estimate(value=share, low=share - 0.05, high=share + 0.05)
    return Axis(number=number, dimensions=dimensions, share=estimate, label=label)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("tests", "label", "code"),
    [
        ({}, "faithful", "holds"),
        (dict.fromkeys(EXACT, LOW), "illusory", "fails"),
        ({"row_effect": LOW, "covariation": WIDE}, "illusory", "fails"),
        ({"row_effect": LOW, "covariation": None}, "undetermined", "void"),
        # A unit of which another takes most back, and of which little is known.
        (
            {"full_component": LOW, "row_effect": LOW, "covariation": (0.4, 0.9, 1.5)},
            "undetermined",
            "conflict",
        ),
        ({"full_component": LOW, "row_effect": WIDE, "covariation": WIDE}, "illusory", "fails"),
        # Another unit cancels the noise, or takes z back: what this one writes speaks for it.
        ({"covariation": LOW}, "undetermined", "conflict"),
        ({"full_component": LOW}, "undetermined", "conflict"),
        ({"row_effect": LOW}, "undetermined", "conflict"),
        *(({name: WIDE}, "undetermined", "unsure") for name in EXACT),
        *(({name: None}, "undetermined", "void") for name in EXACT),
        *(({"read_source": x}, "undetermined", "unsure") for x in (WIDE, HIGH)),
        ({"covariation": (0.4, 0.6, 0.8)}, "undetermined", "unsure"),
        # Units that write the same follow the reading together.
        ({"covariation": (3.9, 4.1, 4.3)}, "undetermined", "unsure"),
        # Most of the effect is read from what acts: then it need not be known what follows.
        ({"covariation": (3.9, 4.1, 4.3), "acting": HIGH}, "faithful", "holds"),
        ({"covariation": WIDE, "read_source": HIGH, "acting": HIGH}, "faithful", "holds"),
        ({"covariation": LOW, "acting": HIGH}, "undetermined", "conflict"),
        ({"covariation": None, "acting": HIGH}, "undetermined", "void"),
        ({"covariation": WIDE, "row_effect": LOW, "acting": HIGH}, "illusory", "fails"),
        # A sensor that writes what nobody reads keeps its effect without the kernel. A unit whose
        # noise or feature another takes back looks alike.
        ({"acting": LOW, "covariation": LOW, "read_source": LOW}, "undetermined", "conflict"),
        ({"acting": LOW}, "undetermined", "conflict"),
        ({"acting": LOW, "natural": LOW, "beyond": HIGH}, "undetermined", "conflict"),
        (APART, "illusory", "fails"),
        (APART | {"beyond": HALF}, "undetermined", "conflict"),
        # One of many units, which writes all that it reads: most of what acts lies in the others.
        (APART | {"comovement": HIGH}, "undetermined", "conflict"),
        (APART | {"comovement": WIDE}, "illusory", "fails"),
        ({"comovement": LOW}, "undetermined", "conflict"),
        # A dormant that varies without z, and a unit of which another takes most back.
        (APART | {"row_effect": LOW, "read_source": HIGH}, "undetermined", "conflict"),
        (APART | {"row_effect": HALF}, "undetermined", "conflict"),
        # A feature that is a small part of all that z changes.
        ({"acting": HIGH, "natural": HALF, "beyond": (0.1, 0.3, 0.45)}, "faithful", "holds"),
        ({"beyond": WIDE}, "undetermined", "unsure"),
        ({"natural": HALF, "beyond": HALF}, "mixed", "mixed"),
        ({"full_component": (2.5, 3.0, 4.0)}, "partial", "part"),
        ({"full_component": (1.8, 3.0, 4.0)}, "faithful", "holds"),
        (ILLUSION, "undetermined", "conflict"),
    ],
)
def test_the_rule_at_exact_sites(tests, label, code):
    verdict = decide(evidence(True, tests=tests))
    assert (verdict.label, verdict.code) == (label, code)
    assert verdict.reasons and verdict.assumptions and verdict.objection


@pytest.mark.parametrize(
    ("null", "control", "label"),
    [(0.5, 0.6, "faithful"), (0.58, 0.6, "undetermined"), (0.7, 0.6, "undetermined"),
     (0.1, 0.0, "undetermined"), (-0.05, 0.0, "faithful"), (0.9, 1.0, "faithful")],
)  # fmt: skip
def test_what_is_disconnected_senses_less_than_a_random_direction_would(null, control, label):
    given = evidence(True)
    ends = (null - 0.04, null, null + 0.04)
    given.tests["read_source"] = found(ends, control)  # type: ignore[index]
    assert decide(given).label == label


@pytest.mark.parametrize(
    ("tests", "label", "code"),
    [
        ({}, "faithful", "holds"),
        # What only a kernel senses: it may write what is natural there, but does not read it.
        ({"acting": LOW}, "undetermined", "conflict"),
        ({"acting": WIDE}, "undetermined", "unsure"),
        ({"acting": HALF}, "faithful", "holds"),
        ({"row_effect": LOW, "read_source": HIGH}, "faithful", "holds"),  # not asked for there
        # Nothing that acts follows the reading, where a matrix writes.
        ({"covariation": LOW}, "undetermined", "conflict"),
        ({"covariation": LOW, "acting": LOW}, "undetermined", "conflict"),
        ({"covariation": None, "acting": LOW}, "undetermined", "conflict"),
        ({"covariation": None}, "faithful", "holds"),
        # Next to nothing that acts is read, and less than half of it is natural.
        (DEAF | {"covariation": None}, "illusory", "fails"),
        (DEAF, "undetermined", "conflict"),
        (DEAF | {"covariation": None, "natural": HALF}, "mixed", "mixed"),
        (ILLUSION, "illusory", "fails"),
        # The whole does little: another unit may take back what this one writes, if it writes all.
        (ILLUSION | {"full_component": LOW}, "undetermined", "conflict"),
        (ILLUSION | {"full_component": WIDE}, "undetermined", "conflict"),
        (ILLUSION | {"full_component": LOW, "covariation": LOW}, "illusory", "fails"),
        (ILLUSION | {"full_component": LOW, "covariation": None}, "illusory", "fails"),
        (ILLUSION | {"acting": WIDE}, "undetermined", "conflict"),
        (ILLUSION | {"acting": WIDE, "covariation": None}, "undetermined", "unsure"),
        # Nature moves along what is written: a small part of all that acts.
        (ILLUSION | {"comovement": HIGH}, "undetermined", "conflict"),
        (ILLUSION | {"comovement": WIDE}, "illusory", "fails"),
        (DEAF | {"covariation": None, "comovement": HIGH}, "undetermined", "conflict"),
        ({"comovement": LOW}, "undetermined", "conflict"),
        # A small part of all that z changes: what acts is what varies.
        ({"natural": (0.25, 0.3, 0.35), "beyond": (0.35, 0.4, 0.45)}, "faithful", "holds"),
        ({"natural": (0.15, 0.3, 0.45), "beyond": (0.35, 0.4, 0.45)}, "undetermined", "unsure"),
        ({"natural": (0.25, 0.3, 0.35), "beyond": (0.4, 0.5, 0.6)}, "undetermined", "unsure"),
        ({"natural": (0.25, 0.3, 0.35), "beyond": (0.35, 0.4, 0.45), "acting": HALF},
         "undetermined", "unsure"),
        # What cancels: natural and beyond are both large, of opposite sign.
        ({"natural": (2.5, 3.0, 3.5), "beyond": (-2.5, -2.0, -1.5)}, "undetermined", "unsure"),
        ({"natural": LOW}, "undetermined", "conflict"),
        ({"beyond": HIGH}, "undetermined", "conflict"),
        ({"full_component": LOW}, "undetermined", "conflict"),
        ({"natural": HALF, "beyond": HALF}, "mixed", "mixed"),
        ({"natural": WIDE, "beyond": WIDE}, "undetermined", "unsure"),
        ({"full_component": (2.5, 3.0, 4.0)}, "partial", "part"),
        *(({name: None}, "undetermined", "void") for name in OTHER[:3]),
    ],
)  # fmt: skip
def test_the_rule_elsewhere(tests, label, code):
    verdict = decide(evidence(False, tests=tests))
    assert (verdict.label, verdict.code) == (label, code)
    assert verdict.reasons and verdict.assumptions and verdict.objection


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(
    ("changes", "code"),
    [
        (dict(chance=(0.06, 0.0)), "chance"),
        (dict(chance=(0.02, 0.25)), "chance"),
        (dict(whole=True), "whole"),
        (dict(axes=[axis(1, "faithful", 1.0), axis(2, "idle", 0.0, 3)]), "idle"),
    ],
)
def test_what_can_never_be_faithful(exact, changes, code):
    verdict = decide(evidence(exact, **changes))
    assert (verdict.label, verdict.code) == ("undetermined", code)
    partial = decide(evidence(exact, tests={"full_component": (2.5, 3.0, 4.0)}, **changes))
    assert (partial.label, partial.code) == ("undetermined", code)


def test_without_a_control_nothing_is_faithful():
    given = evidence(True)
    del given.tests["chance"]  # type: ignore[attr-defined]
    assert decide(given).code == "void"


@pytest.mark.parametrize("exact", [True, False])
def test_axes_of_which_nothing_is_known_leave_it_open(exact):
    known, unknown = (
        axis(1, "faithful", 1.0),
        Axis(number=2, dimensions=1, share=Estimate(value=0.0), label="unjudged"),
    )
    assert decide(evidence(exact, axes=[known, unknown])).code == "void"


def test_nothing_is_mixed_by_chance():
    halves = {"natural": HALF, "beyond": HALF}
    assert decide(evidence(False, tests=halves, chance=(0.5, 0.6))).code == "chance"
    apart = [axis(1, "faithful"), axis(2, "illusory")]
    illusory = dict.fromkeys(EXACT, LOW)
    for tests, label in (({}, "undetermined"), (illusory, "illusory")):
        assert decide(evidence(True, tests=tests, axes=apart, chance=(0.5, 0.6))).label == label


def test_chance_does_not_excuse_an_illusion():
    assert decide(evidence(False, tests=ILLUSION, chance=(0.9, 0.9))).label == "illusory"


@pytest.mark.parametrize("tests", [{}, dict.fromkeys(EXACT, LOW)])
def test_axes_that_disagree_are_mixed(tests):
    verdict = decide(evidence(True, tests=tests, axes=[axis(1, "faithful"), axis(2, "illusory")]))
    assert verdict.label == "mixed"
    assert verdict.reasons == [
        "axis 1 (50% of the effect) is faithful", "axis 2 (50% of the effect) is illusory",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "word", "code"),
    [
        (dict(units=15), "too few", "few"),
        (dict(effect=Estimate(value=0.1, low=-0.1, high=0.3)), "too small", "small"),
        (dict(effect=Estimate(value=-1.0, low=-1.1, high=-0.9),
              fldd=Estimate(value=-0.4, low=-0.5, high=-0.3)), "stronger", "small"),
        (dict(fldd=Estimate(value=0.14, low=0.12, high=0.16)), "too small", "small"),
        (dict(fldd=Estimate(value=None)), "nothing to explain", "task"),
        (dict(fldd=Estimate(value=None), clean=-1.5), "any patch, by 1.50 nats: there is", "task"),
        (dict(moved=Estimate(value=0.1, low=-0.1, high=0.3), unit="ranks"), "0.10 ranks", "small"),
        (dict(effect=Estimate(value=1.0)), "no interval", "few"),
        (dict(rank_too_low=True), "too low a rank", "void"),
    ],
)  # fmt: skip
def test_what_cannot_be_known_is_undetermined(changes, word, code):
    for tests in ({}, dict.fromkeys(EXACT, LOW)):
        verdict = decide(evidence(True, tests=tests, **changes))
        assert (verdict.label, verdict.code) == ("undetermined", code)
        assert word in verdict.reasons[0]


def test_a_model_that_prefers_the_target_is_no_small_effect():
    """FLDD and nats have opposite signs where the clean logit difference is negative."""
    for sign in (1, -1):
        effect, fldd = (Estimate(value=x, low=x - 0.1, high=x + 0.1) for x in (sign, -sign))
        verdict = decide(evidence(True, effect=effect, fldd=fldd))
        assert verdict.code == "task" and "prefers the target" in verdict.reasons[0]


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("value", [0.0, 0.9])
def test_a_condition_without_an_interval_is_unsure(exact, value):
    for name in EXACT if exact else ("full_component", "natural", "beyond"):
        given = evidence(exact)
        given.tests[name] = Found(value=value, reading="read")  # type: ignore[index]
        verdict = decide(given)
        assert (verdict.label, verdict.code) == ("undetermined", "unsure")
        assert any(f"({name} {value:.2f}, no interval)" in r for r in verdict.reasons)


@pytest.mark.parametrize("exact", [True, False])
def test_no_score_contradicts_a_label(exact):
    worst = {name: LOW for name in EXACT} | ILLUSION
    score = {}
    for tests in ({}, {"full_component": WIDE}, worst):
        verdict = decide(evidence(exact, tests=tests))
        score[verdict.label] = verdict.score
    assert 0 <= score["faithful"] <= 1 / 3 <= score["undetermined"] <= 2 / 3 <= score["illusory"]


def test_the_score_falls_with_every_share_that_is_left():
    def score(**tests) -> float:
        return decide(evidence(True, effect=Estimate(value=1.0), tests=tests)).score

    for name in ("full_component", "row_effect"):
        values = [score(**{name: (x, x, x)}) for x in (0.1, 0.2, 0.4, 0.5, 3.0)]
        assert values == sorted(values, reverse=True)
        assert len(set(values[:4])) == 4 and values[3] == values[4]
    reads = [score(acting=(x, x, x)) for x in (-0.2, 0.0, 0.3, 0.6, 1.4)]
    assert reads == sorted(reads, reverse=True) and reads[0] == reads[1] and len(set(reads)) == 4
