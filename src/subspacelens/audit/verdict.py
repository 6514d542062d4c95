"""From evidence to a verdict: a short rule that a reader can check by hand.

Each condition is a share that a faithful subspace has and an illusory one lacks. It *fails* or
*holds* where its whole interval lies in the range that `CRITERIA` gives, and else says nothing.

Everywhere the effect is taken apart. *Illusory*, unless nature moves along what is written: what
nature would have written does little of the effect, what is beyond nature does most, and less than
most is left where only what acts is read, unless the whole component does little and all that is
read is written; or little is left there, and less than half is natural.
*Faithful*, unless nature does not move along what is written: what nature would have written does
most of it, the rest little, and a quarter is left where only what acts is read; or most is left
there, and less than half is beyond nature.

Where the site writes by one linear map that has a kernel, what lies in it is disconnected by
construction. *Illusory* is what fails a condition there, where neither the connected part alone nor
what nature writes speaks for the subspace, and less is written than is read; or what keeps its
effect without the kernel, but fails when taken apart, and next to nothing is left where only what
acts is read. *Faithful* must keep its effect without the kernel, and most of it must be left where
only what acts is read; or little of it is beyond nature, and what acts follows the reading, which
senses no more by the kernel than chance would; or half of it is left there.

*Partial* is a faithful subspace that does a small share of what the whole component does, *mixed*
one whose axes, or whose halves, are of both kinds. Nothing is faithful that does no more than
chance, is the whole component, or has dimensions that do nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

from ..core.format import counted
from ..core.records import Estimate
from .record import Axis, Test, Told, Verdict, VerdictCode, VerdictName


class Range(NamedTuple):
    """An open interval."""

    low: float
    high: float

    def holds(self, low: float, high: float) -> bool:
        """Whether [low, high] lies in it."""
        return (low > self.low or self.low == -inf) and (high < self.high or self.high == inf)


class Criterion(NamedTuple):
    """Where a condition fails and where it holds. The two may overlap: an illusion leaves less than
    most, a faithful subspace more than little."""

    fails: Range
    holds: Range


CRITERIA = {
    "full_component": Criterion(Range(-inf, 1 / 3), Range(1 / 2, inf)),
    "row_effect": Criterion(Range(-inf, 1 / 3), Range(1 / 2, inf)),
    "covariation": Criterion(Range(-inf, 1 / 3), Range(1 / 2, 2)),
    "read_source": Criterion(Range(inf, inf), Range(-inf, 1)),
    "natural": Criterion(Range(-inf, 1 / 3), Range(1 / 2, 2)),
    "beyond": Criterion(Range(2 / 3, inf), Range(-1 / 3, 1 / 3)),
    "acting": Criterion(Range(-inf, 2 / 3), Range(1 / 4, inf)),
    "comovement": Criterion(Range(-inf, 1 / 3), Range(1 / 2, inf)),
}
LITTLE = Range(-inf, 1 / 4)
"""`acting` of what reads little that acts."""
BEHIND = Range(-inf, 1)
"""`covariation` of what is written less than it is read: a unit that is used writes all of it."""
NOTHING = Range(-inf, 1 / 8)
"""`acting` of what reads next to nothing that acts, by which an exact site's parts condemn."""
DEAF = {"acting": LITTLE, "natural": Range(-inf, 1 / 2), "beyond": Range(1 / 3, inf)}
"""An illusion too, where the split is not exact and `covariation` does not hold."""
HALF = Range(1 / 2, inf)
"""`acting` of a subspace at an exact site where it need not be known what follows the reading."""
MOST = Range(2 / 3, inf)
"""`acting` of a subspace that may lack a part of `natural` and `beyond`."""
EXACT = ("full_component", "row_effect", "covariation")
OTHER = ("full_component", "natural", "beyond", "acting", "comovement")
NEEDED = (*EXACT, "read_source", *OTHER[1:])
"""What must be known at an exact site; elsewhere `OTHER` must."""
PART = 2.0
"""A subspace does *part of it* where the whole component does more than this many times as much."""
TRACE = 1 / 5
"""Where only what acts is read and most of the effect is left, this much of it must be natural."""
MIXED = 1 / 3
"""Mixed: at least this share of the effect is natural, and as much is beyond nature."""
CHANCE = 0.05
NATURAL_CHANCE = 0.2
SMALLEST_FLDD = 0.15
SMALLEST_UNITS = 16
BANDS: dict[VerdictName, int] = {
    "faithful": 0, "partial": 0, "mixed": 1, "undetermined": 1, "illusory": 2,
}  # fmt: skip

