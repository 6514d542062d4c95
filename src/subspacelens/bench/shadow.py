"""The optimiser of pyvene's loop, run by replay: which directions it comes to, not how fast."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

from ..engine.replay import Replay
from .peer_process import adam, begin_at, read_job


class _Kept:
    def __init__(self) -> None:
        self.steps: list[tuple[float, Tensor]] = []

    def step(self, loss: float, direction: Tensor) -> None:
        self.steps.append((loss, direction.detach().clone()))


def shadow(replay: Replay, job_file: Path) -> list[tuple[float, Tensor]]:
    """Training loss and direction (dim, 1) after it, of each step of Adam on an orthogonal
    parametrisation as pyvene's `LowRankRotatedSpaceIntervention` has it, for the same job."""
    job = read_job(str(job_file))
    layer = orthogonal(nn.Linear(1, len(job.start), bias=False, device=job.device))
    begin_at(layer, job.start)
    difference = replay.difference.float()

    def direction() -> Tensor:
        return cast(Tensor, layer.weight)

    def loss_of() -> Tensor:
        basis = direction()
        delta = ((difference @ basis) @ basis.T)[None]
        parts = [piece.logit_diff(piece.of(delta)).sum() for piece in replay.pieces()]
        return torch.stack(parts).sum() / len(replay.pairs)

    kept = _Kept()
    adam(loss_of, list(layer.parameters()), direction, job, kept)
    return kept.steps
