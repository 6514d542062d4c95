"""Workers as Ray actors, on one machine or many."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..core.errors import LensError
from .grid import Grid
from .plan import ModelFacts, facts_of
from .pool import Report, too_long
from .schedule import Job


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """A connection to the cluster at `address`, else to a new one on this machine; one that is
    open already is used and left open. Raises `LensError` without Ray or without the cluster."""
    ray = _ray()
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        more = {} if address else {"include_dashboard": False}
        ray.init(address=address or "local", log_to_driver=False, logging_level="ERROR", **more)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise LensError(f"no Ray cluster at {address or 'this machine'}: {_line(error)}") from None
    try:
        yield
    finally:
        ray.shutdown()


def facts_of_all(grid: Grid) -> list[ModelFacts]:
    """Looks at the grid's models on the cluster: this machine need not have them."""
    ray = _ray()
    look = ray.remote(facts_of)
    device = "cuda" if _gpus(ray) else "cpu"
    try:
        return ray.get([look.remote(spec, grid, device) for spec in grid.models])
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        raise (cause if isinstance(cause, LensError) else error) from None


class RayWorker:
    """The actor: a worker with its thread count."""

    def __init__(self, threads: int) -> None:
        import torch

        from .cell import Worker

        torch.set_num_threads(threads)
        self._worker = Worker()

    def placed(self) -> bool:
        """Answers once the actor is there."""
        return True

    def run(self, name: int, job: Job) -> Report:
        from .pool import attempt

        return attempt(self._worker, name, job)


class RayPool:
    """Actors that each hold `threads` CPUs, and a GPU where the cluster has some.

    As many as the nodes have room for, one a GPU where there are some, and `workers` at most. One
    that dies is replaced while there is room for it; one without a result `timeout` seconds after
    it had both its place and its job is killed. Raises `LensError` where no node has `threads`
    CPUs.
    """

    def __init__(
        self, workers: int | None, threads: int, jobs: int, *, timeout: float = math.inf
    ) -> None:
        self._ray = _ray()
        self._threads, self._timeout = threads, timeout
        self._gpus = _gpus(self._ray)
        room = self._room()
        if room == 0:
            raise LensError(
                f"no node of the Ray cluster has {threads} CPUs for a worker: lower `threads` in "
                "the grid"
            )
        count = min(workers or room, room, jobs)
        self._placed: dict[int, Any] = {}
        self._actors = {name: self._start(name) for name in range(count)}
        self._running: dict[Any, int] = {}
        self._deadlines: dict[Any, float] = {}

    @property
    def workers(self) -> Sequence[int]:
        return tuple(self._actors)

    def send(self, worker: int, job: Job) -> None:
        self._running[self._actors[worker].run.remote(worker, job)] = worker

    def wait(self, seconds: float) -> list[Report]:
        ready, rest = self._ray.wait(list(self._running), num_returns=1, timeout=seconds)
        if ready and rest:
            ready += self._ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        return [self._report(ref) for ref in ready] + [self._kill(ref) for ref in self._late()]

    def close(self) -> None:
        for actor in self._actors.values():
            self._ray.kill(actor)

    def _report(self, ref: Any) -> Report:
        name = self._running.pop(ref)
        self._deadlines.pop(ref, None)
        try:
            return self._ray.get(ref)
        except self._ray.exceptions.RayError as error:
            return self._replaced(name, f"the worker died: {_line(error)}")

    def _late(self) -> list[Any]:
        """Jobs that are over time; it starts when the actor has its place in the cluster."""
        now = time.monotonic()
        for ref, name in self._running.items():
            if ref not in self._deadlines and self._ray.wait([self._placed[name]], timeout=0)[0]:
                self._deadlines[ref] = now + self._timeout
        return [ref for ref, end in self._deadlines.items() if end < now]

    def _kill(self, ref: Any) -> Report:
        del self._deadlines[ref]
        return self._replaced(self._running.pop(ref), too_long(self._timeout))

    def _replaced(self, name: int, error: str) -> Report:
        self._ray.kill(self._actors.pop(name))
        if not self._actors or len(self._actors) < self._room():
            self._actors[name] = self._start(name)
        return Report(name, error=error, gone=True)

    def _start(self, name: int) -> Any:
        actor = self._ray.remote(RayWorker).options(
            num_cpus=self._threads, num_gpus=self._gpus, max_restarts=0,
            scheduling_strategy="SPREAD",
        )  # fmt: skip
        started = actor.remote(self._threads)
        self._placed[name] = started.placed.remote()
        return started

    def _room(self) -> int:
        """Actors that fit: each needs its CPUs, and its GPU, on one node."""
        living = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        by_cpu = [int(has.get("CPU", 0)) // self._threads for has in living]
        if not self._gpus:
            return sum(by_cpu)
        return sum(min(n, int(has.get("GPU", 0))) for n, has in zip(by_cpu, living, strict=True))


def _gpus(ray: Any) -> int:
    """GPUs that each worker takes."""
    return 1 if ray.cluster_resources().get("GPU", 0) >= 1 else 0


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise LensError(
            'the backend ray needs Ray: pip install "subspacelens[ray]", or use --backend local'
        ) from None
    return ray


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
