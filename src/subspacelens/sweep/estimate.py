"""How long a sweep may take: operations over what this machine does in a second."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from ..audit.drawing import DOSE_PAIRS, DOSES
from ..fit import ClosedForm, named
from ..measure.effects import RANDOM_DRAWS, RANDOM_PAIRS
from ..measure.support import EXPLAINED
from .grid import GIVEN, Grid
from .local import default_workers
from .plan import Cell, ModelFacts

NAMED_PATCHES = 8
PER_PAIR_RUNS = 1 + ClosedForm().steps
START_SECONDS = 5.0
EFFICIENCY = 0.5
"""Share of the rate of one large product that a replay reaches."""


def estimate(
    grid: Grid, models: Sequence[ModelFacts], cells: Sequence[Cell], workers: int | None = None
) -> tuple[int, float]:
    """Number of workers, and a rough number of seconds that `cells` take on this machine's CPUs.

    Counts the matrix products of replayed columns, at the measured rate of one such product with
    the grid's threads; certificates, controls and captures included, optimisers not.
    """
    if not cells:
        return 0, 0.0
    count = min(workers or default_workers(grid.threads), len(cells))
    by_spec = {facts.spec: facts for facts in models}
    total = sum(_operations(by_spec[cell.model], cell) for cell in cells)
    captures = {(cell.model, cell.task, cell.site) for cell in cells}
    total += sum(_capture_operations(by_spec[m], task) for m, task, _ in captures) / 4
    return count, START_SECONDS + total / (EFFICIENCY * _rate(grid.threads)) / count


def _operations(facts: ModelFacts, cell: Cell) -> float:
    task = facts.tasks[cell.task]
    blocks = len(facts.shape.heads) - cell.site.layer
    column = 2.0 * facts.block_parameters * blocks
    suffix = column * task.suffix[cell.site.label]
    answer = suffix + 2.0 * facts.head_parameters
    total = 2 * task.test * answer
    if cell.kind == "pair":
        return 3 * PER_PAIR_RUNS * suffix + 4 * answer
    if cell.fit.method != GIVEN:
        fit = named(cell.fit.method)
        total += 3 * suffix * fit.count_gradients(task.train, cell.fit.options)
    if cell.kind == "audit":
        replays = (NAMED_PATCHES + 2 * len(EXPLAINED)) * task.test + len(DOSES) * DOSE_PAIRS
        total += (replays + 2 * RANDOM_DRAWS * RANDOM_PAIRS) * answer
    return total


def _capture_operations(facts: ModelFacts, task) -> float:
    of_task = facts.tasks[task]
    columns = 2 * (of_task.train + of_task.test) * max(of_task.suffix.values())
    return 2.0 * facts.block_parameters * len(facts.shape.heads) * columns


def _rate(threads: int) -> float:
    """Operations in a second, of a product the size of a replayed batch."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        a, b = torch.randn(256, 1024), torch.randn(1024, 1024)
        best = float("inf")
        for _ in range(5):
            started = time.perf_counter()
            torch.mm(a, b)
            best = min(best, time.perf_counter() - started)
    finally:
        torch.set_num_threads(before)
    return 2.0 * 256 * 1024 * 1024 / best
