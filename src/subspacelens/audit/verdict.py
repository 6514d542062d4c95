"""From evidence to a verdict: a short rule that a reader can check by hand.

A faithful subspace meets conditions that an illusory one must fail somewhere. Each is a share: what
is left of the effect when the whole component is patched, when only the connected part is, what
nature writes when it moves the reading, what is left of the write where activations vary. Where the
split is exact, one condition that fails clearly (upper end of its interval below a third) is enough
for *illusory*, and *faithful* needs all of them to hold clearly (lower end above a third, and no
value beyond `MOST`). At other sites the two conditions that exist must agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, prod
from typing import NamedTuple

from ..core.format import interval, plain
from ..core.records import Estimate
from .record import Test, Verdict, VerdictName

EXACT = ("full_component", "row_effect", "covariation")
OTHER = ("full_component", "support")
CONDITIONS = (*EXACT, "read_source", "support")
THRESHOLD = 1 / 3
MOST = {"covariation": 2.0}
"""A condition may also hold too much: where nature writes twice what the patch does when it moves
the reading, something else that follows the reading writes most of it."""
ENOUGH = 1 / 2
SMALLEST_FLDD = 0.15
SMALLEST_UNITS = 16


class Reasoning(NamedTuple):
    verdict: VerdictName
    reasons: list[str]
    objection: str


@dataclass(frozen=True)
class Condition:
    """A share that a faithful subspace must have; without an interval it may be anything."""

    name: str
    value: float
    low: float
    high: float
    reading: str

    @classmethod
    def of(cls, name: str, test: Test | None) -> Condition | None:
        """None where the test was not run or is void."""
        if test is None or test.value is None:
            return None
        low = -inf if test.low is None else test.low
        high = inf if test.high is None else test.high
        return cls(name, test.value, low, high, test.reading)

    @property
    def fails(self) -> bool:
        return self.high < THRESHOLD

    @property
    def beyond(self) -> bool:
        return self.value >= MOST.get(self.name, inf)

    @property
    def holds(self) -> bool:
        return self.low > THRESHOLD and not self.beyond

    @property
    def reason(self) -> str:
        known = self.low > -inf and self.high < inf
        ends = f" [{self.low:.2f}, {self.high:.2f}]" if known else ", no interval"
        return f"{self.reading} ({self.name} {self.value:.2f}{ends})"


def decide(
    tests: dict[str, Test],
    effect: Estimate,
    fldd: Estimate,
    units: int,
    *,
    exact: bool,
    rank_too_low: bool = False,
) -> Verdict:
    """The verdict on one subspace.

    `effect` (nats) and `fldd` are the subspace patch's, `units` the number of distinct base
    prompts in the smaller split; `exact` says that the row/null split is by construction.
    `rank_too_low`: what is read downstream has at most one dimension more than the subspace, so
    that every direction which is read at all acts alike and none can be told from another.

    `score`, from 0 (faithful) to 1 (illusory), is 1 less the product of what is left: see `_left`.
    It ranks subspaces and decides nothing: a faithful one of which most is sensed by the
    disconnected part has a high score.
    """
    reasoning = _nothing_to_judge(effect, fldd, units, rank_too_low) or _weighed(tests, exact)
    return Verdict(
        label=reasoning.verdict,
        score=1 - _left(tests, exact),
        reasons=reasoning.reasons,
        assumptions=[
            "The component's border is meaningful: its neighbours could carry the feature too.",
            "The row/null split is exact: what the site writes passes through one linear map."
            if exact
            else "At this site nothing is disconnected by construction: the row/null split stands "
            "for a few readers only and decides nothing.",
            "The natural support is estimated from few prompts of one task; a rare but real "
            "feature can look dormant.",
        ],
        objection=reasoning.objection,
    )


def _nothing_to_judge(
    effect: Estimate, fldd: Estimate, units: int, rank_too_low: bool
) -> Reasoning | None:
    """Why the conditions would say nothing; None where they do."""

    def undetermined(reason: str, objection: str) -> Reasoning:
        return Reasoning("undetermined", [reason], objection)

    if units < SMALLEST_UNITS:
        return undetermined(
            f"{units} distinct base prompts, to fit or to judge on, are too few: "
            f"{SMALLEST_UNITS} at least",
            "More pairs could settle it.",
        )
    if effect.value is None or fldd.value is None:
        return undetermined(
            "the model has no logit difference on these pairs, so there is nothing to explain",
            "Another metric, or pairs on which the model does the task, could settle it.",
        )
    if effect.value * fldd.value < 0:
        return undetermined(
            "the model prefers the target to the answer on these pairs, before any patch: there is "
            f"no preference to explain ({effect.value:.2f} nats are FLDD {fldd.value:.2f})",
            "Pairs on which the model does the task could settle it.",
        )
    if effect.low is None or effect.high is None:
        return undetermined(
            f"how sure the effect is cannot be told: {effect.value:.2f} nats, no interval",
            "More pairs could settle it.",
        )
    size = f"{plain(effect.value)} nats {interval(effect, plain)}"
    if effect.high < 0:
        return undetermined(
            f"the patch makes the answer stronger: {size}",
            "What is to be explained is an effect towards the source's answer.",
        )
    if effect.low <= 0 or fldd.value < SMALLEST_FLDD:
        return undetermined(
            f"the effect is too small to explain: FLDD {fldd.value:.2f}, {size}",
            "A subspace without effect is neither faithful nor an illusion of one.",
        )
    if rank_too_low:
        return undetermined(
            "what is read downstream has too low a rank for the row/null split: whatever is "
            "read acts like every other direction that is",
            "A faithful direction and an illusory one do exactly the same here.",
        )
    return None


def _weighed(tests: dict[str, Test], exact: bool) -> Reasoning:
    needed = EXACT if exact else OTHER
    conditions = [c for name in needed if (c := Condition.of(name, tests.get(name)))]
    failing = [condition for condition in conditions if condition.fails]
    holding = [condition for condition in conditions if condition.holds]
    if failing and (exact or len(failing) == len(needed)):
        failing.sort(key=lambda condition: condition.value)
        return Reasoning(
            "illusory",
            [condition.reason for condition in failing],
            "Null components alone are no proof of an illusion: natural data need not be "
            "orthogonal to the kernel (Wu et al. 2024), and a part that seems dormant on these "
            "prompts may be used on others."
            + "".join(f" Against it: {condition.reading}." for condition in holding),
        )
    if len(holding) == len(needed):
        return Reasoning(
            "faithful",
            [condition.reason for condition in holding],
            "A dormant channel that writes the same as a faithful one, and reads what follows z "
            "with the very same error, cannot be told from it by one site and natural activations.",
        )
    void = [
        f"{name}: {tests[name].reading}"
        for name in needed
        if name in tests and tests[name].value is None
    ]
    unsure = [condition.reason for condition in conditions if not condition.holds]
    beyond = [
        f"{condition.name} is beyond {MOST[condition.name]:g}: something else that follows the "
        "reading writes most of it"
        for condition in conditions
        if condition.beyond
    ]
    return Reasoning(
        "undetermined",
        void + unsure + beyond,
        "The conditions contradict each other, their intervals are too wide, or one could not be "
        "tested; more pairs, or a site where the split is not void, could settle it.",
    )


def _left(tests: dict[str, Test], exact: bool) -> float:
    """Product of what is left of the effect, each condition cut to [0, 1], 1/2 where it is void. A
    condition counts in units of `ENOUGH`: that it holds even better says nothing. What the
    connected part reads counts as it is, and tells mixtures apart."""

    def share(name: str, unit: float) -> float:
        value = tests[name].value if name in tests else None
        return 0.5 if value is None else min(1.0, max(0.0, value / unit))

    left = prod(share(name, ENOUGH) for name in (EXACT if exact else OTHER))
    return left * (1 - share("read_source", 1.0)) if exact else left
