"""The effect table: the patches that an audit compares, and what they do to the answers."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..core.geometry import haar, natural_draws
from ..core.records import EffectRecord, Estimate
from ..engine.effect import fldd_of
from ..engine.patches import Full, NoOp, Patch, ReadWrite, SubspacePatch
from ..engine.replay import Replay
from .splits import Decomposition

RANDOM_DRAWS = 50
RANDOM_PAIRS = 16
NAMED = ("subspace", "row", "null", "read_row", "read_null")
"""The patches of the effect table that belong to one subspace."""


def named_patches(parts: Decomposition | None, basis: Tensor) -> dict[str, Patch]:
    """The patches of the effect table that exist: `no_op`, `full` and `subspace` always, `row`,
    `null`, `read_row` and `read_null` where the site has a split, a part without any direction left
    out."""
    patches: dict[str, Patch] = {
        "no_op": NoOp(),
        "full": Full(),
        "subspace": SubspacePatch(basis),
    }
    if parts is None:
        return patches
    for name, part in (("row", parts.unit_row), ("null", parts.unit_null)):
        if part.shape[1]:
            patches[name] = SubspacePatch(part)
    return patches | {
        "read_row": ReadWrite(parts.row, basis),
        "read_null": ReadWrite(parts.null, basis),
    }


def drops_of(replay: Replay, deltas: Tensor) -> np.ndarray:
    """By how much each pair moves towards the source's answer under each of `deltas` (m, n, dim),
    float64 (m, n): clean minus patched logit difference, in nats, or in the metric of the replay
    (`Effect.moved`)."""
    patched = replay.measured(deltas)
    return (replay.clean.measured.double() - patched.double()).numpy()


@dataclass(frozen=True, eq=False)
class RandomEffects:
    """What random subspaces do: the mean over all draws, with the range of 95 % of them, and by how
    much the pairs move (`Effect.moved`), (draws, pairs), of those that are `uniform` and of those
    that are `natural`."""

    record: EffectRecord
    uniform: np.ndarray = field(repr=False)
    natural: np.ndarray = field(repr=False)


def random_effects(
    replay: Replay, natural: Tensor | None, basis: Tensor, draws: int, seed: int
) -> RandomEffects:
    """Effects, on the first `RANDOM_PAIRS` pairs, of `draws` random subspaces of as many dimensions
    as `basis` (dim, k), and of as many more that are drawn from the covariance of the differences
    `natural` (n, dim), of what they have orthogonal to `basis`, or, with None, of none of the
    latter. The first are uniform (Haar), and
    their patches are scaled to write as much as that of `basis` (root mean square; W δ at a site
    with a linear writer)."""
    replay = replay.subset(slice(RANDOM_PAIRS))
    generator = torch.Generator().manual_seed(seed)
    width, k = basis.shape

    def written(subspace: Tensor) -> Tensor:
        return SubspacePatch(subspace).delta(replay.base, replay.source)

    def size(delta: Tensor) -> Tensor:
        writer = replay.writer
        return (delta if writer is None else delta @ writer.T.to(delta)).norm()

    ours = size(written(basis))
    uniform = [written(each) for each in haar(width, k, draws, generator)]
    tiny = torch.finfo(ours.dtype).tiny
    scaled = [delta * (ours / size(delta).clamp(min=tiny)) for delta in uniform]
    drawn = []
    if natural is not None:
        others = natural.double() - (natural.double() @ basis.double()) @ basis.double().T
        drawn = [written(each) for each in natural_draws(others, k, draws, generator)]
    outcomes = replay.delta_outcomes(torch.stack(scaled + drawn), decided=True)
    clean = replay.clean.logit_diff.double().numpy()
    drops = clean - outcomes.logit_diff.double().numpy()
    record = EffectRecord(
        nats=spread_of(drops.mean(1)),
        fldd=spread_of(fldd_of(drops, clean)),
        iia=spread_of(outcomes.says("target", replay.pairs).double().mean(1).numpy()),
        iia_pair=spread_of((outcomes.logit_diff.numpy() < 0).mean(1)),
    )
    moved = (replay.clean.measured.double() - outcomes.measured.double()).numpy()
    return RandomEffects(record, moved[:draws], moved[draws:])


def spread_of(draws: np.ndarray) -> Estimate:
    """The mean of draws (m,) with the range of 95 % of them; without a value where one has none."""
    if np.isnan(draws).any():
        return Estimate(value=None)
    low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(value=float(draws.mean()), low=float(low), high=float(high))
