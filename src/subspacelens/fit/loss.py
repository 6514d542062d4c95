"""What a fit lowers: a loss of the patched model's answers, and its slopes."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from ..core.errors import SubspaceError
from ..engine.replay import Piece, Replay

Loss = Literal["logit-difference", "cross-entropy"]
"""logit(answer) - logit(target) in nats, or the cross-entropy of the target over the whole
vocabulary."""
LOSSES: tuple[Loss, ...] = get_args(Loss)


def descend(kind: Loss, replay: Replay, free: Tensor) -> float:
    """The mean loss over the pairs when the span of `free` (dim, k) is patched; its gradient is
    added to `free.grad`. Piece by piece, so that any number of pairs fits the memory budget."""
    difference = wide(replay.difference)
    value = 0.0
    for piece in replay.pieces():
        basis = retracted(free).to(difference)
        moved = difference[piece.pairs.to(difference.device)]
        delta = ((moved @ basis) @ basis.T)[None]
        part = _losses(kind, replay, piece, delta).sum() / len(replay.pairs)
        part.backward(inputs=[free])
        value += float(part.detach())
    return value


def slopes(kind: Loss, replay: Replay, delta: Tensor) -> tuple[Tensor, Tensor]:
    """Each pair's loss (n,) at base + `delta` (n, dim), and its gradient (n, dim) with respect to
    the activation there. Raises `SubspaceError` if that is not finite."""
    moved = delta.to(wide(replay.difference))
    found = torch.zeros_like(moved)
    values = torch.zeros_like(moved[:, 0])
    for piece in replay.pieces():
        here = piece.of(moved[None]).requires_grad_(True)
        losses = _losses(kind, replay, piece, here)
        (slope,) = torch.autograd.grad(losses.sum(), here)
        rows = piece.pairs.to(found.device)
        found[rows] = slope[0]
        values[rows] = losses.detach().flatten().to(values)
    if not bool(found.isfinite().all()):
        raise SubspaceError(
            f"{replay.site}: the gradient of the {kind} is not finite in {replay.lens.dtype}: load "
            "the model in float32 or bfloat16"
        )
    return values, found


def _losses(kind: Loss, replay: Replay, piece: Piece, delta: Tensor) -> Tensor:
    if kind == "logit-difference":
        return wide(piece.logit_diff(delta))
    if piece.reading is not None:
        return -piece.log_probs(delta)[0, :, 1]
    logits = piece.logits(delta)[0].float()
    targets = replay.answers[piece.pairs, 1].to(logits.device)
    return torch.nn.functional.cross_entropy(logits, targets, reduction="none")


def wide(x: Tensor) -> Tensor:
    """In float32 at least: what a line search compares is finer than half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def retracted(free: Tensor) -> Tensor:
    """An orthonormal basis of the span of `free` (d, k), differentiable."""
    if free.shape[1] == 1:
        return free / free.norm()
    q, r = torch.linalg.qr(free)
    return q * r.diagonal().sign()
