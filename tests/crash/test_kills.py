"""Sweeps that are killed, interrupted, or run out of disk lose nothing that was finished.

A few kills here; `subspacelens bench crash` makes hundreds.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec

import psutil
import pytest

from subspacelens.bench.crash import (
    CrashReport,
    contents,
    crash_local,
    crash_ray,
    inspect_store,
    small_grid,
)
from subspacelens.bench.tiny import tiny_model, tiny_pairs
from subspacelens.core.errors import ResultError
from subspacelens.sweep import Store, Tally, cells_of, run_sweep
from subspacelens.sweep.cell import Worker
from subspacelens.sweep.local import LocalPool
from subspacelens.sweep.run import drive

pytestmark = [
    pytest.mark.crash,
    pytest.mark.skipif(sys.platform != "linux", reason="kills forked processes"),
]

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk")


@pytest.fixture
def grid(tmp_path):
    return small_grid(tmp_path)


@pytest.fixture
def mounted(tmp_path):
    """A disk of 400 kB; the call remounts it with other options."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(options: str) -> int:
        return subprocess.call(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)], stderr=subprocess.DEVNULL
        )

    if mount("size=400k"):
        pytest.skip("this machine does not let one mount a disk")
    yield disk, mount
    subprocess.call(["umount", str(disk)])


def test_random_kills_lose_nothing_double_nothing_and_change_nothing():
    report = crash_local(kills=3, seed=1)
    assert report.total == 3 and report.rounds >= 1 and report.cells == 64
    assert (report.lost, report.changed, report.rewritten) == (0, 0, 0)
    assert (report.damaged, report.orphans) == (0, 0)
    assert report.passed


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.skipif(find_spec("ray") is None, reason="the ray extra is not installed")
def test_random_kills_of_ray_workers_and_driver_lose_nothing():
    report = crash_ray(kills=3, seed=2)
    assert report.total == 3 and report.passed, report


def test_the_bench_sees_what_is_lost_changed_and_damaged(grid, tmp_path):
    small, models = grid
    small = small.model_copy(update={"seeds": (0,), "sites": ("L1-2.mlp_act@END",)})
    run_sweep(small, tmp_path / "out", backend="serial", models=models)
    store, report = Store(tmp_path / "out"), CrashReport(rounds=1)
    lost, changed, damaged, _ = expected = contents(store)
    shutil.rmtree(store.path(lost))
    (store.path(damaged) / "subspace.safetensors").write_bytes(b"half")
    inspect_store(store.directory, cells_of(small, models), expected | {changed: "other"}, report)
    assert (report.lost, report.changed, report.damaged) == (2, 1, 1)
    assert not report.passed


def test_a_cell_that_kills_its_worker_fails_alone(grid, tmp_path, monkeypatch):
    small, models = grid
    small = small.model_copy(update={"seeds": (0,), "sites": ("L1-2.mlp_act@END",)})
    cells = cells_of(small, models)
    run = Worker.run

    def deadly(self, cell, sites):
        if cell.key == cells[1].key:
            os.kill(os.getpid(), signal.SIGKILL)
        return run(self, cell, sites)

    monkeypatch.setattr(Worker, "run", deadly)
    store, pool = Store(tmp_path / "out"), LocalPool(2, 1, start="fork")
    try:
        tally = drive(cells, store, pool, 2, Tally(len(cells), 0, 0, 0))
    finally:
        pool.close()
    assert (tally.done, tally.failed) == (3, 1)
    failure = store.failure(cells[1].key)
    assert failure is not None and failure["tries"] == 2
    assert failure["error"] == "the worker was killed by signal 9"


def test_ctrl_c_ends_within_five_seconds_and_keeps_what_was_finished(tmp_path):
    tiny_model(tmp_path / "model")
    tiny_pairs(tmp_path / "pairs.jsonl")
    (tmp_path / "grid.toml").write_text(
        'models = ["model"]\ntasks = ["pairs.jsonl"]\nsites = ["L*.mlp_act@END"]\n'
        'fits = [{method = "das", steps = 40}]\npairs = 24\nseeds = [0, 1, 2, 3, 4, 5, 6, 7]\n'
    )
    out = tmp_path / "out"
    command = "from subspacelens.cli import main; main()"
    arguments = ["sweep", str(tmp_path / "grid.toml"), "--out", str(out), "--workers", "2"]
    sweep = subprocess.Popen(
        [sys.executable, "-c", command, *arguments],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not list(out.glob("records/*/*/record.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    family = psutil.Process(sweep.pid).children(recursive=True)
    os.killpg(sweep.pid, signal.SIGINT)
    pressed = time.monotonic()
    _, err = sweep.communicate(timeout=30)
    assert time.monotonic() - pressed < 5
    assert sweep.returncode == 130 and "Traceback" not in err
    assert "interrupted; what was finished is kept" in err
    assert not psutil.wait_procs(family, timeout=5)[1]
    store = Store(out)
    found = contents(store)
    assert 0 < len(found) < 32 and len(found) == len(list(store.done_keys()))


def test_two_sweeps_at_once_do_not_hurt_each_other(grid, tmp_path):
    small, models = grid
    small = small.model_copy(update={"seeds": (0,)})
    script = (
        "import sys; from pathlib import Path\n"
        "from subspacelens.sweep import Grid, run_sweep\n"
        "if __name__ == '__main__':\n"
        "    grid = Grid.model_validate_json(Path(sys.argv[1]).read_text())\n"
        "    print(run_sweep(grid, sys.argv[2], backend='serial'))\n"
    )
    (tmp_path / "run.py").write_text(script)
    (tmp_path / "grid.json").write_text(small.model_dump_json(exclude_none=True))
    command = [sys.executable, "run.py", "grid.json", "shared"]
    both = [subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE) for _ in range(2)]
    run_sweep(small, tmp_path / "alone", backend="serial", models=models)
    assert [sweep.wait(120) for sweep in both] == [0, 0]
    for sweep in both:
        sweep.communicate()
    shared = Store(tmp_path / "shared")
    assert contents(shared) == contents(Store(tmp_path / "alone"))
    assert not list(shared.building.iterdir()) and not shared.damaged.exists()


@needs_root
def test_a_full_disk_is_a_clear_error_and_keeps_what_is_there(grid, mounted):
    disk, mount = mounted
    small, models = grid
    with pytest.raises(ResultError, match="No space left on device"):
        run_sweep(small, disk / "out", backend="serial", models=models)
    store = Store(disk / "out", create=False)
    before = contents(store)
    assert before and len(before) == len(list(store.done_keys()))
    assert mount("remount,size=8m") == 0
    tally = run_sweep(small, disk / "out", backend="serial", models=models)
    assert tally.found == len(before) and tally.found + tally.done == 64


@needs_root
def test_a_read_only_store_is_a_clear_error_and_can_be_read(grid, mounted):
    disk, mount = mounted
    small, models = grid
    small = small.model_copy(update={"seeds": (0,), "sites": ("L1.mlp_act@END",)})
    run_sweep(small, disk / "out", backend="serial", models=models)
    before = contents(Store(disk / "out"))
    assert mount("remount,ro") == 0
    with pytest.raises(ResultError, match=r"cannot write .*Read-only file system"):
        run_sweep(small, disk / "out", backend="serial", models=models)
    assert contents(Store(disk / "out", create=False)) == before
    assert len(cells_of(small, models)) == len(before)
