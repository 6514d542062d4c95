"""From a subspace to its evidence and verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..certify import require
from ..core.errors import LensError
from ..core.progress import track
from ..core.records import EffectRecord
from ..engine.task_capture import TaskCapture
from ..fit.subspace import Subspace
from ..measure.support import EXPLAINED, SUPPORT_AT
from ..model.lens import LensModel
from .evidence import BUDGETS, TESTS, Case
from .record import PATCHES, Test, Verdict
from .verdict import CONDITIONS, decide


@dataclass(frozen=True)
class Judgement:
    """The outcome of an audit before it is written down. `effects` by the names of `PATCHES`; what
    the budget leaves out is missing, a patch that the site does not have is without values."""

    case: Case = field(repr=False)
    effects: dict[str, EffectRecord]
    tests: dict[str, Test]
    verdict: Verdict


def judge(
    lens: LensModel,
    captures: TaskCapture,
    subspace: Subspace,
    *,
    budget: str = "standard",
    tests: Sequence[str] | None = None,
    seed: int = 0,
) -> Judgement:
    """The evidence and the verdict alone; arguments and errors as in `audit`."""
    chosen = chosen_tests(budget, tests)
    subspace.check(lens)
    require(lens, subspace.site)
    fast = budget == "fast"
    case = Case(
        captures=captures,
        replay=captures.test.at(subspace.site, lens),
        subspace=subspace,
        explained=(SUPPORT_AT,) if fast else EXPLAINED,
        seed=seed,
    )
    prepared = ["split", "effects", "by_support"] + ([] if fast else ["random", "reversed"])
    results: dict[str, Test] = {}
    for stage in track([*prepared, *chosen], f"audit of {case.site}"):
        if stage in TESTS:
            _, run = TESTS[stage]
            results[stage] = run(case)
        else:
            getattr(case, stage)
    subspace_effect, parts = case.effects["subspace"], case.parts
    verdict = decide(
        results,
        subspace_effect.nats,
        subspace_effect.fldd,
        min(case.units.count, captures.train.pairs.units.count),
        exact=parts is not None and parts.exact and not parts.degenerate,
        rank_too_low=parts is not None and parts.exact and parts.rank_too_low,
    )
    return Judgement(case, _table(case, fast), results, verdict)


def _table(case: Case, fast: bool) -> dict[str, EffectRecord]:
    effects = case.effects if fast else case.effects | {"reversed": case.reversed}
    table = {name: effect.record for name, effect in effects.items()}
    if not fast:
        table["random"] = case.random.record
    left_out = ("random", "reversed") if fast else ()
    return {
        name: table.get(name, EffectRecord.absent()) for name in PATCHES if name not in left_out
    }


def chosen_tests(budget: str, tests: Sequence[str] | None = None) -> list[str]:
    """The tests that a budget runs, or those of `tests`; what the verdict rests on always runs.
    Raises `LensError` for an unknown name."""
    if budget not in BUDGETS:
        raise LensError(f"unknown budget '{budget}': one of {', '.join(BUDGETS)}")
    unknown = sorted(set(tests or ()) - set(TESTS))
    if unknown:
        raise LensError(f"unknown test '{unknown[0]}': one of {', '.join(TESTS)}")
    level = BUDGETS.index(budget)
    wanted = [n for n, (least, _) in TESTS.items() if BUDGETS.index(least) <= level]
    return [n for n in TESTS if n in CONDITIONS or n in (wanted if tests is None else tests)]
