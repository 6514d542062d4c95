"""From a subspace to its evidence and verdict."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..certify import require
from ..core.errors import LensError
from ..core.geometry import SUPPORT_AT
from ..core.progress import track
from ..core.records import EffectRecord
from ..core.site import Site
from ..core.statistics import mean
from ..engine.metrics import Chosen, Metric, metric_of
from ..engine.task_capture import TaskCapture
from ..fit.subspace import Subspace
from ..measure.effects import RANDOM_DRAWS
from ..measure.support import EXPLAINED
from ..model.lens import LensModel
from .evidence import BUDGETS, TESTS, Case, Setting
from .evidence.axes import axes
from .record import PATCHES, Axis, Test, Verdict
from .verdict import NEEDED, OTHER, SMALLEST_UNITS, Evidence, can_be_judged, decide

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
    metric: Chosen = None,
    seed: int = 0,
) -> Judgement:
    """The evidence and the verdict alone; arguments and errors as in `audit`."""
    subspace.check(lens)
    require(lens, subspace.site)
    setting, left_out, leaking = setting_at(captures, subspace.site, lens, metric_of(metric))
    names = chosen_tests(budget, tests, linear=setting.replay.writer is not None)
    fast = budget == "fast"
    case = Case(
        setting=setting,
        subspace=subspace,
        explained=(SUPPORT_AT,) if fast else EXPLAINED,
        draws=FAST_DRAWS if fast else RANDOM_DRAWS,
        proxies=not fast,
        seed=seed,
    )
    prepared = ["split", "effects", "random"] + ([] if fast else ["by_support", "reversed"])
    results: dict[str, Test] = {}
    for stage in track([*prepared, *names], f"audit of {case.site}"):
        if stage in TESTS:
            _, run = TESTS[stage]
            results[stage] = run(case)
        else:
            getattr(case, stage)
    of_axes = axes(case)
    return Judgement(
        case=case,
        effects=_table(case, fast),
        tests=results,
        axes=of_axes,
        verdict=decide(_evidence(case, results, of_axes, leaking)),
        left_out=left_out,
    )


def judge_blind(setting: Setting, subspace: Subspace, *, seed: int = 0) -> Blind:
    """The verdict of the budget `fast` alone, with no more replayed than it takes: what the rule
    does not come to is not computed."""
    case = Case(
        setting=setting,
        subspace=subspace,
        patches=("subspace", "row", "read_row", "read_null"),
        explained=(SUPPORT_AT,),
        draws=FAST_DRAWS,
        proxies=False,
        seed=seed,
    )
    evidence, tests = evidence_for(case)
    return Blind(decide(evidence), case, tests)


def evidence_for(case: Case, leaking: int = 0) -> tuple[Evidence, OnDemand]:
    """What the rule rests on, each test run when it is first asked for: none where it does not come
    to them; and all tests of the case. `leaking`: see `Evidence`."""
    tests = OnDemand(case, TESTS)
    evidence = _evidence(case, tests, (), leaking)
    if not can_be_judged(evidence):
        evidence = replace(evidence, tests={})
    elif case.subspace.dim > 1:
        evidence = replace(evidence, axes=axes(case))
    return evidence, tests


class Blind(NamedTuple):
    """A verdict, and what it rests on, which is computed when it is asked for."""

    verdict: Verdict
    case: Case
    tests: Mapping[str, Test]


class OnDemand(Mapping[str, Test]):
    """The `tests` of a case, each run when it is first asked for; `known` are those that were."""

    def __init__(self, case: Any, tests: Mapping[str, tuple[str, Callable[[Any], Test]]]) -> None:
        self._case, self._tests, self.known = case, tests, dict[str, Test]()

    def __getitem__(self, name: str) -> Test:
        if name not in self.known:
            _, run = self._tests[name]
            self.known[name] = run(self._case)
        return self.known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tests)

    def __len__(self) -> int:
        return len(self._tests)


def _evidence(
    case: Case, tests: Mapping[str, Test], of_axes: tuple[Axis, ...], leaking: int = 0
) -> Evidence:
    effect, parts = case.effects["subspace"], case.parts
    return Evidence(
        tests=tests,
        effect=effect.nats,
        moved=None if case.replay.metric is None else mean(effect.moved, case.units),
        unit=getattr(case.replay.metric, "unit", "nats"),
        clean=float(case.clean.mean()),
        fldd=effect.fldd,
        units=min(case.units.count, case.setting.fitted.units.count),
        exact=case.exact,
        axes=of_axes,
        whole=case.basis.shape[0] == case.basis.shape[1],
        leaking=leaking,
        rank_too_low=case.setting.kernel
        and parts is not None
        and parts.exact
        and parts.rank_too_low,
    )


def setting_at(
    captures: TaskCapture, site: Site, lens: LensModel | None = None, metric: Metric | None = None
) -> tuple[Setting, int, int]:
    """A site on the pairs that are judged on, how many test pairs are left out because they share
    their tokens up to the label with pairs to fit on, and how many that do are not left out.
    `lens`: see `Capture.at`."""
    whole = captures.test.at(site, lens)
    chosen, sharing = set_apart(captures, site)
    left_out = len(whole.pairs) - len(chosen)
    replay = whole.subset(chosen) if metric is None else whole.subset(chosen).measured_by(metric)
    setting = Setting(captures=captures, replay=replay, chosen=chosen)
    return setting, left_out, sharing - left_out


def set_apart(captures: TaskCapture, site: Site) -> tuple[Tensor, int]:
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
    deciding = (*OTHER, "chance", *(NEEDED if linear else ()))
    known = deciding if budget == "fast" and not linear else TESTS
    wanted = [name for name in known if BUDGETS.index(TESTS[name][0]) <= level]
    return [n for n in TESTS if n in deciding or n in (wanted if tests is None else tests)]
