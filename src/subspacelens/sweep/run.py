"""A sweep from its grid to its last record."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ..core.progress import bar
from .grid import Grid
from .local import LocalPool, default_workers
from .plan import Cell, ModelFacts, cells_of, facts_of
from .pool import Pool, SerialPool
from .schedule import Schedule
from .store import Store
from .table import write_index

Backend = Literal["local", "serial", "ray"]


@dataclass(frozen=True)
class Tally:
    """What a run did: `cells` of the grid, `found` done before, `done` now, `failed` for good (now
    or before)."""

    cells: int
    found: int
    done: int
    failed: int


def run_sweep(
    grid: Grid,
    directory: Path | str,
    *,
    backend: Backend = "local",
    workers: int | None = None,
    retry: bool = False,
    address: str | None = None,
    models: Sequence[ModelFacts] | None = None,
) -> Tally:
    """Computes the cells of a grid that `directory` does not hold yet, each kept as it finishes.

    `backend`: processes of this machine, this process alone (`serial`), or a Ray cluster, at
    `address` if it is not a new one on this machine. `workers`: as many as there are GPUs, or cores
    for, by default. Cells that failed before stay failed unless `retry`. `models` spares loading
    the models to look at them. May be killed at any time: what is missing is done by the next call.

    Raises `SiteError`, `TaskError` or `ModelError` for a grid that does not fit its models, and
    `ResultError` where a record cannot be written; what is there is kept.

    >>> tally = sl.sweep(sl.read_grid("grid.toml"), "runs/sweep")
    >>> tally.done, tally.failed
    """
    store = Store(directory)
    with ExitStack() as stack:
        if backend == "ray":
            from . import cluster

            stack.enter_context(cluster.connected(address))
            models = models or cluster.facts_of_all(grid)
        cells = cells_of(grid, models or [facts_of(spec, grid) for spec in grid.models])
        tally, missing = look(store, cells, retry=retry)
        if missing:
            pool = _pool(backend, workers, grid, len(missing))
            stack.callback(pool.close)
            tally = drive(missing, store, pool, grid.tries, tally)
    write_index(store)
    return tally


def look(store: Store, cells: Sequence[Cell], *, retry: bool = False) -> tuple[Tally, list[Cell]]:
    """What the store has of these cells, and those that are still to be computed. Nothing is
    changed."""
    missing = [cell for cell in cells if store.load(cell.key) is None]
    failed = [] if retry else [cell for cell in missing if store.failure(cell.key)]
    dropped = {cell.key for cell in failed}
    tally = Tally(len(cells), len(cells) - len(missing), 0, len(failed))
    return tally, [cell for cell in missing if cell.key not in dropped]


def drive(
    cells: Sequence[Cell], store: Store, pool: Pool, tries: int, tally: Tally, title: str = "sweep"
) -> Tally:
    """Has the pool compute the cells and keeps every outcome at once; the bar is called `title`."""
    schedule = Schedule.of(cells, len(pool.workers), tries)
    with bar(title, len(cells)) as show:
        while not schedule.idle:
            for worker in pool.workers:
                while worker not in schedule.running and (job := schedule.next(worker)):
                    if store.has(job.cell.key):
                        schedule.done(worker)
                        tally = replace(tally, found=tally.found + 1)
                    else:
                        pool.send(worker, job)
            running = len(schedule.running)
            finished = tally.found + tally.done + tally.failed - (tally.cells - len(cells))
            show(finished, f"{title}: {tally.done} done, {running} running, {tally.failed} failed")
            for report in pool.wait(seconds=0.5) if schedule.running else ():
                if report.outcome is not None:
                    store.write(schedule.done(report.worker).cell, report.outcome)
                    tally = replace(tally, done=tally.done + 1)
                    continue
                what = schedule.lost if report.gone else schedule.failed
                job, for_good = what(report.worker) or (None, False)
                if job is not None and for_good:
                    store.fail(job.cell, report.error, tries)
                    tally = replace(tally, failed=tally.failed + 1)
        show(len(cells), f"{title}: {tally.done} done, {tally.failed} failed")
    return tally


def _pool(backend: Backend, workers: int | None, grid: Grid, jobs: int) -> Pool:
    threads, timeout = grid.threads, grid.timeout
    if backend == "serial":
        return SerialPool(threads, timeout=timeout)
    if backend == "local":
        return LocalPool(min(workers or default_workers(threads), jobs), threads, timeout=timeout)
    from .cluster import RayPool

    return RayPool(workers, threads, jobs, timeout=timeout)
