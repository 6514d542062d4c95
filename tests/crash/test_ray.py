"""On a Ray cluster of two nodes, in a process of its own: the bits of the serial run, though a
worker dies; a poisoned cell fails alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from subspacelens.bench.crash import contents, small_grid
from subspacelens.core.errors import LensError
from subspacelens.sweep import FitSpec, Store, run_sweep

SCRIPT = """
import json, signal, sys, threading, time
from pathlib import Path
import psutil, ray
from ray.cluster_utils import Cluster
from subspacelens.sweep import Grid, run_sweep

killed = []

def kill_a_worker(out):
    while not list(out.glob("records/*/*/record.json")):
        time.sleep(0.02)
    for process in psutil.process_iter(["cmdline"]):
        if any("ray::RayWorker" in part for part in process.info["cmdline"] or ()):
            process.send_signal(signal.SIGKILL)
            killed.append(process.pid)
            return

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
grid = Grid.model_validate_json(Path("grid.json").read_text())
thread = threading.Thread(target=kill_a_worker, args=(Path("out"),), daemon=True)
thread.start()
tally = run_sweep(grid, "out", backend="ray", address=cluster.address)
ray.init(address=cluster.address, log_to_driver=False)
nodes = len(ray.nodes())
ray.shutdown()
cluster.shutdown()
print(json.dumps({"done": tally.done, "failed": tally.failed, "nodes": nodes, "killed": killed}))
"""

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="the ray extra is not installed")


@pytest.mark.ray
@pytest.mark.long
@needs_ray
@pytest.mark.skipif(sys.platform != "linux", reason="finds workers by the names of processes")
def test_two_nodes_give_the_bits_of_the_serial_run_though_a_worker_dies(tmp_path):
    grid, models = small_grid(tmp_path)
    grid = grid.model_copy(
        update={"seeds": (0, 1), "sites": ("L*.mlp_act@END",), "dims": (1, 99), "tries": 3}
    )
    (tmp_path / "grid.json").write_text(grid.model_dump_json(exclude_none=True))
    (tmp_path / "script.py").write_text(SCRIPT)
    run = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    said = json.loads(run.stdout.splitlines()[-1])
    assert said["nodes"] == 2 and len(said["killed"]) == 1
    assert (said["done"], said["failed"]) == (16, 16)
    store = Store(tmp_path / "out")
    errors = {store.failure(key)["error"] for key in store.failed_keys()}
    assert len(errors) == 4 and all("99 dimensions does not fit" in error for error in errors)
    run_sweep(grid, tmp_path / "serial", backend="serial", models=models)
    assert contents(store) == contents(Store(tmp_path / "serial"))


HANGING = """
import json
from pathlib import Path
from subspacelens.sweep import Grid, run_sweep
grid = Grid.model_validate_json(Path("grid.json").read_text())
tally = run_sweep(grid, "out", backend="ray", workers=1)
print(json.dumps({"done": tally.done, "failed": tally.failed}))
"""


@pytest.mark.ray
@pytest.mark.long
@needs_ray
def test_an_actor_that_hangs_is_killed_and_its_cell_fails_alone(tmp_path):
    grid, _ = small_grid(tmp_path)
    fits = (FitSpec("das", recipe="adam", steps=10**8), FitSpec("random"))
    grid = grid.model_copy(
        update={"seeds": (0,), "sites": ("L1.mlp_act@END",), "dims": (1,), "fits": fits}
    )
    grid = grid.model_copy(update={"tries": 1, "timeout": 30})
    (tmp_path / "grid.json").write_text(grid.model_dump_json(exclude_none=True))
    (tmp_path / "script.py").write_text(HANGING)
    run = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert json.loads(run.stdout.splitlines()[-1]) == {"done": 1, "failed": 1}
    store = Store(tmp_path / "out")
    (error,) = (store.failure(key)["error"] for key in store.failed_keys())
    assert error == "no result after 30 seconds (`timeout` in the grid)"


def test_without_ray_the_user_is_told_what_to_install(tmp_path, monkeypatch):
    grid, _ = small_grid(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(LensError, match=r"pip install .subspacelens\[ray\]"):
        run_sweep(grid, tmp_path / "out", backend="ray")
