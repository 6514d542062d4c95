"""The patch split by where activations naturally vary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..core.geometry import Support
from ..engine.patches import ReadWrite
from ..engine.replay import Replay
from .effects import drops_of

EXPLAINED = (0.5, 0.8, 0.9, 0.95, 0.99, 0.999)


@dataclass(frozen=True, eq=False)
class SupportSplit:
    """The patch split at one natural support, which explains the share `explained` of the variance
    of `samples` activations with its `components` leading axes. `share`: how much of the subspace's
    squared norm lies on it. `on`, `off`: what either part drops, (n,) in nats."""

    explained: float
    components: int
    share: float
    on: np.ndarray = field(repr=False)
    off: np.ndarray = field(repr=False)
    samples: int


def split_by_support(
    natural: Tensor, replay: Replay, basis: Tensor, explained: Sequence[float] = EXPLAINED
) -> dict[float, SupportSplit]:
    """A split for each share of `explained` variance: the support is estimated on the activations
    `natural` (n, dim), and both parts are replayed on the pairs of `replay`."""
    support = Support.of(natural)
    components = [support.components(share) for share in explained]
    parts = [support.on(basis, count) for count in components]
    patches = [ReadWrite(basis, part) for part in (*parts, *(basis - on for on in parts))]
    on, off = np.split(
        drops_of(replay, torch.stack([p.delta(replay.base, replay.source) for p in patches])), 2
    )
    size = float(basis.norm() ** 2)
    return {
        share: SupportSplit(
            share, components[i], float(parts[i].norm() ** 2) / size, on[i], off[i], len(natural)
        )
        for i, share in enumerate(explained)
    }
