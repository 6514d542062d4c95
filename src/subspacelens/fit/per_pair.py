"""One direction for each pair (arXiv 2311.17030 §5): all pairs of a site in one batched replay.

Such a direction is judged on the pair that trained it, which is why the studies also try it on
paraphrases and on other pairs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..core.errors import SubspaceError
from ..core.progress import track
from ..core.site import Site
from ..engine.capture import Capture
from ..engine.replay import Replay
from ..model.lens import LensModel


@dataclass(frozen=True)
class Recipe:
    """Gradient descent on the unit sphere. Every pair starts from `starts` random directions with
    each of `rates`; after `trial` steps its best run alone goes on to `steps`. The rate falls
    linearly to a thousandth.

    The paper's is `PAPER`: 600 steps, no run is given up. The default spends about a tenth.
    """

    steps: int = 40
    trial: int = 4
    rates: tuple[float, ...] = (0.3, 0.1, 0.03, 0.01)
    starts: int = 2

    def __post_init__(self) -> None:
        if not 1 <= self.trial <= self.steps or self.starts < 1 or not self.rates:
            raise SubspaceError(
                f"{self}: give 1 <= trial <= steps, and a rate and a start at least"
            )
        if not all(0 < rate < math.inf for rate in self.rates):
            raise SubspaceError(f"{self}: rates are positive and finite")


PAPER = Recipe(steps=600, trial=600)


@dataclass(frozen=True, eq=False)
class PairDirections:
    """`directions` (n, d): a unit vector for each pair of the capture. `logit_diff` (n,): what its
    patch leaves of logit(answer) - logit(target), in nats."""

    site: Site
    directions: Tensor = field(repr=False)
    logit_diff: Tensor = field(repr=False)
    recipe: Recipe


@torch.enable_grad()
def per_pair(
    lens: LensModel,
    captured: Capture,
    site: Site,
    *,
    recipe: Recipe | None = None,
    seed: int = 0,
) -> PairDirections:
    """For each pair the unit v whose patch δ = v vᵀΔ makes logit(answer) - logit(target) smallest.

    Gradient descent on the sphere by `recipe` (arXiv 2311.17030 §5); of all runs of a pair the best
    step is kept. The same `seed` gives the same directions. Raises `ModelError` for a capture of
    another model and `TaskError` where base and source do not differ at the site.

    >>> directions = per_pair(lens, captures.test, Site.parse("L9.mlp_act@subject"))
    >>> directions.directions.shape, directions.logit_diff  # (n, d) and (n,), nats
    """
    recipe = recipe or Recipe()
    replay = captured.at(site, lens).require_difference()
    difference = replay.difference
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randn(recipe.starts, *difference.shape, generator=generator).to(difference)
    rates = torch.tensor(recipe.rates).to(difference)
    runs = starts.repeat_interleave(len(rates), dim=0)
    rate = rates.repeat(recipe.starts)[:, None, None].expand(*runs.shape[:2], 1)
    trial = _descend(replay, runs, rate, 0, recipe.trial, recipe.steps, f"trial at {site}")
    which = trial.lowest.argmin(0)
    pairs = torch.arange(difference.shape[0], device=which.device)
    best, lowest = trial.best[which, pairs], trial.lowest[which, pairs]
    if recipe.trial < recipe.steps:
        last = trial.last[which, pairs][None]
        rest = _descend(
            replay, last, rate[which, pairs][None], recipe.trial, recipe.steps, recipe.steps,
            f"directions at {site}",
        )  # fmt: skip
        better = rest.lowest[0] < lowest
        best = torch.where(better[:, None], rest.best[0], best)
        lowest = torch.minimum(rest.lowest[0], lowest)
    return PairDirections(site, best, lowest, recipe)


@dataclass(frozen=True)
class _Descent:
    """Of runs (m, n, d): where each ended, its best step, and the logit difference there (m, n)."""

    last: Tensor
    best: Tensor
    lowest: Tensor


def _descend(
    replay: Replay, runs: Tensor, rate: Tensor, first: int, end: int, total: int, what: str
) -> _Descent:
    """Steps `first` to `end` of a schedule of `total`; rate (m, n, 1). The last evaluation follows
    the last step."""
    free = torch.nn.functional.normalize(runs, dim=-1).requires_grad_(True)
    optimiser = torch.optim.SGD([free], lr=1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: 1 - (1 - 1e-3) * min(1.0, (first + step) / total)
    )
    best = free.detach().clone()
    lowest = torch.full(runs.shape[:2], torch.inf).to(runs)
    for _ in track(range(end - first), what):
        values, gradient = evaluated(replay, free)
        _keep(best, lowest, free, values)
        free.grad = gradient * rate
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            free.copy_(torch.nn.functional.normalize(free, dim=-1))
    values, _ = evaluated(replay, free, gradient=False)
    _keep(best, lowest, free, values)
    return _Descent(free.detach(), best, lowest)


def _keep(best: Tensor, lowest: Tensor, free: Tensor, values: Tensor) -> None:
    better = values < lowest
    best[better] = free.detach()[better]
    lowest[better] = values[better]


def evaluated(replay: Replay, free: Tensor, *, gradient: bool = True) -> tuple[Tensor, Tensor]:
    """The logit difference (m, n) after patching each pair along its own unit directions `free`
    (m, n, d), and the gradient of each with respect to its direction (zero if not wanted)."""
    difference = replay.difference
    values = torch.empty(free.shape[:2]).to(difference)
    slopes = torch.zeros_like(free)
    for piece in replay.pieces(free.shape[0], gradients=gradient):
        rows = piece.pairs.to(free.device)
        with torch.set_grad_enabled(gradient):
            v = free[piece.patches][:, rows].detach().requires_grad_(gradient)
            delta = (v * difference[rows]).sum(-1, keepdim=True) * v
            left = piece.logit_diff(delta)
        if gradient:
            (slope,) = torch.autograd.grad(left.sum(), v)
            slopes[piece.patches, rows] = slope
        values[piece.patches, rows] = left.detach().to(values)
    return values, slopes
