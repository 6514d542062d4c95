"""Who does what next: plain values, no processes, so that local and Ray runs share it."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

from ..core.site import Site
from .plan import Cell

SITES_PER_CAPTURE = 8


@dataclass(frozen=True)
class Job:
    """A cell, and the sites that are worth capturing with it."""

    cell: Cell
    sites: tuple[Site, ...]


@dataclass
class Schedule:
    """Cells in groups that share captures; a worker stays with a group until it is done.

    A cell that failed, or whose worker died, comes back alone, and fails for good after `tries`.
    """

    tries: int
    waiting: deque[deque[Job]]
    own: dict[Hashable, deque[Job]] = field(default_factory=dict)
    running: dict[Hashable, Job] = field(default_factory=dict)
    attempts: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, cells: Iterable[Cell], workers: int, tries: int) -> Schedule:
        """Groups of at most `SITES_PER_CAPTURE` sites, small enough that all workers have some."""
        by_group: dict[tuple, dict[Site, list[Cell]]] = {}
        for cell in cells:
            by_group.setdefault(cell.group, {}).setdefault(cell.site, []).append(cell)
        sites = sum(len(group) for group in by_group.values())
        size = max(1, min(SITES_PER_CAPTURE, sites // (2 * workers)))
        waiting: deque[deque[Job]] = deque()
        for group in by_group.values():
            names = tuple(group)
            for start in range(0, len(names), size):
                chosen = names[start : start + size]
                waiting.append(deque(Job(c, chosen) for site in chosen for c in group[site]))
        return cls(tries, waiting)

    def next(self, worker: Hashable) -> Job | None:
        """The next job of an idle worker; None if there is none at the moment."""
        jobs = self.own.get(worker)
        if not jobs:
            if not self.waiting:
                return None
            jobs = self.own[worker] = self.waiting.popleft()
        self.running[worker] = job = jobs.popleft()
        return job

    def done(self, worker: Hashable) -> Job:
        return self.running.pop(worker)

    def failed(self, worker: Hashable) -> tuple[Job, bool]:
        """The job that failed, and whether that was for good."""
        job = self.running.pop(worker)
        self.attempts[job.cell.key] += 1
        if self.attempts[job.cell.key] >= self.tries:
            return job, True
        self.waiting.append(deque([Job(job.cell, (job.cell.site,))]))
        return job, False

    def lost(self, worker: Hashable) -> tuple[Job, bool] | None:
        """The worker is gone: its job counts as failed, the rest of its group waits again. None if
        it was idle."""
        rest = self.own.pop(worker, None)
        if rest:
            self.waiting.appendleft(rest)
        return self.failed(worker) if worker in self.running else None

    @property
    def idle(self) -> bool:
        """Nothing runs and nothing waits."""
        return not (self.running or self.waiting or any(self.own.values()))
