"""Random weights: does DAS find a subspace in an MLP that knows nothing?

The MLP of a block runs beside the real one with random weights. Its hidden activation for base and
source differs, because its input does. DAS fits a direction of that activation; the model gets only
what the random MLP's output changes by when the direction is patched (arXiv 2311.17030, appendix).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy import stats

from ..certify import centred
from ..core.geometry import Split
from ..core.progress import hiding_progress, track
from ..core.records import Estimate, Record
from ..core.site import Site
from ..engine.capture import Capture, capture
from ..engine.patches import Full, Patch, SubspacePatch
from ..engine.random_weights import Weights, mlp_input
from ..engine.random_weights import random_mlp as one_random_mlp
from ..fit import das
from ..measure.effects import Scorer
from ..model.lens import LensModel
from ..tasks.pairset import Task

SEEDS = 10
STEPS = 40


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
    real_whole: float


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
    """`site` is an `mlp_act` site. Raises `SiteError` for another stream, or where the MLP cannot
    be run by itself."""
    sites = [site, mlp_input(lens, site)]
    train, test = (
        capture(lens, part[:pairs], sites, shifted=shifted, memory=memory)
        for part in (task.train, task.test)
    )
    is_centred = centred(lens)
    (real_whole,) = _fldd(lens, test, site, [Full()])
    found = []
    for kind in kinds:
        rows = []
        for seed in track(range(seeds), f"random MLPs at {site} ({kind})"):
            told, of_train = one_random_mlp(lens, train, site, seed, kind)
            _, of_test = one_random_mlp(lens, test, site, seed, kind)
            with hiding_progress():
                v = das(told, of_train, site, seed=seed, steps=steps).basis.double()
            weight = told.map.linear_writer(site)
            row = Split.of(weight, centred=is_centred).row(v)
            patches = [SubspacePatch(v), Full(), SubspacePatch(row / row.norm())]
            rows.append((*_fldd(told, of_test, site, patches), 1 - float(row.norm() ** 2)))
        columns = [_interval(values) for values in zip(*rows, strict=True)]
        found.append(
            RandomMLP(
                site=str(site), weights=kind, seeds=seeds, direction=columns[0], whole=columns[1],
                connected=columns[2], null_share=columns[3], real_whole=real_whole,
            )
        )  # fmt: skip
    return found


def _fldd(lens: LensModel, captured: Capture, site: Site, patches: Sequence[Patch]) -> list[float]:
    base, source = captured.base[site], captured.source[site]
    scorer = Scorer.of(captured)
    deltas = torch.stack([patch.delta(base, source) for patch in patches])
    patched = captured.at(site).delta_outcomes(deltas).logit_diff
    drops = scorer.clean - patched.double().numpy()
    return (drops.sum(1) / scorer.clean.sum()).tolist()


def _interval(values: Sequence[float]) -> Estimate:
    """Mean and its 95 % interval by Student's t over draws."""
    array = np.asarray(values, dtype=float)
    mean = float(array.mean())
    if len(array) < 2 or np.ptp(array) == 0:
        return Estimate(value=mean, low=mean, high=mean)
    low, high = stats.t.interval(0.95, len(array) - 1, loc=mean, scale=stats.sem(array))
    return Estimate(value=mean, low=float(low), high=float(high))
