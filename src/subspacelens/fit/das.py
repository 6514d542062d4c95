"""Distributed alignment search (Geiger et al. 2023), as a thin basis with a QR retraction."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from scipy.optimize import OptimizeResult, minimize
from torch import Tensor

from ..core.errors import SubspaceError
from ..core.progress import bar, track
from ..core.site import Site
from ..engine.capture import Capture
from ..model.lens import LensModel
from .closed_form import ROUNDS, self_consistent
from .constraint import Constraint, passes, span_of
from .counterfactual_latent import CounterfactualLatent
from .isolate import Isolate
from .loss import Loss, Objective, Term, retracted
from .registry import Count, Rate, Seed, Weight, register
from .subspace import Subspace, made_by

Recipe = Literal["lbfgs", "adam"]
Start = Literal["closed-form", "random"]

FIRST = {"closed-form": 1 + ROUNDS, "random": 0}
"""Passes over the pairs that a start takes."""
DEFAULTS: Mapping[Recipe, Mapping[str, Any]] = {
    "lbfgs": {"start": "closed-form", "steps": 16, "tolerance": 3e-3},
    "adam": {"start": "random", "steps": 120, "batch": 64, "lr": 0.03},
}
"""The options of each recipe and what they are where they are not given."""


def settled(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `das`, those that were left open filled in from `DEFAULTS`. Raises
    `SubspaceError` for one that the recipe does not have."""
    recipe = options.get("recipe", "lbfgs")
    defaults = DEFAULTS[recipe]
    open_ = {name for other in DEFAULTS.values() for name in other}
    given = {name: options[name] for name in open_ if options.get(name) is not None}
    for name in sorted(set(given) - set(defaults)):
        (other,) = (other for other in DEFAULTS if name in DEFAULTS[other])
        raise SubspaceError(f"das: {name}={given[name]} is an option of recipe={other}")
    return dict(options) | dict.fromkeys(open_) | dict(defaults) | given


def _gradients(pairs: int, options: Mapping[str, Any]) -> int:
    chosen = settled(options)
    step = min(chosen["batch"] or pairs, pairs) * (2 if chosen.get("isolate") else 1)
    return (FIRST[chosen["start"]] + passes(chosen)) * pairs + chosen["steps"] * step


@register("das", gradients=_gradients, check=settled)
def das(
    lens: LensModel,
    captured: Capture,
    site: Site,
    *,
    dim: Count = 1,
    seed: Seed = 0,
    recipe: Recipe = "lbfgs",
    start: Start | None = None,
    steps: Count | None = None,
    tolerance: Rate | None = None,
    batch: Count | None = None,
    lr: Rate | None = None,
    loss: Loss = "logit-difference",
    constraint: Constraint = "none",
    isolate: Weight = 0.0,
    counterfactual_latent: Weight = 0.0,
) -> Subspace:
    """The `dim`-dimensional subspace whose patch moves the model most towards the source's answer.

    Distributed alignment search (Geiger et al. 2023, arXiv 2303.02536). What is lowered is `loss`:
    the mean of logit(answer) - logit(target) in nats, or the cross-entropy of the target over the
    whole vocabulary, as in arXiv 2311.17030. The basis (d, dim) is kept orthonormal by QR.

    `recipe="lbfgs"` starts from the closed form (`closed_form`, but of a gradient on the way of the
    patch, solved again where it leads: four passes over the pairs) and goes on with L-BFGS on all
    pairs at once, for at most `steps` passes (16), until an iteration lowers the loss by at most
    `tolerance` (.003) of what all have lowered it. Nothing is drawn: the same subspace every time,
    whatever `seed`. `recipe="adam"` is the usual one: Adam takes `steps` steps (120) from a random
    basis, with a rate that falls from `lr` (.03) to a tenth, through batches of `batch` pairs (64)
    that come in turn, the last with what is left; `seed` draws basis and batches. `start` gives
    one recipe the other's start.

    What is found reads what varies and writes what acts, which may have nothing to do with each
    other (docs/theory.md). Three settings hold it to what nature does. `constraint` says where it
    must lie: in the `row` space of the site's writer, on the `support` of the activations, in the
    span of the class means' differences `between-classes`, or along what is `natural`
    (`fit.constraint`). `isolate` is the weight of a loss for moving the answer by what another
    prompt of the same z has there (`Isolate`), `counterfactual_latent` of one for not ending where
    the other class is (`CounterfactualLatent`); both need z, and both are in nats.

    `fit` of the subspace holds all settings, `passes` (gradients of single pairs that were taken,
    over the number of pairs), `first_loss`, and `last_loss`: Adam's the mean of the last ten.

    Raises `SubspaceError` for settings that are out of range or of another recipe, and for a loss
    that is not finite, and what every fit raises (`Fit`).

    >>> subspace = das(lens, captures.train, "L18.mlp_act@S2", dim=2)
    >>> subspace.fit["passes"], subspace.fit["last_loss"]
    """
    chosen = settled(
        dict(
            recipe=recipe, start=start, steps=steps, tolerance=tolerance, batch=batch, lr=lr,
            loss=loss, constraint=constraint, isolate=isolate,
            counterfactual_latent=counterfactual_latent, seed=seed,
        )
    )  # fmt: skip
    replay = captured.at(site, lens)
    terms: list[Term] = []
    if isolate:
        terms.append(Isolate.at(isolate, replay))
    if counterfactual_latent:
        terms.append(CounterfactualLatent.at(counterfactual_latent, replay))
    within = span_of(constraint, replay, dim)
    goal = Objective(loss=loss, replay=replay, within=within, terms=tuple(terms))
    generator = torch.Generator().manual_seed(seed)
    if chosen["start"] == "random":
        free = torch.randn(goal.width, dim, generator=generator).div_(goal.width**0.5)
    else:
        free = self_consistent(goal, dim).float()
    found = (_lbfgs if recipe == "lbfgs" else _adam)(goal, free, chosen, generator)
    record = dict(
        method="das", **chosen, passes=FIRST[chosen["start"]] + passes(chosen) + found.passes,
        first_loss=found.first_loss, last_loss=found.last_loss,
    )  # fmt: skip
    basis = goal.lifted(found.inside.double())
    return made_by(lens, site, basis, replay.pairs.sha256, record)


