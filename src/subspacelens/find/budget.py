"""How much a search looks at, and which fits it trusts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ..core.errors import LensError
from ..sweep.grid import FitSpec
from ..tasks.pairset import PairSet

BudgetName = Literal["fast", "standard"]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """`fit_pairs`, `choice_pairs` and `test_pairs`: how many at most to fit, to choose and to judge
    on. `candidates` and `traps`: sites that are audited at most; `refined`: how many predictions
    are averaged along the path. `dims`: numbers of dimensions to choose from. `audit`: the budget
    of the candidates' audits; `draws`: random subspaces a site; `controlled`: at how many of the
    first candidates known truth is planted. `written`: pairs on which writers are told apart."""

    name: BudgetName
    fit_pairs: int
    choice_pairs: int
    test_pairs: int | None
    candidates: int
    traps: int
    refined: int
    dims: tuple[int, ...]
    audit: str
    draws: int
    controlled: int
    written: int


BUDGETS: Mapping[str, Budget] = {
    budget.name: budget
    for budget in (
        Budget(
            name="fast", fit_pairs=64, choice_pairs=32, test_pairs=96, candidates=4, traps=3,
            refined=6, dims=(1, 2), audit="fast", draws=20, controlled=0, written=32,
        ),
        Budget(
            name="standard", fit_pairs=128, choice_pairs=64, test_pairs=None, candidates=10,
            traps=8, refined=16, dims=(1, 2, 4, 8), audit="standard", draws=20, controlled=2,
            written=64,
        ),
    )
}  # fmt: skip

FAITHFUL = FitSpec("mean-difference")
"""The recommended fit where z has two values."""
WITHOUT_CLASSES = FitSpec("das")
"""That where it has not."""
PLAIN = FitSpec("das")
"""What most people would fit, and what a trap is sprung with."""


def budget_of(name: str) -> Budget:
    """Raises `LensError` for an unknown name."""
    if name not in BUDGETS:
        raise LensError(f"unknown budget '{name}': one of {', '.join(BUDGETS)}")
    return BUDGETS[name]


def recommended(pairs: PairSet) -> FitSpec:
    """The fit that finds what an audit calls faithful, on pairs like these."""
    return FAITHFUL if len(pairs.classes) == 2 else WITHOUT_CLASSES
