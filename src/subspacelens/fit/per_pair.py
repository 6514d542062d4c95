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
from ..core.first_order import first_order_of_each
from ..core.progress import track
from ..core.site import Site
from ..engine.capture import Capture
from ..engine.replay import Replay
from ..model.lens import LensModel
from .loss import slopes, wide

SHRINK, GROW = 0.3, 1.5
"""What the step of a pair is multiplied by after a worse and after a better direction."""


@dataclass(frozen=True)
class ClosedForm:
    """The closed form of each pair alone, v ∝ Δ/‖Δ‖ + g/‖g‖, solved again where it leads.

    g is minus the gradient of the pair's logit difference: at first halfway to the patch of the
    whole component, then, `steps` times, at the patch of the pair's best direction so far. Each
    time the direction goes all the way to the new solution, or after a step that made it worse a
    part of the way. Nothing is drawn; a pair takes `steps` + 1 gradients.
    """

    steps: int = 16
    name: str = field(default="closed-form", init=False)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise SubspaceError(f"{self}: give steps >= 1")


@dataclass(frozen=True)
class Recipe:
    """Gradient descent on the unit sphere. Every pair starts from `starts` random directions with
    each of `rates`; after `trial` steps its best run alone goes on to `steps`. The rate falls
    linearly to a thousandth.

    The paper's is `PAPER`: 600 steps, no run is given up. The default spends about a tenth, which
    is still five times what `ClosedForm` does.
    """

    steps: int = 40
    trial: int = 4
    rates: tuple[float, ...] = (0.3, 0.1, 0.03, 0.01)
    starts: int = 2
    name: str = field(default="descent", init=False)

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
    recipe: ClosedForm | Recipe


@torch.enable_grad()
def per_pair(
    lens: LensModel,
    captured: Capture,
    site: Site | str,
    *,
    recipe: ClosedForm | Recipe | None = None,
    seed: int = 0,
) -> PairDirections:
    """For each pair the unit v whose patch δ = v vᵀΔ makes logit(answer) - logit(target) smallest.

    By `recipe`: `ClosedForm`, the default, or `Recipe`, gradient descent on the sphere from starts
    that `seed` draws (arXiv 2311.17030 §5). Of all that was tried on a pair the best is kept.
    Raises `ModelError` for a capture of another model, `TaskError` where base and source do not
    differ at the site, and `SubspaceError` where a gradient is not finite.

    >>> directions = per_pair(lens, captures.test, "L9.mlp_act@subject")
    >>> directions.directions.shape, directions.logit_diff  # (n, d) and (n,), nats
    """
    recipe, site = recipe or ClosedForm(), Site.of(site)
    replay = captured.at(site, lens).require_difference()
    if isinstance(recipe, ClosedForm):
        return PairDirections(site, *_solved(replay, recipe.steps), recipe)
    return PairDirections(site, *_descended(replay, recipe, seed), recipe)


def _solved(replay: Replay, steps: int) -> tuple[Tensor, Tensor]:
    """Directions (n, d) and the logit differences that they leave (n,)."""
    difference = wide(replay.difference)
    _, gradients = slopes("logit-difference", replay, difference / 2)
    best = target = tried = first_order_of_each(difference, gradients).to(difference)
    lowest = torch.full_like(difference[:, 0], torch.inf)
    step = torch.ones_like(lowest)
    for _ in track(range(steps), f"directions at {replay.site}"):
        delta = (tried * difference).sum(-1, keepdim=True) * tried
        values, gradients = slopes("logit-difference", replay, delta)
        solution = first_order_of_each(difference, gradients).to(difference)
        nearer = (solution * tried).sum(-1, keepdim=True) >= 0
        better = values < lowest
        lowest = torch.minimum(values, lowest)
        best = torch.where(better[:, None], tried, best)
        target = torch.where(better[:, None], torch.where(nearer, solution, -solution), target)
        step = torch.where(better, (GROW * step).clamp(max=1.0), SHRINK * step)
        tried = torch.nn.functional.normalize(best + step[:, None] * (target - best), dim=-1)
    return best, lowest


def _descended(replay: Replay, recipe: Recipe, seed: int) -> tuple[Tensor, Tensor]:
    """The same by gradient descent."""
    difference = replay.difference
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randn(recipe.starts, *difference.shape, generator=generator).to(difference)
    rates = torch.tensor(recipe.rates).to(difference)
    runs = starts.repeat_interleave(len(rates), dim=0)
    rate = rates.repeat(recipe.starts)[:, None, None].expand(*runs.shape[:2], 1)
    trial = _descend(replay, runs, rate, 0, recipe.trial, recipe.steps, f"trial at {replay.site}")
    which = trial.lowest.argmin(0)
    pairs = torch.arange(difference.shape[0], device=which.device)
    best, lowest = trial.best[which, pairs], trial.lowest[which, pairs]
    if recipe.trial < recipe.steps:
        last = trial.last[which, pairs][None]
        rest = _descend(
            replay, last, rate[which, pairs][None], recipe.trial, recipe.steps, recipe.steps,
            f"directions at {replay.site}",
        )  # fmt: skip
        better = rest.lowest[0] < lowest
        best = torch.where(better[:, None], rest.best[0], best)
        lowest = torch.minimum(rest.lowest[0], lowest)
    return best, lowest


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
