"""Which part of what a subspace writes would nature have written, and which is beyond it?

A patch writes δ = V Vᵀ Δ. Let m be the mean of the source's class less that of the base's, and A
the directions that act: those along which the answer's gradient points, at the base and half way to
the source. The write is split in two, δ = c m + (δ - c m), where c in [0, 1] is how much of the
natural change it takes to do along A what δ does there. A feature's write is mostly c m. An
illusion writes along a direction that nature does not move along: taking c m away leaves its effect
as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..engine.replay import Replay
from ..fit.change import acting_directions, reactions
from ..fit.closed_form import two_classes
from ..tasks.pairset import PairSet, Value

PAIRS = 64
"""Pairs whose gradients are taken."""


@dataclass(frozen=True, eq=False)
class NaturalChange:
    """What nature does at a site when z changes: `means` (d,) by its values, and where the answer
    reacts: `acting` (d, r), orthonormal. All float64."""

    means: Mapping[Value, Tensor] = field(repr=False)
    acting: Tensor = field(repr=False)

    @classmethod
    def of(cls, train: Replay, test: Replay) -> NaturalChange:
        """Class means from the training prompts, gradients from the first `PAIRS` test pairs, which
        no fit has seen. Every training pair has z."""
        x = torch.cat([train.base, train.source]).cpu().double()
        z = [pair.z for pair in train.pairs if pair.z]
        values = [of_base for of_base, _ in z] + [of_source for _, of_source in z]
        means = {
            value: x[torch.tensor([each == value for each in values])].mean(dim=0)
            for value in train.pairs.classes
        }
        return cls(means, acting_directions(reactions(test.subset(slice(PAIRS)))))

    def change(self, pairs: PairSet) -> Tensor:
        """m of each pair, (n, d). Each has z, of values that the training pairs have too."""
        both = [pair.z for pair in pairs if pair.z]
        return torch.stack([self.means[after] - self.means[before] for before, after in both])

    def parts(self, replay: Replay, basis: Tensor) -> dict[str, Tensor]:
        """Changes (n, d) of the pairs of `replay`, parts of the patch of `basis` (d, k): `natural`
        is c m, `beyond` the rest, `acting` what V writes where it reads along A alone, and `along`
        what of the write lies in A, which does what the whole write does if A is what it should
        be."""
        difference = replay.difference.cpu().double()
        basis, acting = basis.double(), self.acting
        write = (difference @ basis) @ basis.T
        change = self.change(replay.pairs)
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
    value of it, or one that no training pair has."""
    known, asked = train.pairs.classes, test.pairs.classes
    if len(known) < 2 or not asked or not set(asked) <= set(known):
        return None
    return NaturalChange.of(train, test)


def signs(pairs: PairSet) -> Tensor | None:
    """z of source less z of base, of its two values as 0 and 1, (n,), float64; None where a pair
    has none or there are not two."""
    return _turn(pairs) if len(pairs.classes) == 2 else None


def turned(replay: Replay) -> Tensor:
    """z of source less z of base, of its two values as 0 and 1, (n,), float64. Raises `TaskError`
    where a pair has none or there are more."""
    return _turn(replay.pairs)


def _turn(pairs: PairSet) -> Tensor:
    z = two_classes(pairs).double()
    return z[:, 1] - z[:, 0]
