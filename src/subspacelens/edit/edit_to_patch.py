"""From a rank-1 edit to a zero-setting patch that does nearly the same (arXiv 2311.17030 §6).

Wanted is v with W (x - v vᵀx) ≈ W x + a bᵀx for activations x with second moment Σ. With z = √β v
and W z = β a, the patch writes -a zᵀx, so that what is left to minimise is E[(zᵀx + bᵀx)²].
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..core.errors import EditError
from .second_moments import SecondMoment

SMALLEST = 1e-3
"""A best β smaller in size than this share of the edits' median is taken as that share."""


@dataclass(frozen=True, eq=False)
class ZeroDirections:
    """`v` (n, d), not of unit norm: the patch is x - v vᵀx, or x + v vᵀx where `sign` (n,) is -1.

    `beta` (n,) is β; `residual` (n,) is E[(zᵀx + bᵀx)²] against `variance` (n,) = bᵀΣb of the edit
    itself; `ratio` (n,) = zᵀΣz / bᵀΣb.
    """

    v: Tensor = field(repr=False)
    sign: Tensor = field(repr=False)
    beta: Tensor
    residual: Tensor
    variance: Tensor
    ratio: Tensor


@dataclass(frozen=True, eq=False)
class ZeroSetter:
    """What all edits of one layer share: Σ⁻¹Wᵀ (d, d_model) and G = W Σ⁻¹ Wᵀ."""

    weight: Tensor = field(repr=False)
    moment: SecondMoment
    spread: Tensor = field(repr=False)
    factor: Tensor = field(repr=False)

    @classmethod
    def of(cls, weight: Tensor, moment: SecondMoment) -> ZeroSetter:
        """Raises `EditError` where W, (d_model, d), does not reach all of its outputs."""
        w = weight.double().cpu()
        spread = moment.solve(w.T)
        factor, failed = torch.linalg.cholesky_ex(w @ spread)
        if int(failed):
            raise EditError("the down-projection does not have full row rank: no patch writes a")
        return cls(w, moment, spread, factor)

    def inner(self, x: Tensor) -> Tensor:
        """G⁻¹ x for rows (n, d_model)."""
        return torch.cholesky_solve(x.T, self.factor).T

    def z(self, a: Tensor, b: Tensor, beta: Tensor) -> Tensor:
        """argmin of E[(zᵀx + bᵀx)²] under W z = β a: z = -b + Σ⁻¹Wᵀ G⁻¹ (β a + W b), (n, d)."""
        return -b + self.inner(beta[:, None] * a + b @ self.weight.T) @ self.spread.T

    def residual(self, a: Tensor, b: Tensor, beta: Tensor) -> Tensor:
        """(β a + W b)ᵀ G⁻¹ (β a + W b), what is left at that z, (n,)."""
        gap = beta[:, None] * a + b @ self.weight.T
        return (gap * self.inner(gap)).sum(-1)

    def directions(self, a: Tensor, b: Tensor) -> ZeroDirections:
        """For edits a bᵀ, (n, d_model) and (n, d). β* = -aᵀG⁻¹Wb / aᵀG⁻¹a is the best; where it is
        negative, its mirror: x + v vᵀx with the signs of b exchanged."""
        a, b = a.double().cpu(), b.double().cpu()
        inner = self.inner(a)
        best = -(inner * (b @ self.weight.T)).sum(-1) / (inner * a).sum(-1)
        sign = torch.where(best < 0, -1.0, 1.0).double()
        floor = SMALLEST * best.abs().median().clamp(min=1e-12)
        beta = best.abs().clamp(min=floor)
        z = self.z(a, sign[:, None] * b, beta)
        effective = self.moment.effective
        spread_z = ((z @ effective) * z).sum(-1)
        variance = ((b @ effective) * b).sum(-1)
        return ZeroDirections(
            z / beta.sqrt()[:, None],
            sign,
            beta,
            self.residual(a, sign[:, None] * b, beta),
            variance,
            spread_z / variance,
        )
