"""RAVEL's second loss (Huang et al. 2024, arXiv 2402.17700): what does not change z must not change
the answer."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..core.errors import TaskError
from ..engine.replay import Piece, Replay
from .change import classes
from .loss import wide


@dataclass(frozen=True, eq=False)
class Isolate:
    """`weight` times the squared change of the logit difference, over its usual size, in nats, when
    a base takes the subspace's part of another prompt of the same z: `changes` (n, d) from one to
    the other, `clean` (n,) the logit difference before, and `size` the mean of its absolute."""

    gradients: ClassVar[int] = 1
    weight: float
    changes: Tensor = field(repr=False)
    clean: Tensor = field(repr=False)
    size: float

    @classmethod
    def at(cls, weight: float, replay: Replay) -> Isolate:
        """Raises `TaskError` for pairs without z and where z has one value."""
        clean = replay.logit_diffs(torch.zeros_like(replay.base))
        size = max(float(clean.abs().mean()), torch.finfo(clean.dtype).tiny)
        return cls(weight, same_class_changes(replay), clean, size)

    def of(self, piece: Piece, basis: Tensor) -> Tensor:
        moved = self.changes[piece.pairs.to(self.changes.device)].to(basis)
        change = wide(piece.logit_diff(((moved @ basis) @ basis.T)[None]))[0]
        return self.weight * (change - self.clean[piece.pairs].to(change)).square() / self.size

    def subset(self, pairs: Tensor) -> Isolate:
        changes = self.changes[pairs.to(self.changes.device)]
        return replace(self, changes=changes, clean=self.clean[pairs])


def same_class_changes(replay: Replay) -> Tensor:
    """From each base to another prompt of its z, (n, d): of all bases and then all sources that
    have it, the one half of them further on. Raises `TaskError` as `classes`, and where no other
    prompt has a base's z."""
    both = classes(replay.pairs)
    x = torch.cat([replay.base, replay.source])
    z = [before for before, _ in both] + [after for _, after in both]
    rows = []
    for number, value in enumerate(z[: len(both)]):
        alike = [other for other, its in enumerate(z) if its == value]
        if len(alike) < 2:
            raise TaskError(
                f"task {replay.pairs.name}: no other prompt has the z of pair {number}, {value}: "
                "isolate takes two of each value"
            )
        there = alike[(alike.index(number) + len(alike) // 2) % len(alike)]
        rows.append(x[there] - x[number])
    return torch.stack(rows)
