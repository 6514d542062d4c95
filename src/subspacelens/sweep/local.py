"""Workers as processes of this machine."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_all_start_methods, get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from .cell import Worker
from .pool import Report, Works, attempt, too_long
from .schedule import Job

SECONDS_TO_END = 2.0


def default_workers(threads: int) -> int:
    """A worker a GPU, or as many as the cores this process may use can give `threads` to."""
    if torch.cuda.is_available():
        return torch.cuda.device_count()
    return max(1, _cores() // threads)


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


@dataclass
class _Process:
    process: BaseProcess
    pipe: Connection


class LocalPool:
    """`count` processes that compute with `threads` threads each and keep the model loaded.

    They are started from a server process that has imported everything, so that a dead one is
    replaced at once, and they end with this process, however it ends. One that has no result after
    `timeout` seconds is killed. `works` makes, given its device, what does the jobs of one.
    """

    def __init__(
        self,
        count: int,
        threads: int,
        *,
        timeout: float = math.inf,
        start: str | None = None,
        works: Callable[[str | None], Works] = Worker,
    ) -> None:
        usual = "forkserver" if "forkserver" in get_all_start_methods() else "spawn"
        self._context: Any = get_context(start or usual)
        self._context.set_forkserver_preload(["subspacelens.sweep.local"])
        self._threads, self._timeout, self._works = threads, timeout, works
        self._deadlines: dict[int, float] = {}
        self._processes = {worker: self._start(worker) for worker in range(count)}

    @property
    def workers(self) -> Sequence[int]:
        return tuple(self._processes)

    @property
    def pids(self) -> list[int]:
        return [p.process.pid for p in self._processes.values() if p.process.pid is not None]

    def send(self, worker: int, job: Job) -> None:
        self._deadlines[worker] = time.monotonic() + self._timeout
        with suppress(OSError):
            self._processes[worker].pipe.send(job)

    def wait(self, seconds: float) -> list[Report]:
        ready = wait([p.pipe for p in self._processes.values()], seconds)
        ready = {name for name, p in self._processes.items() if p.pipe in ready}
        now = time.monotonic()
        late = {name for name, end in self._deadlines.items() if end < now} - ready
        return [*map(self._report, ready), *map(self._kill, late)]

    def close(self) -> None:
        living = [p.process for p in self._processes.values()]
        for process in living:
            process.terminate()
        deadline = time.monotonic() + SECONDS_TO_END
        for process in living:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
        for worker in self._processes.values():
            worker.pipe.close()

    def _report(self, name: int) -> Report:
        self._deadlines.pop(name, None)
        worker = self._processes[name]
        try:
            return worker.pipe.recv()
        except (EOFError, OSError):
            worker.process.join(SECONDS_TO_END)
            self._processes[name] = self._start(name)
            return Report(name, error=_death(worker.process.exitcode), gone=True)

    def _kill(self, name: int) -> Report:
        del self._deadlines[name]
        worker = self._processes[name]
        worker.process.kill()
        worker.process.join()
        worker.pipe.close()
        self._processes[name] = self._start(name)
        return Report(name, error=too_long(self._timeout), gone=True)

    def _start(self, name: int) -> _Process:
        ours, theirs = self._context.Pipe()
        gpus = torch.cuda.device_count()
        device = f"cuda:{name % gpus}" if gpus else None
        process = self._context.Process(
            target=_serve, args=(theirs, name, self._threads, device, self._works), daemon=True
        )
        with _without_interrupts():
            process.start()
        theirs.close()
        return _Process(process, ours)


@contextmanager
def _without_interrupts():
    """Ctrl-C goes to all processes of a terminal; those started here leave it to this one."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(
    pipe: Connection,
    name: int,
    threads: int,
    device: str | None,
    works: Callable[[str | None], Works],
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    worker = works(device)
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        pipe.send(attempt(worker, name, job))


def _die_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _death(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        return f"the worker was killed by signal {-exitcode}"
    return f"the worker ended with code {exitcode}"
