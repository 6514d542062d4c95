"""Kills a sweep at random moments, again and again, and looks at what it leaves behind."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextvars import Context
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil

from ..core.errors import ResultError
from ..core.progress import bar
from ..sweep.grid import FitSpec, Grid, TaskSpec
from ..sweep.local import LocalPool
from ..sweep.plan import Cell, ModelFacts, cells_of, facts_of
from ..sweep.pool import Pool, SerialPool
from ..sweep.run import drive, look
from ..sweep.store import Store
from .tiny import tiny_model, tiny_pairs

WORKERS = 2
LONGEST = 600.0
CLUSTER_ENDS_IN = 30.0
"""Seconds that a cluster may take to end."""
TRIES = 50
TARGETS = ("driver", "worker", "all")


@dataclass(kw_only=True)
class CrashReport:
    """`kills` by what was hit; `rounds`: sweeps of `cells` cells brought to their end meanwhile.

    `lost`, `changed`, `rewritten` and `damaged` count cells, over all rounds, that were missing at
    the end, differ from an undisturbed serial run, were written a second time, or were found
    half-written. `orphans`: processes that outlived their sweep."""

    kills: dict[str, int] = field(default_factory=lambda: dict.fromkeys(TARGETS, 0))
    rounds: int = 0
    cells: int = 0
    lost: int = 0
    changed: int = 0
    rewritten: int = 0
    damaged: int = 0
    orphans: int = 0
    seconds: float = 0.0

    @property
    def total(self) -> int:
        """All kills."""
        return sum(self.kills.values())

    @property
    def passed(self) -> bool:
        bad = self.lost + self.changed + self.rewritten + self.damaged + self.orphans
        return self.rounds > 0 and bad == 0


@dataclass(frozen=True)
class Target:
    """What is killed: `sweep` runs a sweep of cells into a folder and returns when all is done;
    `workers` finds the processes that work for it, of the driver's process."""

    sweep: Callable[[Sequence[Cell], Path], None]
    workers: Callable[[psutil.Process], list[psutil.Process]]


def crash_local(kills: int = 100, seed: int = 0) -> CrashReport:
    """SIGKILLs the process of a sweep, one of its workers, or all of them at once, at random
    moments, `kills` times, each time starting it again if need be; compares what is there at the
    end with an undisturbed serial run.

    Needs a system that forks. Raises `ResultError` if a sweep does not end.
    """
    return _crash(Target(_local, lambda driver: driver.children(recursive=True)), kills, seed)


def crash_ray(kills: int = 20, seed: int = 0) -> CrashReport:
    """The same on a Ray cluster of two nodes, started for it on this machine."""
    context = get_context("fork")
    ours, theirs = context.Pipe()
    holder = context.Process(target=_hold_cluster, args=(theirs,))
    holder.start()
    try:
        address = ours.recv()
        return _crash(Target(_OnRay(address), _ray_workers), kills, seed)
    except EOFError:
        raise ResultError("the Ray cluster for the test could not be started") from None
    finally:
        ours.close()
        holder.terminate()
        holder.join(CLUSTER_ENDS_IN)
        holder.kill()


def small_grid(folder: Path) -> tuple[Grid, list[ModelFacts]]:
    """64 cells of a tiny random model, written to `folder`."""
    grid = Grid(
        models=(str(tiny_model(folder / "model")),),
        tasks=(TaskSpec(name=str(tiny_pairs(folder / "pairs.jsonl"))),),
        sites=("L*.mlp_act@END", "L*.resid_post@NOUN"),
        fits=(FitSpec(method="random"), FitSpec(method="das", steps=6)),
        seeds=(0, 1, 2, 3),
        kind="fit",
        pairs=24,
        memory="64MB",
        tries=TRIES,
    )
    return grid, [facts_of(spec, grid) for spec in grid.models]


def contents(store: Store) -> dict[str, str]:
    """Content hash of every whole record."""
    records = ((key, store.load(key)) for key in store.done_keys())
    return {key: record["content_sha256"] for key, record in records if record is not None}


def _crash(target: Target, kills: int, seed: int) -> CrashReport:
    started = time.monotonic()
    rng = random.Random(seed)
    report = CrashReport()
    with tempfile.TemporaryDirectory() as name, bar("kills", kills) as show:
        folder = Path(name)
        grid, models = small_grid(folder)
        cells = cells_of(grid, models)
        report.cells = len(cells)
        _wait_for(_forked(_serial, cells, folder / "undisturbed"))
        expected = contents(Store(folder / "undisturbed"))
        began = time.monotonic()
        _wait_for(_forked(target.sweep, cells, folder / "timed"))
        longest = time.monotonic() - began
        while report.total < kills:
            out = folder / f"round-{report.rounds}"
            for _ in _kills_until_done(target, cells, out, longest, kills, rng, report):
                show(report.total, "kills")
            report.rounds += 1
            inspect_store(out, cells, expected, report)
    report.seconds = time.monotonic() - started
    return report


