"""Subspaces and what they are measured against. Whatever decides a rank is done in float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

SMALLEST = 1e-6
"""Singular values below this share of a unit vector count as an absent direction."""
SUPPORT_AT = 0.99
"""Of the variance of activations, what the axes along which they naturally vary explain."""


def svd(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U (m, r), s (r,) and Vᵀ (r, n) of x (m, n), r the smaller of m and n. Where the usual
    algorithm does not converge, as happens now and then with hundreds of equal singular values, QR
    iteration does, ten times as slowly."""
    try:
        return torch.linalg.svd(x, full_matrices=False)
    except torch.linalg.LinAlgError:  # pyright: ignore[reportPrivateImportUsage]
        found = scipy.linalg.svd(x.cpu().numpy(), full_matrices=False, lapack_driver="gesvd")
        u, s, vh = (torch.from_numpy(part).to(x) for part in found)
        return u, s, vh


def orthonormal(columns: Tensor) -> Tensor:
    """An orthonormal basis, float64 (d, r), of the span of `columns` (d, k), r <= k: directions
    with singular value below `SMALLEST` are dropped."""
    u, s, _ = svd(columns.double())
    return u[:, s > SMALLEST]


def unit(columns: Tensor) -> Tensor:
    """`columns` (d, k), float64, each scaled to length one, however large or small its entries; a
    column of zeros stays."""
    largest = columns.abs().amax(0)
    scaled = columns / torch.where(largest > 0, largest, 1)
    length = scaled.norm(dim=0)
    return scaled / torch.where(length > 0, length, 1)


def independent(columns: Tensor, precision: float) -> int:
    """How many of `columns` (d, k), float64 and of length one, are linearly independent, where
    their entries are known to a relative `precision`: singular values below its square root are
    taken for rounding."""
    return int((torch.linalg.svdvals(columns) > precision**0.5).sum())


@dataclass(frozen=True)
class Split:
    """The row space of a map W (out, d) and its kernel, as projectors.

    `rows` (d, r) is an orthonormal float64 basis of the row space, r the numerical rank of W.
    """

    rows: Tensor

    @classmethod
    def of(cls, weight: Tensor, *, centred: bool = False) -> Split:
        """Rank-aware split of W. `centred`: what W writes is read after subtracting its mean over
        the output (LayerNorm models), so W is replaced by (I - 11ᵀ/out) W."""
        w = weight.detach().cpu().double()
        if centred:
            w = w - w.mean(dim=0, keepdim=True)
        _, s, vh = svd(w)
        exact = weight.dtype == torch.float64
        cut = s[0] * (max(w.shape) * torch.finfo(torch.float64).eps if exact else 1e-6)
        return cls(vh[s > cut].T.contiguous())

    @property
    def rank(self) -> int:
        return self.rows.shape[1]

    def row(self, x: Tensor) -> Tensor:
        """P_R x for columns x (d, k), float64."""
        return self.rows @ (self.rows.T @ x.double())

    def null(self, x: Tensor) -> Tensor:
        """P_N x for columns x (d, k), float64."""
        return x.double() - self.row(x)


def principal_angles(a: Tensor, b: Tensor) -> np.ndarray:
    """Principal angles in radians, largest first, between the spans of (d, k) and (d, l)."""
    return scipy.linalg.subspace_angles(a.double().numpy(), b.double().numpy())


def haar(dim: int, k: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` uniformly random k-dimensional subspaces, float64 bases (count, dim, k)."""
    if k > dim:
        raise ValueError(f"no {k}-dimensional subspace in {dim} dimensions")
    q, _ = torch.linalg.qr(torch.randn(count, dim, k, generator=generator, dtype=torch.float64))
    return q


def natural_draws(samples: Tensor, k: int, count: int, generator: torch.Generator) -> Tensor:
    """Like `haar`, but each basis spans k Gaussian draws with the (uncentred) covariance of the
    rows of `samples` (n, dim)."""
    mix = torch.randn(count, k, len(samples), generator=generator, dtype=torch.float64)
    q, _ = torch.linalg.qr((mix @ samples.double().cpu()).mT)
    return q


@dataclass(frozen=True)
class Support:
    """Where activations naturally vary: principal axes (dim, r) of a sample and the share of its
    variance that the first j of them explain."""

    axes: Tensor
    explained: Tensor

    @classmethod
    def of(cls, samples: Tensor) -> Support:
        """From activations (n, dim), centred on their mean."""
        x = samples.double().cpu()
        x = x - x.mean(dim=0)
        _, s, vh = svd(x)
        keep = s > s[0] * 1e-10
        share = (s[keep] ** 2).cumsum(0) / (s[keep] ** 2).sum()
        return cls(vh[keep].T.contiguous(), share)

    def components(self, explained: float) -> int:
        """How many axes explain at least this share of the variance."""
        return int((self.explained < explained - 1e-12).sum()) + 1

    def on(self, x: Tensor, components: int) -> Tensor:
        """The part of columns x (dim, k) on the first axes, float64."""
        axes = self.axes[:, :components]
        return axes @ (axes.T @ x.double())
