"""A cell that hangs fails, and the sweep goes on."""

from __future__ import annotations

import os
import time

import pytest

from subspacelens.sweep import FitSpec, Grid, Store, Tally, TaskSpec, cells_of, facts_of
from subspacelens.sweep.cell import Worker
from subspacelens.sweep.local import LocalPool
from subspacelens.sweep.pool import SerialPool
from subspacelens.sweep.run import drive


@pytest.fixture(scope="module")
def cells(place):
    grid = Grid(
        models=(str(place / "model"),),
        tasks=(TaskSpec(name=str(place / "pairs.jsonl")),),
        sites=("L1-2.mlp_act@END",),
        fits=(FitSpec("random"), FitSpec("pca")),
        kind="fit",
        pairs=4,
    )
    return cells_of(grid, [facts_of(grid.models[0], grid)])


@pytest.fixture
def sleepy(cells, monkeypatch):
    """The second cell sleeps for a minute."""
    run = Worker.run

    def sleeping(self, cell, sites):
        if cell.key == cells[1].key:
            time.sleep(60)
        return run(self, cell, sites)

    monkeypatch.setattr(Worker, "run", sleeping)


def drove(cells, store, pool) -> Tally:
    started = time.monotonic()
    try:
        tally = drive(cells, store, pool, 2, Tally(len(cells), 0, 0, 0))
    finally:
        pool.close()
    assert time.monotonic() - started < 30
    return tally


def check(cells, store, tally, seconds: int) -> None:
    assert (tally.done, tally.failed) == (3, 1)
    failure = store.failure(cells[1].key)
    assert failure is not None and failure["tries"] == 2
    assert failure["error"] == f"no result after {seconds} seconds (`timeout` in the grid)"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the patched worker is handed on by fork")
def test_a_process_that_hangs_is_killed_and_its_cell_fails_alone(cells, sleepy, tmp_path):
    store, pool = Store(tmp_path), LocalPool(2, 1, timeout=5, start="fork")
    before = set(pool.pids)
    check(cells, store, drove(cells, store, pool), 5)
    assert set(pool.pids) != before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs alarms")
def test_a_cell_that_hangs_in_this_process_is_broken_off(cells, sleepy, tmp_path):
    store = Store(tmp_path)
    check(cells, store, drove(cells, store, SerialPool(1, timeout=5)), 5)
