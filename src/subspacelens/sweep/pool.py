"""What a sweep asks of those who do its work."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ..core.site import Site
from .cell import Outcome, Worker
from .schedule import Job


@dataclass(frozen=True)
class Report:
    """What a worker says about its job: the outcome, or the error; `gone`: the worker died, and
    another one has its name now."""

    worker: int
    outcome: Outcome | None = None
    error: str = ""
    gone: bool = False


class Works(Protocol):
    """What computes a cell; `sites` are those that it is worth capturing with it."""

    def run(self, cell: Any, sites: Sequence[Site]) -> Outcome: ...


class Pool(Protocol):
    """Workers by name. `send` hands a job to an idle one; `wait` blocks for at most `seconds` until
    some have something to say; `close` ends all of them at once."""

    @property
    def workers(self) -> Sequence[int]: ...
    def send(self, worker: int, job: Job) -> None: ...
    def wait(self, seconds: float) -> list[Report]: ...
    def close(self) -> None: ...


class SerialPool:
    """One worker: this process itself.

    What takes more than `timeout` seconds is broken off where the interpreter next gets a say: not
    inside one call into a library, and only in the main thread of a system that has alarms.
    """

    workers = (0,)

    def __init__(
        self, threads: int, device: str | None = None, *, timeout: float = math.inf
    ) -> None:
        self._before = torch.get_num_threads()
        torch.set_num_threads(threads)
        self._device, self._timeout = device, timeout
        self._worker = Worker(device)
        self._job: Job | None = None

    def send(self, worker: int, job: Job) -> None:
        self._job = job

    def wait(self, seconds: float) -> list[Report]:
        job, self._job = self._job, None
        if job is None:
            return []
        try:
            with _alarm(self._timeout):
                return [attempt(self._worker, 0, job)]
        except _Late:
            self._worker = Worker(self._device)
            return [Report(0, error=too_long(self._timeout), gone=True)]

    def close(self) -> None:
        torch.set_num_threads(self._before)


class _Late(BaseException):
    """Not an `Exception`, so that no handler on the way takes it for a failure of its own."""


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raises `_Late` inside after `seconds`, where that can be done."""
    main = threading.current_thread() is threading.main_thread()
    if math.isinf(seconds) or not main or not hasattr(signal, "setitimer"):
        yield
        return

    def ring(_signal: int, _frame: object) -> None:
        raise _Late

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def too_long(seconds: float) -> str:
    """The error of a cell that took more than `seconds`."""
    return f"no result after {seconds:g} seconds (`timeout` in the grid)"


def attempt(worker: Works, name: int, job: Job) -> Report:
    """The report of a job; an exception is one, too."""
    try:
        return Report(name, worker.run(job.cell, job.sites))
    except Exception as error:
        text = (str(error).strip().splitlines() or [""])[0]
        return Report(name, error=f"{type(error).__name__}: {text}")
