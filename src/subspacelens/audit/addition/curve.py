"""How much of a vector is natural: its effect and where it lands, dose by dose."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ...core.statistics import mean
from ...engine.replay import Replay
from ...measure.effects import drops_of
from .case import Addition
from .record import DoseCurve

DOSES = (-1.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
PAIRS = 64
STAYS = 0.9
"""A dose stays inside nature where this share of what is usual lies inside."""
MULTIPLES = np.geomspace(1e-3, 1e3, 1201)


def leaves(case: Addition) -> float | None:
    """The largest α, of the sign of the one under audit, up to which every dose stays inside
    nature; 0 where none does, None where a thousand times the dose still does."""
    last = 0.0
    for multiple in MULTIPLES:
        if case.inside(float(multiple) * case.alpha).mean() < STAYS * case.usual:
            return last
        last = float(multiple) * case.alpha
    return None


def curve(case: Addition, effects: Callable[[Replay, Tensor], np.ndarray] = drops_of) -> DoseCurve:
    """The dose curve of an addition, on the first `PAIRS` pairs; `effects` says what changes
    (m, n, dim) do to some pairs, (m, n) in nats."""
    alpha, vector = case.alpha, case.vector
    last = leaves(case)
    alphas = [dose * alpha for dose in DOSES]
    some, sign = case.replay.subset(slice(PAIRS)), case.sign[:PAIRS, None]
    wanted = torch.tensor([*alphas, last or 0.0], dtype=torch.float64)
    drops = effects(some, (wanted[:, None, None] * sign * vector).to(some.base))
    length = float(case.replay.base.cpu().double().norm(dim=1).mean())
    apart, deviation = _between(case), case.deviation
    known = last is not None and last != 0
    return DoseCurve(
        dose=list(DOSES),
        alpha=alphas,
        effect=drops[:-1].mean(axis=1).tolist(),
        inside=[float(case.inside(each).mean()) for each in alphas],
        relative=[abs(each) * float(vector.norm()) / length for each in alphas],
        deviations=[each / deviation for each in alphas] if deviation > 0 else None,
        classes=[each / apart for each in alphas] if apart else None,
        usual=case.usual,
        leaves=last,
        effect_inside=mean(drops[-1], some.units) if known else None,
    )


def _between(case: Addition) -> float:
    """How far apart the classes of the training prompts lie along what is written, in units of v;
    0 without z."""
    z = case.z_fitted
    if z is None:
        return 0.0
    values = case.along(case.setting.train.x).numpy()
    return float(values[z == 1].mean() - values[z == 0].mean())