def _kills_until_done(
    target: Target, cells: Sequence[Cell], out: Path, longest: float, kills: int,
    rng: random.Random, report: CrashReport,
) -> Iterator[None]:  # fmt: skip
    """Runs one sweep to its end, killing it on the way while there are kills left."""
    inodes: dict[str, int] = {}
    sweep = _forked(target.sweep, cells, out)
    while True:
        if report.total >= kills:
            _wait_for(sweep)
        else:
            sweep.join(rng.uniform(0, longest))
        if not sweep.is_alive():
            if sweep.exitcode != 0:
                raise ResultError(f"a sweep ended with code {sweep.exitcode}")
            return
        killed = _kill(sweep, target, rng)
        if killed is None:
            continue
        what, orphans = killed
        report.kills[what] += 1
        report.orphans += orphans
        if what != "worker":
            sweep = _forked(target.sweep, cells, out)
        report.rewritten += _rewritten(out, inodes)
        yield


def _kill(sweep: BaseProcess, target: Target, rng: random.Random) -> tuple[str, int] | None:
    """Kills a random part of a sweep; says which, and how many workers outlived their driver. None
    if it was gone."""
    try:
        driver = psutil.Process(sweep.pid)
        workers = target.workers(driver)
        what = rng.choice(TARGETS if workers else TARGETS[:1])
        chosen = {"driver": [driver], "all": [driver, *workers]}.get(what) or rng.sample(workers, 1)
        for process in chosen:
            process.send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        return None
    if what == "worker":
        return what, 0
    sweep.join()
    return what, len(psutil.wait_procs(workers, timeout=30)[1])


def _rewritten(out: Path, inodes: dict[str, int]) -> int:
    """How many records are not the files that they were when first seen."""
    if not (out / "records").exists():
        return 0
    store = Store(out, create=False)
    now = {key: store.path(key).stat().st_ino for key in store.done_keys()}
    return sum(inodes.setdefault(key, inode) != inode for key, inode in now.items())


def inspect_store(
    out: Path, cells: Sequence[Cell], expected: dict[str, str], report: CrashReport
) -> None:
    """Adds to the report what a finished sweep lacks, or has otherwise than expected."""
    store = Store(out)
    records = contents(store)
    report.lost += sum(cell.key not in records for cell in cells)
    report.changed += sum(expected.get(key) != content for key, content in records.items())
    report.damaged += len(list(store.done_keys())) - len(records)
    report.damaged += len(list(store.damaged.glob("*"))) + len(list(store.building.iterdir()))


def _forked(sweep: Callable, *args: object) -> BaseProcess:
    """A child that knows nothing of this process's progress bars."""
    process = get_context("fork").Process(target=Context().run, args=(sweep, *args))
    process.start()
    return process


def _wait_for(sweep: BaseProcess) -> None:
    sweep.join(LONGEST)
    if sweep.is_alive():
        sweep.kill()
        raise ResultError(f"a sweep did not end within {LONGEST:.0f} s")
    if sweep.exitcode != 0:
        raise ResultError(f"a sweep ended with code {sweep.exitcode}")


def _serial(cells: Sequence[Cell], out: Path) -> None:
    _sweep(cells, out, lambda: SerialPool(1))


def _local(cells: Sequence[Cell], out: Path) -> None:
    _sweep(cells, out, lambda: LocalPool(WORKERS, 1, start="fork"))


@dataclass(frozen=True)
class _OnRay:
    address: str

    def __call__(self, cells: Sequence[Cell], out: Path) -> None:
        from ..sweep.cluster import RayPool, connected

        with connected(self.address):
            _sweep(cells, out, lambda: RayPool(WORKERS, 1, len(cells)))


def _sweep(cells: Sequence[Cell], out: Path, open_pool: Callable[[], Pool]) -> None:
    store = Store(out)
    tally, missing = look(store, cells)
    if not missing:
        return
    pool = open_pool()
    try:
        drive(missing, store, pool, TRIES, tally)
    finally:
        pool.close()


def _ray_workers(driver: psutil.Process) -> list[psutil.Process]:
    """Actors of ours, known by the name that Ray gives their processes."""
    workers = []
    for process in psutil.process_iter(["cmdline", "uids"]):
        if any("ray::RayWorker" in part for part in process.info["cmdline"] or ()):
            workers.append(process)
    return workers


def _hold_cluster(pipe: Connection) -> None:
    """Keeps a cluster of two nodes until it is told to end (SIGTERM)."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    try:
        pipe.send(cluster.address)
        with contextlib.suppress(EOFError, OSError):
            pipe.recv()
    finally:
        cluster.shutdown()
