"""From a subspace to its evidence and verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..certify import require
from ..core.errors import LensError
from ..core.progress import track
from ..core.records import EffectRecord
from ..core.site import Site
from ..engine.task_capture import TaskCapture
from ..fit.subspace import Subspace
from ..measure.effects import RANDOM_DRAWS
from ..measure.nature import natural_change
from ..measure.support import EXPLAINED, SUPPORT_AT
from ..model.lens import LensModel
from .evidence import BUDGETS, TESTS, Case
from .evidence.axes import axes
from .record import PATCHES, Axis, Test, Verdict
from .verdict import EXACT, OTHER, SMALLEST_UNITS, Evidence, decide

FAST_DRAWS = 20
"""Random subspaces of either kind under the budget `fast`: p = .048 where none does as much."""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """The outcome of an audit before it is written down. `left_out` counts test pairs that share
    their tokens up to the label with pairs to fit on. `effects` by the names of `PATCHES`; what
    the budget leaves out is missing, a patch that the site does not have is without values."""

    case: Case = field(repr=False)
    effects: dict[str, EffectRecord]
    tests: dict[str, Test]
    axes: tuple[Axis, ...]
    verdict: Verdict
    left_out: int


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
    subspace.check(lens)
    require(lens, subspace.site)
    fast = budget == "fast"
    whole = captures.test.at(subspace.site, lens)
    chosen_pairs, sharing = _apart(captures, subspace.site)
    left_out = len(whole.pairs) - len(chosen_pairs)
    replay = whole.subset(chosen_pairs)
    chosen = chosen_tests(budget, tests, linear=replay.writer is not None)
    case = Case(
        captures=captures,
        replay=replay,
        chosen=chosen_pairs,
        subspace=subspace,
        nature=natural_change(captures.train.at(subspace.site), replay),
        explained=(SUPPORT_AT,) if fast else EXPLAINED,
        draws=FAST_DRAWS if fast else RANDOM_DRAWS,
        proxies=not fast,
        seed=seed,
    )
    prepared = ["split", "effects", "random"] + ([] if fast else ["by_support", "reversed"])
    results: dict[str, Test] = {}
    for stage in track([*prepared, *chosen], f"audit of {case.site}"):
        if stage in TESTS:
            _, run = TESTS[stage]
            results[stage] = run(case)
        else:
            getattr(case, stage)
    subspace_effect, parts = case.effects["subspace"], case.parts
    of_axes = axes(case)
    verdict = decide(
        Evidence(
            tests=results,
            effect=subspace_effect.nats,
            fldd=subspace_effect.fldd,
            units=min(case.units.count, captures.train.at(case.site).units.count),
            exact=case.exact,
            axes=of_axes,
            whole=subspace.dim == case.basis.shape[0],
            leaking=sharing - left_out,
            rank_too_low=parts is not None and parts.exact and parts.rank_too_low,
        )
    )
    return Judgement(
        case=case, effects=_table(case, fast), tests=results, axes=of_axes, verdict=verdict,
        left_out=left_out,
    )  # fmt: skip


def _apart(captures: TaskCapture, site: Site) -> tuple[Tensor, int]:
    """Positions of the test pairs to judge on, and how many of all share something with the pairs
    to fit on: these are left out, unless too few would be left. In an order drawn once, so that the
    first few pairs, on which some tests rest, are of no one template."""
    pairs, label = captures.test.pairs, site.label
    free = pairs.apart_from(captures.train.pairs, label)
    enough = min(SMALLEST_UNITS, pairs.units_at(label).count)
    few = not free or pairs.at(free).units_at(label).count < enough
    chosen = torch.arange(len(pairs)) if few else torch.tensor(free)
    order = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(0))
    return chosen[order], len(pairs) - len(free)


def _table(case: Case, fast: bool) -> dict[str, EffectRecord]:
    effects = case.effects if fast else case.effects | {"reversed": case.reversed}
    table = {name: effect.record for name, effect in effects.items()}
    table["random"] = case.random.record
    left_out = ("reversed",) if fast else ()
    return {
        name: table.get(name, EffectRecord.absent()) for name in PATCHES if name not in left_out
    }


def chosen_tests(
    budget: str, tests: Sequence[str] | None = None, *, linear: bool = True
) -> list[str]:
    """The tests that a budget runs, or those of `tests`; what the verdict rests on always runs.
    Under `fast`, nothing else does where the site's write is not `linear`. Raises `LensError` for
    an unknown name."""
    if budget not in BUDGETS:
        raise LensError(f"unknown budget '{budget}': one of {', '.join(BUDGETS)}")
    unknown = sorted(set(tests or ()) - set(TESTS))
    if unknown:
        raise LensError(f"unknown test '{unknown[0]}': one of {', '.join(TESTS)}")
    level = BUDGETS.index(budget)
    deciding = (*OTHER, "chance", *((*EXACT, "read_source") if linear else ()))
    known = deciding if budget == "fast" and not linear else TESTS
    wanted = [name for name in known if BUDGETS.index(TESTS[name][0]) <= level]
    return [n for n in TESTS if n in deciding or n in (wanted if tests is None else tests)]
