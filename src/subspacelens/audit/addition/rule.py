"""From evidence to a verdict on an addition.

*Faithful*: it writes what nature writes when z changes, no further than nature goes, and better
than a random vector that writes as much. *Illusory*: it works through where nature does not move
with z: what nature would have written does little of it, what is beyond nature does most, and
nature does not go there. A dose beyond nature is *undetermined*, code `dose`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import inf, prod

from ..record import Test, Verdict, VerdictCode, VerdictName
from ..verdict import (
    BANDS,
    CHANCE,
    CRITERIA,
    MIXED,
    OBJECTIONS,
    PART,
    Criterion,
    Evidence,
    Range,
    can_be_judged,
)
from ..verdict import decide as decide_subspace

RULE = {
    "full_component": CRITERIA["full_component"],
    "natural": CRITERIA["natural"],
    "beyond": CRITERIA["beyond"],
    "reach": Criterion(Range(-inf, 1 / 3), Range(1 / 2, inf)),
    "natural_range": Criterion(Range(-inf, 1 / 2), Range(1 / 2, inf)),
}
FAITHFUL = ("full_component", "natural", "beyond", "natural_range")
ILLUSORY = ("natural", "beyond", "reach")

ASSUMPTIONS = (
    "What is natural is told by the difference of the class means and by where the answer's "
    "gradient points; a feature that is a small part of all that z changes looks unnatural.",
    "What is natural is estimated from few prompts of one task; a rare but real feature can look "
    "dormant.",
    "It speaks of one token column of these prompts: the same vector at all tokens, or in other "
    "text, may do something else.",
)
OWN_OBJECTIONS = {
    "faithful": "A direction that every reader takes for the natural one passes for it here; and "
    "what it does elsewhere is not judged.",
    "illusory": "The effect is real. That nature does not move there when z changes is told from "
    "these prompts; it may on others, or for another reason than z.",
    "dose": "At a smaller dose the same vector may be faithful: judge that one.",
    "void": "Pairs with z, or a site at which the gradients say what acts, could settle it.",
    "conflict": "Nature goes along it as far as is added, but little of that acts as what z "
    "changes does: a small part of the feature and a mixture look the same here.",
    "turned": "The opposite vector does what is to be explained: try a negative --alpha.",
}


def told(name: str, test: Test | None) -> str:
    """`holds`, `fails`, `unsure`, or `void` where the test was not run or has no value."""
    if test is None or test.value is None:
        return "void"
    low = -inf if test.low is None else test.low
    high = inf if test.high is None else test.high
    fails, holds = RULE[name]
    if fails.holds(low, high):
        return "fails"
    return "holds" if holds.holds(low, high) else "unsure"


def decide(evidence: Evidence, alpha: float, leaves: float | None) -> Verdict:
    """The verdict on an addition; `evidence.tests` are those of an addition, run when they are
    asked for. `leaves`: the largest α that stays inside nature, None where no dose leaves it."""
    if not can_be_judged(evidence):
        return _nothing(decide_subspace(evidence))
    tests = evidence.tests
    chance = tests["chance"]
    if chance.value is None or chance.value > CHANCE:
        return _verdict("undetermined", "chance", [chance.reading], OBJECTIONS["chance"], tests)
    found = {name: told(name, tests[name]) for name in RULE}
    if all(found[name] == "fails" for name in ILLUSORY):
        reasons = _reasons(ILLUSORY, tests)
        return _verdict("illusory", "fails", reasons, OWN_OBJECTIONS["illusory"], tests)
    if found["natural_range"] == "fails":
        known = (name for name in RULE if name != "natural_range")
        reasons = [beyond_nature(alpha, leaves, tests["natural_range"]), *_reasons(known, tests)]
        return _verdict("undetermined", "dose", reasons, OWN_OBJECTIONS["dose"], tests)
    void = [name for name in RULE if found[name] == "void"]
    if void:
        reasons = [f"{name}: {tests[name].reading}" for name in void] + _reasons(RULE, tests)
        return _verdict("undetermined", "void", reasons, OWN_OBJECTIONS["void"], tests)
    reasons = _reasons(RULE, tests)
    if all(found[name] == "holds" for name in FAITHFUL):
        low = tests["full_component"].low
        if low is not None and low > PART:
            return _verdict("partial", "part", reasons, OWN_OBJECTIONS["faithful"], tests)
        return _verdict("faithful", "holds", reasons, OWN_OBJECTIONS["faithful"], tests)
    halves = (tests["natural"].low, tests["beyond"].low)
    if all(low is not None and low > MIXED for low in halves) and found["beyond"] != "fails":
        return _verdict("mixed", "mixed", reasons, OBJECTIONS["mixed"], tests)
    if found["natural"] == found["beyond"] == "fails" and found["reach"] == "holds":
        return _verdict("undetermined", "conflict", reasons, OWN_OBJECTIONS["conflict"], tests)
    return _verdict("undetermined", "unsure", reasons, OBJECTIONS["unsure"], tests)


def _nothing(verdict: Verdict) -> Verdict:
    """What is said where there is nothing to judge, in words of an addition."""
    stronger = verdict.code == "small" and "stronger" in verdict.reasons[0]
    objection = OWN_OBJECTIONS["turned"] if stronger else verdict.objection
    if verdict.code == "small" and not stronger:
        objection = "A vector without effect is neither faithful nor an illusion of one."
    return verdict.model_copy(update={"assumptions": [*ASSUMPTIONS], "objection": objection})


def beyond_nature(alpha: float, leaves: float | None, test: Test) -> str:
    """That a dose is beyond nature, by the test `natural_range`, and which one is not."""
    value, low, high = test.value or 0.0, test.low or 0.0, test.high or 0.0
    inside = "no dose stays" if not leaves else f"up to alpha {leaves:.3g} they stay"
    return (
        f"the dose is beyond nature: at alpha {alpha:g}, {value:.0%} of the readings along what is "
        f"written lie no further than natural ones (natural_range {value:.2f} [{low:.2f}, "
        f"{high:.2f}]); {inside} inside"
    )


def _reasons(names: Iterable[str], tests: Mapping[str, Test]) -> list[str]:
    lines = []
    for name in names:
        test = tests[name]
        if test.value is not None:
            interval = (
                ", no interval"
                if test.low is None or test.high is None
                else f" [{test.low:.2f}, {test.high:.2f}]"
            )
            lines.append(f"{test.reading} ({name} {test.value:.2f}{interval})")
    return lines


def _verdict(
    label: VerdictName,
    code: VerdictCode,
    reasons: Sequence[str],
    objection: str,
    tests: Mapping[str, Test],
) -> Verdict:
    return Verdict(
        label=label,
        code=code,
        score=(BANDS[label] + 1 - _left(tests)) / 3,
        reasons=[*reasons],
        assumptions=[*ASSUMPTIONS],
        objection=objection,
    )


def _left(tests: Mapping[str, Test]) -> float:
    """Product of what is left of the effect, each share cut to [0, 1], 1/2 where it is void."""

    def share(name: str) -> float:
        value = tests[name].value
        return 0.5 if value is None else min(1.0, max(0.0, value))

    return prod((share("natural"), 1 - share("beyond"), share("natural_range")))