OBJECTIONS = {
    "illusory": "Null components alone are no proof of an illusion: natural data need not be "
    "orthogonal to the kernel (Wu et al. 2024), and a part that seems dormant on these prompts "
    "may be used on others.",
    "faithful": "A dormant channel that writes the same as a faithful one, and reads what "
    "follows z with the very same error, cannot be told from it by one site and natural "
    "activations.",
    "conflict": "The conditions contradict each other: other units may cancel what this one "
    "writes, or follow it. A site where these are not part of the component could settle it.",
    "unsure": "The intervals are too wide, or the shares lie between the two cases; more pairs "
    "could settle it.",
    "void": "A condition could not be tested; a site where the split is not void, or pairs with z, "
    "could settle it.",
    "mixed": "The parts were told apart by this site's own activations; a finer split could turn "
    "out otherwise.",
    "chance": "What a random subspace does as well says nothing about this one.",
    "idle": "A smaller subspace without these dimensions could be faithful: audit that one.",
    "whole": "The whole component says that the feature is somewhere in it, not where.",
}


def asked_at(exact: bool) -> tuple[str, ...]:
    """The tests that the rule asks for at a site: elsewhere than at exact ones `covariation` too,
    where the site has a linear writer."""
    return NEEDED if exact else (*OTHER, "covariation")


