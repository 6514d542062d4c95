"""Which part of a subspace is read downstream: the row/null split, exact or by proxy.

At a site that writes through a linear map W (MLP activations, attention heads) the kernel of W is
causally disconnected, exactly (arXiv 2311.17030 §3). At residual sites nothing is; there the split
is that of the stacked input maps of those attention heads that carry the effect, and it depends on
how many one takes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.geometry import Split, orthonormal
from ..core.site import PROJECTED, Site
from ..engine.patches import SubspacePatch
from ..engine.replay import Replay
from ..model.lens import LensModel
from .readers import ReaderShare, attribute_readers, reader_matrix

READERS_IN_PROXY = 3
READER_PAIRS = 64


@dataclass(frozen=True)
class Decomposition:
    """A split of the site's space and the parts of a subspace in it. `exact`: the null part is
    disconnected by construction. `readers`: whom a proxy split stands for, strongest first."""

    split: Split
    exact: bool
    basis: Tensor
    readers: tuple[ReaderShare, ...] = ()

    @property
    def row(self) -> Tensor:
        """P_R V, not re-normalised, float64 (dim, k)."""
        return self.split.row(self.basis)

    @property
    def null(self) -> Tensor:
        """P_N V, not re-normalised, float64 (dim, k)."""
        return self.split.null(self.basis)

    @property
    def unit_row(self) -> Tensor:
        """Orthonormal basis of P_R V; directions of norm below 1e-6 are dropped."""
        return orthonormal(self.row)

    @property
    def unit_null(self) -> Tensor:
        """Orthonormal basis of P_N V; directions of norm below 1e-6 are dropped."""
        return orthonormal(self.null)

    @property
    def rank_too_low(self) -> bool:
        """The map has hardly more rank than the subspace could fill (rank <= k + 1)."""
        return self.split.rank <= self.basis.shape[1] + 1

    @property
    def degenerate(self) -> bool:
        """The row/null test is void: the map's rank is too low, or it has no kernel at all."""
        return self.rank_too_low or self.split.rank >= self.basis.shape[0]


def exact_split(lens: LensModel, site: Site, basis: Tensor, *, centred: bool) -> Decomposition:
    """By the kernel of the site's writer. Raises `SiteError` for a site that has none."""
    weight = lens.map.linear_writer(site)
    return Decomposition(Split.of(weight, centred=centred), True, basis.double())


def split_by_readers(
    replay: Replay, basis: Tensor
) -> tuple[Decomposition | None, tuple[ReaderShare, ...]]:
    """The split of `basis` (dim, k) by the attention readers that carry the effect of its patch,
    and all readers; no split where no attention reads what the site writes, nor of queries, keys
    and values, which no linear map takes to the residual stream."""
    if replay.site.stream in PROJECTED:
        return None, ()
    some = replay.subset(slice(READER_PAIRS))
    readers = attribute_readers(some, SubspacePatch(basis).delta(some.base, some.source))
    if not any(share.reader.attention for share in readers):
        return None, readers
    return proxy_split(readers, basis, READERS_IN_PROXY), readers


def proxy_split(readers: tuple[ReaderShare, ...], basis: Tensor, count: int) -> Decomposition:
    """By the stacked input maps of the `count` strongest attention readers."""
    chosen = tuple(r for r in readers if r.reader.attention)[:count]
    stacked = torch.cat([reader_matrix(r) for r in chosen])
    return Decomposition(Split.of(stacked), False, basis.double(), chosen)
