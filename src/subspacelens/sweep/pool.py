"""What a sweep asks of those who do its work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

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


class Pool(Protocol):
    """Workers by name. `send` hands a job to an idle one; `wait` blocks for at most `seconds` until
    some have something to say; `close` ends all of them at once."""

    @property
    def workers(self) -> Sequence[int]: ...
    def send(self, worker: int, job: Job) -> None: ...
    def wait(self, seconds: float) -> list[Report]: ...
    def close(self) -> None: ...


class SerialPool:
    """One worker: this process itself."""

    workers = (0,)

    def __init__(self, threads: int, device: str | None = None) -> None:
        self._before = torch.get_num_threads()
        torch.set_num_threads(threads)
        self._worker = Worker(device)
        self._job: Job | None = None

    def send(self, worker: int, job: Job) -> None:
        self._job = job

    def wait(self, seconds: float) -> list[Report]:
        job, self._job = self._job, None
        return [] if job is None else [attempt(self._worker, 0, job)]

    def close(self) -> None:
        torch.set_num_threads(self._before)


def attempt(worker: Worker, name: int, job: Job) -> Report:
    """The report of a job; an exception is one, too."""
    try:
        return Report(name, worker.run(job.cell, job.sites))
    except Exception as error:
        text = (str(error).strip().splitlines() or [""])[0]
        return Report(name, error=f"{type(error).__name__}: {text}")