@dataclass(frozen=True, eq=False)
class _Found:
    """`inside` (m, k) is the basis in terms of where it must lie."""

    inside: Tensor
    passes: float
    first_loss: float
    last_loss: float


def _adam(
    goal: Objective, free: Tensor, chosen: Mapping[str, Any], generator: torch.Generator
) -> _Found:
    free = free.requires_grad_(True)
    optimiser = torch.optim.Adam([free], lr=chosen["lr"])
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.1, chosen["steps"])
    order = torch.randperm(len(goal.replay.pairs), generator=generator)
    batches = [goal.subset(pairs) for pairs in order.split(chosen["batch"])]
    losses: list[float] = []
    gradients = 0
    for step in track(range(chosen["steps"]), f"DAS at {goal.replay.site}"):
        batch = batches[step % len(batches)]
        free.grad = None
        losses.append(batch.descend(free))
        gradients += batch.gradients
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            free.copy_(retracted(free))
    last = sum(losses[-10:]) / len(losses[-10:])
    return _Found(retracted(free), gradients / len(goal.replay.pairs), losses[0], last)


class _Spent(Exception):
    """All passes are taken."""


LENGTH = 4.0
"""Norm of the columns that L-BFGS begins with. Its first step has length one: an angle of 14°."""


def _lbfgs(goal: Objective, free: Tensor, chosen: Mapping[str, Any], _: torch.Generator) -> _Found:
    replay = goal.replay
    losses: list[float] = []
    reached: list[float] = []
    best = free

    def value_and_gradient(x: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal best
        if len(losses) == chosen["steps"]:
            raise _Spent
        here = torch.from_numpy(x.copy()).view_as(free).requires_grad_(True)
        value = goal.descend(here)
        gradient = here.grad
        if gradient is None or not math.isfinite(value) or not bool(gradient.isfinite().all()):
            raise SubspaceError(
                f"das at {replay.site}: the {chosen['loss']} or its gradient is not finite in "
                f"{replay.lens.dtype}: load the model in float32 or bfloat16"
            )
        if value < min(losses, default=math.inf):
            best = retracted(here.detach())
        losses.append(value)
        move(len(losses), title)
        return value, gradient.flatten().numpy()

    def stop_when_slow(intermediate_result: OptimizeResult) -> None:
        reached.append(float(intermediate_result.fun))
        last, now = [losses[0], *reached][-2:]
        if last - now <= chosen["tolerance"] * (losses[0] - now):
            raise StopIteration

    first = (LENGTH * retracted(free.double())).flatten().numpy()
    title = f"DAS at {replay.site}"
    with bar(title, chosen["steps"]) as move, suppress(_Spent):
        minimize(
            value_and_gradient, first, jac=True, method="L-BFGS-B", callback=stop_when_slow,
            options={"ftol": 0.0, "gtol": 0.0},
        )  # fmt: skip
    each = goal.gradients / len(replay.pairs)
    return _Found(best, len(losses) * each, losses[0], min(losses))
