"""The effect table: what each patch does to the answer, in four metrics with intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..core.geometry import haar, natural_draws
from ..core.records import EffectRecord, Estimate
from ..core.statistics import Units, mean, proportion, ratio
from ..engine.capture import Capture
from ..engine.outcomes import Outcomes
from ..engine.patches import Full, NoOp, Patch, ReadWrite, SubspacePatch
from ..engine.replay import Replay
from .splits import Decomposition

RANDOM_DRAWS = 50
RANDOM_PAIRS = 32


@dataclass(frozen=True)
class Scorer:
    """Turns outcomes of patches of one capture into estimates."""

    clean: np.ndarray
    targets: np.ndarray
    units: Units

    @classmethod
    def of(cls, captured: Capture | Replay) -> Scorer:
        targets = np.array([pair.target for pair in captured.pairs.pairs])
        clean = captured.clean.logit_diff.double().numpy()
        return cls(clean, targets, captured.pairs.units)

    def drop(self, outcomes: Outcomes) -> np.ndarray:
        """Clean minus patched logit difference of each pair, nats."""
        return self.clean - outcomes.logit_diff.double().numpy()

    def metrics(self, outcomes: Outcomes) -> EffectRecord:
        drop = self.drop(outcomes)
        return EffectRecord(
            nats=mean(drop, self.units),
            fldd=ratio(drop, self.clean, self.units),
            iia=proportion(outcomes.top.numpy() == self.targets, self.units),
            iia_pair=proportion(outcomes.logit_diff.numpy() < 0, self.units),
        )


def named_patches(parts: Decomposition | None, basis: Tensor) -> dict[str, Patch | None]:
    """The patches of the effect table; None where a part does not exist."""
    patches: dict[str, Patch | None] = {
        "no_op": NoOp(),
        "full": Full(),
        "subspace": SubspacePatch(basis),
    }
    if parts is None:
        return patches | dict.fromkeys(("row", "null", "read_row", "read_null"))
    row, null = parts.unit_row, parts.unit_null
    return patches | {
        "row": SubspacePatch(row) if row.shape[1] else None,
        "null": SubspacePatch(null) if null.shape[1] else None,
        "read_row": ReadWrite(parts.row, basis),
        "read_null": ReadWrite(parts.null, basis),
    }


def outcomes_by_name(
    replay: Replay, patches: dict[str, Patch | None]
) -> dict[str, Outcomes | None]:
    """All patches in one batched replay."""
    base, source = replay.base, replay.source
    present = {name: patch for name, patch in patches.items() if patch is not None}
    deltas = torch.stack([patch.delta(base, source) for patch in present.values()])
    found = replay.delta_outcomes(deltas)
    return dict.fromkeys(patches) | {
        name: Outcomes(found.logit_diff[i], found.top[i]) for i, name in enumerate(present)
    }


def random_effects(
    replay: Replay, natural: Tensor, k: int, seed: int
) -> tuple[EffectRecord, np.ndarray]:
    """Metrics of random k-dimensional subspaces, half Haar, half drawn from the natural covariance
    of the differences `natural` (n, dim): mean over draws and the range of 95 % of them; and the
    drops in nats, (draws, pairs), on the first `RANDOM_PAIRS` pairs."""
    replay = replay.subset(torch.arange(min(RANDOM_PAIRS, len(replay.pairs))))
    base, source = replay.base, replay.source
    generator = torch.Generator().manual_seed(seed)
    bases = torch.cat(
        [
            haar(base.shape[1], k, RANDOM_DRAWS, generator),
            natural_draws(natural, k, RANDOM_DRAWS, generator),
        ]
    )
    found = replay.delta_outcomes(
        torch.stack([SubspacePatch(b).delta(base, source) for b in bases])
    )
    scorer = Scorer.of(replay)
    drops = scorer.clean - found.logit_diff.double().numpy()

    def spread(draws: np.ndarray) -> Estimate:
        low, high = np.quantile(draws, [0.025, 0.975])
        return Estimate(value=float(draws.mean()), low=float(low), high=float(high))

    effect = EffectRecord(
        nats=spread(drops.mean(1)),
        fldd=spread(drops.sum(1) / scorer.clean.sum()),
        iia=spread((found.top.numpy() == scorer.targets).mean(1)),
        iia_pair=spread((found.logit_diff.numpy() < 0).mean(1)),
    )
    return effect, drops