class Reasoning(NamedTuple):
    verdict: VerdictName
    code: VerdictCode
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
    control: float = 0.0

    @classmethod
    def of(cls, name: str, test: Test | None) -> Condition | None:
        """None where the test was not run or is void."""
        if test is None or test.value is None:
            return None
        low = -inf if test.low is None else test.low
        high = inf if test.high is None else test.high
        return cls(name, test.value, low, high, test.reading, test.control or 0.0)

    @property
    def fails(self) -> bool:
        return self.within(CRITERIA[self.name].fails)

    @property
    def holds(self) -> bool:
        return self.within(CRITERIA[self.name].holds)

    def within(self, cut: Range) -> bool:
        return cut.holds(*self._ends)

    @property
    def _ends(self) -> tuple[float, float]:
        """The interval; of `read_source`, in units of what the control has."""
        unit = max(1e-9, self.control) if self.name == "read_source" else 1.0
        return self.low / unit, self.high / unit

    @property
    def reason(self) -> str:
        known = self.low > -inf and self.high < inf
        interval = f" [{self.low:.2f}, {self.high:.2f}]" if known else ", no interval"
        return f"{self.reading} ({self.name} {self.value:.2f}{interval})"


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a verdict rests on.

    `effect` (nats) and `fldd` are the subspace patch's, `moved` by how much it moves another metric
    towards the source's answer, in `unit`, None where there is none, `clean` the mean logit
    difference without a patch, in nats; `units` the number of units
    (`PairSet.units_at`) in the smaller split; `exact` says that the row/null split is by
    construction, `axes` what each axis of a subspace of several dimensions does, `whole` that the
    subspace is all of its component. `leaking` pairs to judge on share their tokens up to the label
    with pairs to fit on. `rank_too_low`: what is read downstream has at most one dimension more
    than the subspace, so that every direction which is read at all acts alike.
    """

    tests: Mapping[str, Test]
    effect: Estimate
    fldd: Estimate
    moved: Estimate | None = None
    unit: str = "nats"
    clean: float = 0.0
    units: int
    exact: bool
    axes: Sequence[Axis] = ()
    whole: bool = False
    leaking: int = 0
    rank_too_low: bool = False


def can_be_judged(evidence: Evidence) -> bool:
    """Whether the conditions decide, and not what comes before them."""
    return _nothing_to_judge(evidence) is None


def decide(evidence: Evidence) -> Verdict:
    """The verdict on one subspace.

    `score`, from 0 (faithful) to 1 (illusory), ranks subspaces and decides nothing: a third of the
    scale for each kind of label, and within it 1 less the product of what is left (`_left`).
    """
    label, code, reasons, objection = _reasoning(evidence)
    return Verdict(
        label=label,
        code=code,
        score=(BANDS[label] + 1 - _left(evidence)) / 3,
        reasons=reasons,
        assumptions=[
            "The component's border is meaningful: its neighbours could carry the feature too.",
            "The row/null split is exact: what the site writes passes through one linear map."
            if evidence.exact
            else "At this site nothing is disconnected by construction: what nature would have "
            "written is told by class means and by where the answer's gradient points.",
            "What is natural is estimated from few prompts of one task; a rare but real feature "
            "can look dormant.",
        ],
        objection=objection,
    )


def _reasoning(evidence: Evidence) -> Reasoning:
    nothing = _nothing_to_judge(evidence)
    if nothing is not None:
        return nothing
    weighed = _weighed(evidence.tests, evidence.exact)
    mixed = _mixed(evidence.axes)
    if mixed is not None and _by_chance(evidence) is None:
        return mixed
    if weighed.verdict in ("faithful", "partial"):
        return _idle(evidence.axes) or _by_chance(evidence) or weighed
    if weighed.verdict == "mixed":
        return _by_chance(evidence) or weighed
    return weighed


def _undetermined(code: VerdictCode, reason: str, objection: str) -> Reasoning:
    return Reasoning("undetermined", code, [reason], objection)


def _nothing_to_judge(evidence: Evidence) -> Reasoning | None:
    """Why the conditions would say nothing; None where they do."""
    effect, fldd = evidence.effect, evidence.fldd
    if evidence.units < SMALLEST_UNITS:
        return _undetermined(
            "few",
            f"{evidence.units} distinct prompts up to the label, to fit or to judge on, are too "
            f"few: {SMALLEST_UNITS} at least",
            "More pairs could settle it.",
        )
    if evidence.leaking:
        return _undetermined(
            "leak",
            f"{counted(evidence.leaking, 'pair')} to judge on and pairs to fit on share their "
            "tokens up to the label, or a group, so that what is there is known from these; too "
            "few are left without them",
            "A label further on, or splits that share no beginning, could settle it.",
        )
    if effect.value is None or fldd.value is None:
        return _undetermined(
            "task",
            _no_preference(evidence.clean),
            "Another metric, or pairs on which the model does the task, could settle it.",
        )
    if effect.value * fldd.value < 0:
        return _undetermined(
            "task",
            "the model prefers the target to the answer on these pairs, before any patch: there is "
            f"no preference to explain ({effect.value:.2f} nats are FLDD {fldd.value:.2f})",
            "Pairs on which the model does the task could settle it.",
        )
    effect, unit = evidence.moved or effect, f" {evidence.unit}" if evidence.unit else ""
    if effect.value is None or effect.low is None or effect.high is None:
        return _undetermined(
            "few",
            f"how sure the effect is cannot be told: {effect.value or 0:.2f}{unit}, no interval",
            "More pairs could settle it.",
        )
    interval = f"{effect.value:.2f}{unit} [{effect.low:.2f}, {effect.high:.2f}]"
    if effect.high < 0:
        return _undetermined(
            "small",
            f"the patch makes the answer stronger: {interval}",
            "What is to be explained is an effect towards the source's answer.",
        )
    if effect.low <= 0 or fldd.value < SMALLEST_FLDD:
        return _undetermined(
            "small",
            f"the effect is too small to explain: FLDD {fldd.value:.2f}, {interval}",
            "A subspace without effect is neither faithful nor an illusion of one.",
        )
    if evidence.whole:
        return _undetermined(
            "whole",
            "the subspace is the whole component: patching it is patching everything there",
            OBJECTIONS["whole"],
        )
    if evidence.rank_too_low:
        return _undetermined(
            "void",
            "what is read downstream has too low a rank for the row/null split: whatever is "
            "read acts like every other direction that is",
            "A faithful direction and an illusory one do exactly the same here.",
        )
    return None


def _no_preference(clean: float) -> str:
    if clean < 0:
        return (
            "the model prefers the target to the answer on these pairs, before any patch, by "
            f"{-clean:.2f} nats: there is no preference for the answer to explain"
        )
    return "the model has no logit difference on these pairs, so there is nothing to explain"


def _idle(axes: Sequence[Axis]) -> Reasoning | None:
    """That some dimensions do nothing, or that it is not known whether they do."""
    if any(axis.share.low is None for axis in axes):
        return _undetermined("void", "what its axes do is not known", OBJECTIONS["void"])
    idle = [axis for axis in axes if axis.label == "idle"]
    if idle:
        count = sum(axis.dimensions for axis in axes)
        return _undetermined(
            "idle",
            f"{sum(axis.dimensions for axis in idle)} of {count} dimensions do nothing",
            OBJECTIONS["idle"],
        )
    return None


def _by_chance(evidence: Evidence) -> Reasoning | None:
    """That random subspaces do as much, or that it is not known whether they do."""
    chance = evidence.tests.get("chance")
    if chance is None or chance.value is None:
        return _undetermined(
            "void", "whether random subspaces do as much is not known", OBJECTIONS["void"]
        )
    if chance.value > CHANCE or (chance.control or 0) > NATURAL_CHANCE:
        return _undetermined("chance", chance.reading, OBJECTIONS["chance"])
    return None


def _mixed(axes: Sequence[Axis]) -> Reasoning | None:
    """Axes that disagree."""
    kinds = {kind: [a for a in axes if a.label == kind] for kind in ("faithful", "illusory")}
    if not all(kinds.values()):
        return None
    return Reasoning(
        "mixed",
        "mixed",
        [
            f"{', '.join(f'axis {axis.number}' for axis in chosen)} "
            f"({sum(axis.share.value or 0 for axis in chosen):.0%} of the effect) "
            f"{'is' if len(chosen) == 1 else 'are'} {kind}"
            for kind, chosen in kinds.items()
        ],
        OBJECTIONS["mixed"],
    )


def _weighed(tests: Mapping[str, Test], exact: bool) -> Reasoning:
    needed = NEEDED if exact else OTHER
    conditions = _conditions(tests, asked_at(exact))
    label = _label(conditions, exact)
    if label == "illusory":
        told = [c for c in conditions.values() if c.fails]
        told.sort(key=lambda condition: condition.value)
        return Reasoning("illusory", "fails", [c.reason for c in told], OBJECTIONS["illusory"])
    reasons = [conditions[name].reason for name in needed if name in conditions]
    if label == "faithful":
        if conditions["full_component"].low > PART:
            return Reasoning("partial", "part", reasons, OBJECTIONS["faithful"])
        return Reasoning("faithful", "holds", reasons, OBJECTIONS["faithful"])
    void = [
        f"{name}: {tests[name].reading}"
        for name in needed
        if name in tests and tests[name].value is None
    ]
    if void:
        return Reasoning("undetermined", "void", void + reasons, OBJECTIONS["void"])
    if _half_natural(conditions["natural"], conditions["beyond"]):
        return Reasoning("mixed", "mixed", reasons, OBJECTIONS["mixed"])
    code: VerdictCode = "conflict" if _opposed(conditions) else "unsure"
    return Reasoning("undetermined", code, reasons, OBJECTIONS[code])


def _conditions(tests: Mapping[str, Test], names: Iterable[str]) -> dict[str, Condition]:
    """Those of them that say something."""
    return {name: c for name in names if (c := Condition.of(name, tests.get(name)))}


def _opposed(conditions: Mapping[str, Condition]) -> bool:
    """Whether something speaks against the subspace and something else for it. That less than most
    is left where only what acts is read is usual."""
    against = [c for c in conditions.values() if c.fails and c.name != "acting"]
    speaking = set(conditions) - {"full_component", "acting", "read_source"}
    deaf = _all_within(conditions, {"acting": LITTLE})
    return bool(against or deaf) and any(conditions[name].holds for name in speaking)


def _half_natural(natural: Condition, beyond: Condition) -> bool:
    return natural.low > MIXED and beyond.low > MIXED and not beyond.fails


def _label(conditions: Mapping[str, Condition], exact: bool, whole: bool = True) -> Told:
    """What the conditions say together; without `whole`, not asking that of the whole component."""
    fails = {name for name, condition in conditions.items() if condition.fails}
    holds = {name for name, condition in conditions.items() if condition.holds}
    if _against(conditions, fails, holds, exact):
        return "illusory"
    if ("full_component" not in holds and whole) or "comovement" in fails:
        return "undetermined"
    if exact:
        speaks_for = _is_heard(conditions, fails, holds)
    else:
        apart = {"natural", "beyond", "acting"} <= holds or _acts_as_it_varies(conditions)
        speaks_for = apart and "covariation" not in fails
    return "faithful" if speaks_for else "undetermined"


def _against(
    conditions: Mapping[str, Condition], fails: set[str], holds: set[str], exact: bool
) -> bool:
    """Whether the conditions speak of an illusion. The parts condemn nothing along which nature
    moves as well: a feature may be a small part of all that z changes. Nor is anything condemned
    that another unit may take back: where the split is exact, what may write all it reads;
    elsewhere, by all three parts, what writes all it reads where the whole component does little.
    Where the split is exact, what is left without the kernel must hold for the parts to condemn."""
    still = "comovement" not in holds
    apart = still and {"natural", "beyond", "acting"} <= fails
    if exact:
        speaking = holds & {"row_effect", "covariation"}
        behind = _all_within(conditions, {"covariation": BEHIND})
        cut_off = (
            fails.intersection(EXACT) and "row_effect" in conditions and behind and not speaking
        )
        deaf = apart and "row_effect" in holds and _all_within(conditions, {"acting": NOTHING})
        return bool(cut_off) or deaf
    follows = "covariation" in holds
    little = "full_component" in conditions and "full_component" not in holds
    deaf = still and not follows and _all_within(conditions, DEAF)
    return (apart and not (follows and little)) or deaf


def _is_heard(conditions: Mapping[str, Condition], fails: set[str], holds: set[str]) -> bool:
    """Whether, at an exact site, a subspace writes what nature does, and reads what acts."""
    if "row_effect" not in holds or "covariation" not in conditions or "covariation" in fails:
        return False
    followed = {"covariation", "read_source", "acting"} <= holds
    most = followed or _all_within(conditions, {"acting": HALF})
    return _acts_as_it_varies(conditions) or ("beyond" in holds and most)


def _acts_as_it_varies(conditions: Mapping[str, Condition]) -> bool:
    """Whether what acts is what varies with z: a feature that is a small part of all that z
    changes, so that c, one number for all of it, comes out too small."""
    small = {"acting": MOST, "natural": Range(TRACE, 2), "beyond": Range(-1 / 3, 1 / 2)}
    return _all_within(conditions, small)


def _all_within(conditions: Mapping[str, Condition], cuts: Mapping[str, Range]) -> bool:
    return all(name in conditions and conditions[name].within(cut) for name, cut in cuts.items())


def label_of_axis(tests: Mapping[str, Test], exact: bool) -> Told:
    """What the conditions of one axis say, without that of the whole component."""
    return _label(_conditions(tests, tests), exact, whole=False)


def _left(evidence: Evidence) -> float:
    """Product of what is left of the effect, each condition cut to [0, 1] and 1/2 where it is void:
    of the whole component and of the row part in units of 1/2, that either has even more says
    nothing; where only what acts is read in units of what is most; elsewhere than at exact sites of
    what is natural too."""

    def share(name: str, unit: float = 1.0) -> float:
        test = evidence.tests.get(name)
        value = test.value if test is not None else None
        return 0.5 if value is None else min(1.0, max(0.0, value / unit))

    left = share("full_component", 1 / 2) * share("acting", MOST.low)
    if evidence.exact:
        return left * share("row_effect", 1 / 2)
    return left * share("natural") * (1 - share("beyond"))
