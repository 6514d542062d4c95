"""What is added to the base activation: small frozen patches with one pure method each.

Notation of the paper (arXiv 2311.17030 §2): base h_B, source h_A, Δ = h_A - h_B. Every patch maps
base and source (..., n, dim) to δ (..., n, dim), and the patched activation is h_B + δ.

>>> Full().delta(base, source)  # the whole activation
>>> SubspacePatch(subspace.basis).delta(base, source)  # the projection of Δ on a subspace
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Patch(Protocol):
    def delta(self, base: Tensor, source: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class NoOp:
    """δ = 0."""

    def delta(self, base: Tensor, source: Tensor) -> Tensor:
        return base.new_zeros(base.shape)


@dataclass(frozen=True)
class Full:
    """δ = Δ: the whole component takes the source's value."""

    def delta(self, base: Tensor, source: Tensor) -> Tensor:
        return source - base


@dataclass(frozen=True)
class SubspacePatch:
    """δ = V Vᵀ Δ for an orthonormal basis V (dim, k)."""

    basis: Tensor

    def delta(self, base: Tensor, source: Tensor) -> Tensor:
        basis = self.basis.to(base)
        return ((source - base) @ basis) @ basis.T


@dataclass(frozen=True)
class ReadWrite:
    """δ = W Rᵀ Δ: read along the columns of `read` (dim, k), write along those of `write`
    (dim, k). With R = P_R V and W = V it is `read row, write V`; the parts of one V add up to its
    subspace patch, because they are not re-normalised."""

    read: Tensor
    write: Tensor

    def delta(self, base: Tensor, source: Tensor) -> Tensor:
        return ((source - base) @ self.read.to(base)) @ self.write.to(base).T


@dataclass(frozen=True)
class ZeroSetting:
    """δ = -v vᵀ h_B for any v (dim,), not necessarily of unit norm (the paper's §6 patch, used
    for the link to rank-1 edits)."""

    v: Tensor

    def delta(self, base: Tensor, source: Tensor) -> Tensor:
        v = self.v.to(base)
        return -(base @ v)[..., None] * v


@dataclass(frozen=True)
class PairwisePatch:
    """δ = w rᵀ Δ with a `read` r and a `write` w of its own for each pair, both (n, dim): for
    directions that were fitted one a pair, `read` = `write` = v."""

    read: Tensor
    write: Tensor

    def delta(self, base: Tensor, source: Tensor) -> Tensor:
        along = ((source - base) * self.read.to(base)).sum(-1, keepdim=True)
        return along * self.write.to(base)


@dataclass(frozen=True)
class PairwiseZeroSetting:
    """δ = -s v vᵀ h_B with v (n, dim), not of unit norm, and a sign s (n,) of its own for each
    pair: `ZeroSetting` for each."""

    v: Tensor
    sign: Tensor

    def delta(self, base: Tensor, source: Tensor) -> Tensor:
        v = self.v.to(base)
        return -self.sign.to(base)[:, None] * (base * v).sum(-1, keepdim=True) * v
