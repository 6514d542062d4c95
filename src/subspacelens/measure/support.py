"""The patch split by where activations naturally vary."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..core.geometry import Support
from ..engine.patches import ReadWrite
from ..engine.replay import Replay
from .effects import Scorer

EXPLAINED = (0.5, 0.8, 0.9, 0.95, 0.99, 0.999)
SUPPORT_AT = 0.99


@dataclass(frozen=True)
class SupportSplit:
    """The patch split into what lies on the natural support and what lies off it, for a range of
    explained variances. `on`, `off`: drops (len(explained), n) in nats."""

    explained: tuple[float, ...]
    components: list[int]
    share: list[float]
    on: np.ndarray
    off: np.ndarray
    samples: int


def split_by_support(
    natural: Tensor,
    replay: Replay,
    basis: Tensor,
    scorer: Scorer,
    explained: tuple[float, ...] = EXPLAINED,
) -> SupportSplit:
    """Estimates the support on the activations `natural` (n, dim) and replays both parts on the
    pairs of `replay`, for each share of `explained` variance."""
    support = Support.of(natural)
    base, source = replay.base, replay.source
    components = [support.components(e) for e in explained]
    ons = [support.on(basis, count) for count in components]
    patches = [ReadWrite(basis, on) for on in ons]
    patches += [ReadWrite(basis, basis - on) for on in ons]
    deltas = torch.stack([patch.delta(base, source) for patch in patches])
    found = replay.delta_outcomes(deltas).logit_diff.double().numpy()
    drops = scorer.clean - found
    size = float(basis.norm() ** 2)
    return SupportSplit(
        explained,
        components,
        [float(on.norm() ** 2) / size for on in ons],
        drops[: len(ons)],
        drops[len(ons) :],
        len(natural),
    )
