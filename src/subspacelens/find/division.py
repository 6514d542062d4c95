"""Pairs for the steps of a search: to fit on, to choose on, and fresh ones to judge on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..core.errors import TaskError
from ..tasks.dividing import Row, divide_prompts
from ..tasks.pairset import Pair, PairSet, Task
from .budget import Budget

LEAST = 8


@dataclass(frozen=True)
class Division:
    """`task.train` holds the pairs to fit on and, behind them, those to choose on; an audit takes
    what is natural from both, and judges on `task.test` alone."""

    task: Task
    fitted: int

    @property
    def fit(self) -> PairSet:
        return self.task.train[: self.fitted]

    @property
    def choice(self) -> PairSet:
        return self.task.train[self.fitted :]


def divide(task: Task, budget: Budget) -> Division:
    """The pairs of `task.train` divided so that no prompt is on both sides, two thirds to fit on,
    and as many of either and of `task.test` as the budget takes.

    Raises `TaskError` where they cannot be divided, or where fewer than `LEAST` are to choose on.
    """
    rows = [Row(task.train.where(number), pair) for number, pair in enumerate(task.train)]
    fit, choice = divide_prompts(rows, f"task {task.name}")
    if len(choice) < LEAST:
        raise TaskError(
            f"task {task.name}: {len(task.train)} pairs to fit and to choose on leave "
            f"{len(choice)} to choose on, {LEAST} are needed: give more pairs"
        )
    chosen = [*_pairs(fit[: budget.fit_pairs]), *_pairs(choice[: budget.choice_pairs])]
    train = PairSet(task.name, "train", tuple(chosen))
    held_out = task.held_out if budget.audit != "fast" else None
    divided = Task(task.name, train, task.test[: budget.test_pairs], held_out)
    return Division(divided, min(len(fit), budget.fit_pairs))


def _pairs(rows: Iterable[Row]) -> list[Pair]:
    return [row.pair for row in rows]
