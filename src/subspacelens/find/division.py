"""Pairs for the steps of a search: to fit on, to choose on, and fresh ones to judge on."""

from __future__ import annotations

from dataclasses import dataclass

from ..fit.dimensions import divided
from ..tasks.pairset import PairSet, Task
from .budget import Budget


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
    and as many of either and of `task.test` as the budget takes. Raises `TaskError` as `divided`
    does."""
    fit, choice = divided(task.train)
    fit, choice = fit[: budget.fit_pairs], choice[: budget.choice_pairs]
    train = PairSet(task.name, "train", task.train.at([*fit, *choice]).pairs)
    held_out = task.held_out if budget.audit != "fast" else None
    return Division(Task(task.name, train, task.test[: budget.test_pairs], held_out), len(fit))
