"""From a vector to its evidence and verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ...certify import require
from ...core.errors import LensError, SubspaceError
from ...core.progress import track
from ...core.site import Site
from ...engine.task_capture import TaskCapture
from ...measure.effects import RANDOM_DRAWS
from ...model.lens import LensModel
from ..evidence import BUDGETS
from ..evidence.case import Setting
from ..judging import FAST_DRAWS, OnDemand, setting_at
from ..record import Test, Verdict
from ..verdict import Evidence
from .case import Addition
from .curve import leaves
from .rule import RULE, decide
from .tests import TESTS

LOWEST_RANK = 2
"""A writer of this rank or less lets every vector act like every other."""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """The outcome before it is written down; `left_out` counts test pairs that share their tokens
    up to the label with pairs to fit on."""

    case: Addition = field(repr=False)
    tests: dict[str, Test]
    verdict: Verdict
    left_out: int


def judge(
    lens: LensModel,
    captures: TaskCapture,
    site: Site,
    vector: Tensor,
    alpha: float,
    *,
    budget: str,
    tests: Sequence[str] | None,
    seed: int,
) -> Judgement:
    """The evidence and the verdict alone; arguments and errors as in `audit_addition`."""
    names = chosen_tests(budget, tests)
    require(lens, site)
    setting, left_out, leaking = setting_at(captures, site, lens)
    vector = checked(vector, site, lens.map.dim(site))
    case = Addition(
        setting=setting,
        vector=vector,
        alpha=alpha,
        draws=FAST_DRAWS if budget == "fast" else RANDOM_DRAWS,
        seed=seed,
    )
    found = OnDemand(case, TESTS)
    for name in track(names, f"audit of an addition at {site}"):
        found[name]
    verdict = decide(_evidence(case, found, leaking), alpha, leaves(case))
    ordered = {name: found.known[name] for name in TESTS if name in found.known}
    return Judgement(case=case, tests=ordered, verdict=verdict, left_out=left_out)


def judge_blind(setting: Setting, vector: Tensor, *, seed: int = 0) -> tuple[Verdict, Addition]:
    """The verdict of the budget `fast` alone on a vector as it is, and the case that it was judged
    from; what the rule does not come to is not computed."""
    case = Addition(setting=setting, vector=vector, draws=FAST_DRAWS, seed=seed)
    return decide(_evidence(case, OnDemand(case, TESTS)), case.alpha, leaves(case)), case


def checked(vector: Tensor, site: Site, width: int) -> Tensor:
    """A vector as float64 (dim,). Raises `SubspaceError` for another shape than (dim,), (dim, 1) or
    (1, dim), or for numbers that are zero or not finite."""
    if vector.shape in ((width, 1), (1, width)):
        vector = vector.reshape(width)
    if vector.shape != (width,):
        raise SubspaceError(
            f"{site}: a vector of shape {tuple(vector.shape)} cannot be added: {width} numbers are "
            "needed"
        )
    vector = vector.detach().cpu().double()
    if not bool(vector.isfinite().all()) or not bool(vector.any()):
        raise SubspaceError(f"{site}: the vector is zero or not finite")
    return vector


def chosen_tests(budget: str, tests: Sequence[str] | None = None) -> list[str]:
    """The tests that a budget runs, or those of `tests`; what the verdict rests on always runs.
    Raises `LensError` for an unknown name."""
    if budget not in BUDGETS:
        raise LensError(f"unknown budget '{budget}': one of {', '.join(BUDGETS)}")
    unknown = sorted(set(tests or ()) - set(TESTS))
    if unknown:
        raise LensError(f"an addition has no test '{unknown[0]}': one of {', '.join(TESTS)}")
    level = BUDGETS.index(budget)
    affordable = [name for name, (least, _) in TESTS.items() if BUDGETS.index(least) <= level]
    wanted = {*RULE, "chance", *(affordable if tests is None else tests)}
    return [name for name in TESTS if name in wanted]


def _evidence(case: Addition, tests: Mapping[str, Test], leaking: int = 0) -> Evidence:
    effect, split = case.effects["add"], case.setting.split
    return Evidence(
        tests=tests,
        effect=effect.nats,
        fldd=effect.fldd,
        units=min(case.units.count, case.setting.fitted.units.count),
        exact=False,
        leaking=leaking,
        rank_too_low=case.setting.kernel and split is not None and split.rank <= LOWEST_RANK,
    )
