"""Random weights: does DAS find a subspace in an MLP that knows nothing?

The MLP of a block runs beside the real one with random weights. Its hidden activation for base and
source differs, because its input does. DAS fits a direction of that activation; the model gets only
what the random MLP's output changes by when the direction is patched (arXiv 2311.17030, appendix).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from ..certify import centred
from ..core.geometry import Split
from ..core.progress import hiding_progress, track
from ..core.records import Estimate, Record
from ..core.site import Site
from ..engine.capture import capture
from ..engine.patches import Full, Patch, SubspacePatch
from ..engine.random_weights import Weights, mlp_input
from ..engine.random_weights import random_mlp as one_random_mlp
from ..engine.replay import Replay
from ..fit import das
from ..model.lens import LensModel
from ..tasks.pairset import Task

SEEDS = 10
STEPS = 16


class RandomMLP(Record):
    """One kind of random weights at one site, over `seeds` draws: FLDD on test pairs of the fitted
    direction, of the whole random activation and of the direction's connected part, mean and 95 %
    interval over draws; `null_share`: how much of the direction's squared norm is in the kernel.
    `real_whole`: FLDD of patching the real MLP's whole activation."""

    site: str
    weights: Weights
    seeds: int
    direction: Estimate
    whole: Estimate
    connected: Estimate
    null_share: Estimate
    real_whole: float | None


def random_mlp(
    lens: LensModel,
    task: Task,
    site: Site,
    *,
    kinds: Sequence[Weights] = ("gaussian", "shuffled"),
    seeds: int = SEEDS,
    steps: int = STEPS,
    pairs: int = 32,
    shifted: bool = False,
    memory: int | None = None,
) -> list[RandomMLP]:
    """DAS in MLPs of random weights at `site`, an `mlp_act` site: a record of each of `kinds`, over
    `seeds` draws. Directions are fitted in `steps` steps on the first `pairs` training pairs and
    patched in as many test pairs; `memory` is the budget of replays in bytes. Raises `SiteError`
    for another stream, or where the MLP cannot be run by itself.

    >>> for row in random_mlp(lens, task, sl.Site.parse("L18.mlp_act@S2"), seeds=3):
    ...     print(row.weights, row.direction.value, row.whole.value)
    """
    sites = [site, mlp_input(lens, site)]
    train, test = (
        capture(lens, part[:pairs], sites, shifted=shifted, memory=memory)
        for part in (task.train, task.test)
    )
    is_centred = centred(lens)
    (real_whole,) = _fldd(test.at(site), {"whole": Full()})
    kinds_of = []
    for kind in kinds:
        rows = []
        for seed in track(range(seeds), f"random MLPs at {site} ({kind})"):
            blank, of_train = one_random_mlp(lens, train, site, seed, kind)
            _, of_test = one_random_mlp(lens, test, site, seed, kind)
            with hiding_progress():
                v = das(blank, of_train, site, seed=seed, steps=steps).basis.double()
            row = Split.of(blank.map.linear_writer(site), centred=is_centred).row(v)
            patches = {
                "direction": SubspacePatch(v),
                "whole": Full(),
                "connected": SubspacePatch(row / row.norm()),
            }
            rows.append((*_fldd(of_test.at(site), patches), 1 - float(row.norm() ** 2)))
        columns = [_interval(values) for values in zip(*rows, strict=True)]
        kinds_of.append(
            RandomMLP(
                site=str(site), weights=kind, seeds=seeds, direction=columns[0], whole=columns[1],
                connected=columns[2], null_share=columns[3], real_whole=real_whole,
            )
        )  # fmt: skip
    return kinds_of


def _fldd(replay: Replay, patches: Mapping[str, Patch]) -> list[float | None]:
    return [effect.fldd.value for effect in replay.effects(patches).values()]


def _interval(values: Sequence[float | None]) -> Estimate:
    """Mean and its 95 % interval by Student's t over draws; None where a draw has no value."""
    if None in values:
        return Estimate(value=None)
    array = np.asarray(values, dtype=float)
    mean = float(array.mean())
    if len(array) < 2 or np.ptp(array) == 0:
        return Estimate(value=mean, low=mean, high=mean)
    low, high = stats.t.interval(0.95, len(array) - 1, loc=mean, scale=stats.sem(array))
    return Estimate(value=mean, low=float(low), high=float(high))
