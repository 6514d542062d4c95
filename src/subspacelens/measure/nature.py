"""Which part of what a subspace writes would nature have written, and which is beyond it?

A patch writes δ = V Vᵀ Δ. Let m be the difference of the class means, turned to the pair's z, and
A the directions that act: those along which the answer's gradient points, at the base and half way
to the source. The write is split in two, δ = c m + (δ - c m), where c in [0, 1] is how much of the
natural change it takes to do along A what δ does there. A feature's write is mostly c m. An
illusion writes along a direction that nature does not move along: taking c m away leaves its effect
as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..core.errors import TaskError
from ..engine.replay import Replay
from ..fit.closed_form import by_class

ENERGY = 0.99
"""The directions that act carry this share of the gradients' squared norm."""
PAIRS = 64
"""Pairs whose gradients are taken."""


@dataclass(frozen=True, eq=False)
class NaturalChange:
    """What nature does at a site when z changes from 0 to 1: `mean` (d,), and where the answer
    reacts: `acting` (d, r), orthonormal. Both float64."""

    mean: Tensor = field(repr=False)
    acting: Tensor = field(repr=False)

    @classmethod
    def of(cls, train: Replay, test: Replay) -> NaturalChange:
        """Class means from the training prompts, gradients from the first `PAIRS` test pairs, which
        no fit has seen. Raises `TaskError` where a pair has no z or one class is empty."""
        x, z = by_class(train)
        x = x.cpu().double()
        some = test.subset(slice(PAIRS))
        slopes = torch.cat([some.gradients(), some.gradients(some.difference / 2)])
        return cls(x[z == 1].mean(dim=0) - x[z == 0].mean(dim=0), acting_directions(slopes))

    def parts(self, replay: Replay, basis: Tensor) -> dict[str, Tensor]:
        """Changes (n, d) of the pairs of `replay`, parts of the patch of `basis` (d, k): `natural`
        is c m, `beyond` the rest, `acting` what V writes where it reads along A alone, and `along`
        what of the write lies in A, which does what the whole write does if A is what it should
        be."""
        difference = replay.difference.cpu().double()
        basis, acting = basis.double(), self.acting
        write = (difference @ basis) @ basis.T
        change = turned(replay)[:, None] * self.mean
        visible = change @ acting
        size = visible.square().sum(dim=1).clamp(min=torch.finfo(torch.float64).tiny)
        amount = ((write @ acting) * visible).sum(dim=1) / size
        natural = amount.clamp(0, 1)[:, None] * change
        read = (difference @ acting) @ (acting.T @ basis)
        return {
            "natural": natural,
            "beyond": write - natural,
            "acting": read @ basis.T,
            "along": (write @ acting) @ acting.T,
        }


def natural_change(train: Replay, test: Replay) -> NaturalChange | None:
    """What z changes at a site (`NaturalChange.of`); None where pairs carry no z or only one
    value of it."""
    if any(pair.z is None for pair in (*train.pairs, *test.pairs)):
        return None
    if len({value for pair in train.pairs for value in pair.z or ()}) < 2:
        return None
    return NaturalChange.of(train, test)


def turned(replay: Replay) -> Tensor:
    """z of source less z of base, (n,), float64. Raises `TaskError` where a pair has none."""
    pairs = replay.pairs
    missing = [number for number, pair in enumerate(pairs) if pair.z is None]
    if missing:
        raise TaskError(f"{pairs.where(missing[0])} has no z, which this needs")
    return torch.tensor([float(p.z[1] - p.z[0]) for p in pairs if p.z]).double()


def acting_directions(slopes: Tensor, energy: float = ENERGY) -> Tensor:
    """The leading right singular vectors, float64 (d, r), that carry a share `energy` of the
    squared norm of the gradients `slopes` (m, d)."""
    _, s, vh = torch.linalg.svd(slopes.cpu().double(), full_matrices=False)
    carried = s.square().cumsum(0) / s.square().sum().clamp(min=torch.finfo(s.dtype).tiny)
    return vh[: int((carried < energy).sum()) + 1].T.contiguous()
