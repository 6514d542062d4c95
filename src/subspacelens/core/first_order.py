"""The best subspace to patch, to first order: a closed form of differences and gradients.

A patch of an orthonormal basis V lowers the mean logit difference by tr(Vᵀ M V), with
M = (1/2n) Σ (Δᵢ gᵢᵀ + gᵢ Δᵢᵀ), Δᵢ source minus base activation of pair i, and gᵢ minus the gradient
of its logit difference. The best V spans the top eigenvectors of M, and the whole component does
tr(M). Where all pairs share one Δ and one g, M has two eigenvalues, ½ (Δ·g ± ‖Δ‖‖g‖), and the upper
one's eigenvector is Δ/‖Δ‖ + g/‖g‖: half of it reads what varies, half writes what acts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .geometry import unit

ROUNDING = 1e-12
"""Eigenvalues of M below this share of its largest are taken for zero."""


@dataclass(frozen=True, eq=False)
class FirstOrder:
    """M's eigenvalues (m,), in nats, largest first, and its eigenvectors (dim, m), float64, on the
    span of differences and gradients, m <= min(dim, 2n); on all that is orthogonal M is zero."""

    values: Tensor
    vectors: Tensor = field(repr=False)

    @property
    def whole(self) -> float:
        """tr(M): by how many nats the patch of the whole component lowers the logit difference."""
        return float(self.values.sum())

    @property
    def cosine(self) -> float:
        """(λ₊ + λ₋) / (λ₊ - λ₋) of the largest and the smallest eigenvalue of M, 0 if M is zero.

        Where all pairs share one difference and one gradient, up to a sign common to both in each
        pair, it is the cosine between the two: 1 where the best direction does what the whole
        component does, 0 where the whole does nothing, and the best direction is an illusion.
        """
        high, low = max(float(self.values[0]), 0.0), min(float(self.values[-1]), 0.0)
        return (high + low) / (high - low) if high > low else 0.0

    def effect(self, k: int) -> float:
        """By how many nats the best `k` dimensions, `basis(k)`, lower the logit difference."""
        _, beyond = self._chosen(k)
        return float(self.values[: k - beyond].sum())

    def basis(self, k: int) -> Tensor:
        """The top `k` eigenvectors of M, float64 (dim, k), largest eigenvalue first. Where fewer
        are above zero, directions follow on which M is zero (the coordinate axes, made orthogonal
        to the span), and those below zero come last. 1 <= k <= dim."""
        inside, beyond = self._chosen(k)
        high, low = self.vectors[:, : k - beyond].tensor_split([inside], dim=1)
        return torch.cat([high, self._orthogonal(beyond), low], dim=1)

    def _chosen(self, k: int) -> tuple[int, int]:
        """How many of the top `k` are in the span and not below zero, and how many beyond it."""
        zero = -ROUNDING * float(self.values.abs().max())
        inside = min(k, int((self.values >= zero).sum()))
        return inside, min(k - inside, len(self.vectors) - len(self.values))

    def _orthogonal(self, count: int) -> Tensor:
        """`count` orthonormal directions (dim, count) that are orthogonal to the span."""
        span = self.vectors.shape[1]
        axes = torch.eye(len(self.vectors), count, dtype=torch.float64)
        return torch.linalg.qr(torch.cat([self.vectors, axes], dim=1)).Q[:, span:]


def first_order(difference: Tensor, gradients: Tensor) -> FirstOrder:
    """M of n pairs from Δ (n, dim) and the gradients (n, dim) of logit(answer) - logit(target) at
    the base activations, in nats a unit (`Replay.gradients`), by an eigenproblem of at most 2n.

    >>> found = first_order(replay.difference, replay.gradients())
    >>> found.basis(2), found.effect(2), found.whole
    """
    delta, g = difference.cpu().double(), -gradients.cpu().double()
    q, r = torch.linalg.qr(torch.cat([delta, g]).T)
    of_delta, of_g = r.split(len(delta), dim=1)
    product = of_delta @ of_g.T / (2 * len(delta))
    values, inner = torch.linalg.eigh(product + product.T)
    return FirstOrder(values.flip(0), q @ inner.flip(1))


def first_order_of_each(difference: Tensor, gradients: Tensor) -> Tensor:
    """For each pair alone the unit direction (n, dim), float64, that lowers its logit difference
    most, to first order: Δ/‖Δ‖ + g/‖g‖, made of length one.

    A pair whose gradient is zero, or opposed to Δ, so that no direction lowers anything, gets
    Δ/‖Δ‖, and one without a difference g/‖g‖. Arguments: see `first_order`.
    """
    delta = unit(difference.cpu().double().T)
    total = delta + unit(-gradients.cpu().double().T)
    alike = total.norm(dim=0) > ROUNDING
    return unit(torch.where(alike, total, delta)).T
