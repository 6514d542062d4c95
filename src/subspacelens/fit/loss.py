"""What a fit lowers: a loss of the patched model's answers, and its slopes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, Protocol, get_args

import torch
from torch import Tensor

from ..core.errors import SubspaceError
from ..engine.replay import Piece, Replay

Loss = Literal["logit-difference", "cross-entropy"]
"""logit(answer) - logit(target) in nats, or the cross-entropy of the target over the whole
vocabulary."""
LOSSES: tuple[Loss, ...] = get_args(Loss)


class Term(Protocol):
    """What a fit lowers beside the loss. `gradients`: how many of the model's `of` takes a pair."""

    gradients: ClassVar[int]

    def of(self, piece: Piece, basis: Tensor) -> Tensor:
        """For each pair of the piece (n,), in nats, differentiable in the basis."""
        ...

    def subset(self, pairs: Tensor) -> Term:
        """The same for the pairs at these positions."""
        ...


@dataclass(frozen=True, eq=False, kw_only=True)
class Objective:
    """What a fit lowers at a site: the mean over the pairs of `loss` when a basis is patched, plus
    each of `terms`. `within`, orthonormal (dim, m), is where the basis must lie, None for anywhere:
    it is `within` times a basis of m rows."""

    loss: Loss
    replay: Replay
    within: Tensor | None = field(default=None, repr=False)
    terms: tuple[Term, ...] = ()

    @property
    def gradients(self) -> int:
        """Gradients of single pairs that `descend` takes."""
        each = 1 + sum(term.gradients for term in self.terms)
        return each * len(self.replay.pairs)

    @property
    def width(self) -> int:
        """m, or the width of the site."""
        return self.replay.base.shape[1] if self.within is None else self.within.shape[1]

    def lifted(self, inside: Tensor) -> Tensor:
        """Columns (m, k) as columns of the site's space (dim, k)."""
        return inside if self.within is None else self.within.to(inside) @ inside

    def subset(self, pairs: Tensor) -> Objective:
        """The same for the pairs at these positions."""
        terms = tuple(term.subset(pairs) for term in self.terms)
        return replace(self, replay=self.replay.subset(pairs), terms=terms)

    def descend(self, free: Tensor) -> float:
        """The value when the span of `free` (m, k) is patched; its gradient is added to
        `free.grad`. Piece by piece, so that any number of pairs fits the memory budget."""
        difference = wide(self.replay.difference)
        value = 0.0
        for piece in self.replay.pieces():
            basis = self.lifted(retracted(free)).to(difference)
            moved = difference[piece.pairs.to(difference.device)]
            delta = ((moved @ basis) @ basis.T)[None]
            value += self._add(_losses(self.loss, self.replay, piece, delta), free)
            for term in self.terms:
                basis = self.lifted(retracted(free)).to(difference)
                value += self._add(term.of(piece, basis), free)
        return value

    def _add(self, each: Tensor, free: Tensor) -> float:
        part = each.sum() / len(self.replay.pairs)
        part.backward(inputs=[free])
        return float(part.detach())


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
