"""The counterfactual latent loss (Grant et al. 2025, arXiv 2511.04638): a patch shall leave the
activation that nature has where z has the other value."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import cosine_similarity

from ..engine.replay import Piece, Replay
from .change import class_changes
from .loss import wide


@dataclass(frozen=True, eq=False)
class CounterfactualLatent:
    """`weight` times ‖δ - m‖²/s + 1 - cos(δ, m), of the patch δ of the subspace and the change of
    class means m of the pair's template (`change`, (n, d); `class_changes`), s the mean of ‖m‖².

    base + m stands for the natural activation with the counterfactual value. The base is taken off
    both sides: what they have in common would make every cosine one.
    """

    gradients: ClassVar[int] = 0
    weight: float
    difference: Tensor = field(repr=False)
    change: Tensor = field(repr=False)
    size: float

    @classmethod
    def at(cls, weight: float, replay: Replay) -> CounterfactualLatent:
        """Raises `TaskError` for pairs without z and where z has one value."""
        change, difference = class_changes(replay), wide(replay.difference)
        size = float(change.square().sum(dim=1).mean())
        return cls(weight, difference, change.to(difference), size)

    def of(self, piece: Piece, basis: Tensor) -> Tensor:
        rows = piece.pairs.to(self.difference.device)
        moved, change = self.difference[rows].to(basis), self.change[rows].to(basis)
        write = (moved @ basis) @ basis.T
        apart = (write - change).square().sum(dim=1) / self.size
        return self.weight * (apart + 1 - cosine_similarity(write, change, dim=1))

    def subset(self, pairs: Tensor) -> CounterfactualLatent:
        rows = pairs.to(self.difference.device)
        return replace(self, difference=self.difference[rows], change=self.change[rows])
