"""One capture for all splits of a task, and the pieces that fits and audits ask for."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..core.site import Site
from ..model.lens import LensModel
from ..tasks.pairset import PairSet, Task
from .capture import Capture, capture
from .outcomes import Outcomes
from .store import kept_capture


@dataclass(frozen=True)
class TaskCapture:
    """Captures of the splits of one task. `reversed` is the test split with base and source
    exchanged; `held_out` is None where the task has no held-out template. `shared` keeps what was
    measured once for audits of all sites, by what it is.

    >>> captures = capture_task(lens, task, [site])
    >>> captures.test.at(site).base.shape  # (pairs, dim)
    """

    task: Task
    train: Capture
    test: Capture
    reversed: Capture
    held_out: Capture | None
    shared: dict[Hashable, Any] = field(default_factory=dict, init=False, compare=False, repr=False)


def capture_task(
    lens: LensModel,
    task: Task,
    sites: Iterable[Site | str],
    *,
    shifted: bool = False,
    keep: Path | None = None,
    memory: int | None = None,
) -> TaskCapture:
    """Runs every distinct prompt of the task once, for all `sites`; with a folder `keep`, only if
    that was not done before (`kept_capture`), and what memory does not hold stays there. `memory`
    is the budget of replays in bytes, and of what of such a capture is taken into memory. Raises
    what `capture` does.

    >>> captures = sl.capture_task(lens, sl.ioi(lens.tokenizer), ["L18.mlp_act@S2"])
    """
    swapped = task.test.swapped()
    parts = [task.train, task.test, swapped] + ([task.held_out] if task.held_out else [])
    together = PairSet(task.name, "all", tuple(pair for part in parts for pair in part.pairs))
    if keep is None:
        whole = capture(lens, together, sites, shifted=shifted, memory=memory)
    else:
        whole = kept_capture(lens, together, sites, keep, shifted=shifted, memory=memory)
    ends = torch.tensor([0] + [len(part) for part in parts]).cumsum(0).tolist()
    pieces = [
        whole.select(part, torch.arange(start, end))
        for part, start, end in zip(parts, ends[:-1], ends[1:], strict=True)
    ]
    held_out = pieces[3] if task.held_out else None
    return TaskCapture(task, pieces[0], pieces[1], _oriented(pieces[2]), held_out)


def _oriented(captured: Capture) -> Capture:
    """Answer and target exchanged if the model prefers the target on average: on a source prompt
    the pair does not say which of the two tokens is right (of a fact the target is, of the order
    of two names still the answer)."""
    if float(captured.clean.logit_diff.mean()) >= 0:
        return captured
    clean = Outcomes(-captured.clean.logit_diff, captured.clean.top)
    return replace(captured, pairs=captured.pairs.exchanged(), clean=clean)
