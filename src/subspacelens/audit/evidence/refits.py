"""Tests that fit again by the subspace's own method: on halves of the data, to labels that say
nothing, in a model that knows nothing."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from ...core.errors import LensError
from ...core.geometry import principal_angles
from ...core.records import Estimate
from ...core.site import Site
from ...core.statistics import ratio
from ...engine.capture import Capture, capture
from ...engine.effect import Effect
from ...engine.outcomes import Outcomes
from ...engine.patches import SubspacePatch
from ...engine.random_weights import random_model
from ...fit import FITS
from ...model.lens import LensModel
from ...tasks.pairset import Pair, PairSet
from ..record import Test
from .case import NO_EFFECT, Case, test_of, void

REFITS = 3
"""Halvings of the training prompts, and shufflings of their labels."""
NO_METHOD = "the method is not one that could be run again"


def stability(case: Case) -> Test:
    """Would the other half of the data find the same? Mean squared cosine of the principal angles
    between fits on two random halves of the training prompts, by the method of this subspace: mean,
    least and most of `REFITS` halvings. The FLDD of such fits differ as a whole fit does from one
    to other data (half samples, McCarthy 1969): half their difference is its standard error."""
    if not _repeatable(case):
        return void(NO_METHOD)
    train, shared, fits = case.captures.train, [], []
    try:
        for seed in range(REFITS):
            pair = [
                _again(case, case.lens, half, seed)
                for half in halves_of(train, case.site, case.seed + seed)
            ]
            shared.append(_shared(*pair))
            fits += pair
    except LensError as error:
        return void(f"half of the data is too little: {error}")
    own = np.mean([_shared(case.basis, basis) for basis in fits])
    return test_of(
        _range(shared),
        f"fits on either half of the training pairs share {np.mean(shared):.0%} (mean of {REFITS} "
        f"halvings; low and high are the least and the most), and {own:.0%} on average with this "
        f"subspace (squared cosine){_spread(case, fits)}",
        case.basis.shape[1] / case.basis.shape[0],
    )


def _spread(case: Case, fits: list[Tensor]) -> str:
    """What the FLDD of `fits`, one on either half of the data in turn, says of a fit's chance."""
    effects = case.replay.effects({str(i): SubspacePatch(basis) for i, basis in enumerate(fits)})
    values = [effect.fldd.value for effect in effects.values()]
    own = case.effects["subspace"].fldd.value
    known = [value for value in values if value is not None]
    if own is None or len(known) < len(values):
        return ""
    error = np.sqrt(np.mean((np.array(known[::2]) - known[1::2]) ** 2)) / 2
    return (
        f"; their FLDD is {min(known):.2f} to {max(known):.2f}, its own {own:.2f}: that other "
        f"training pairs give another fit adds about ± {error:.2f} (standard error), which no "
        "interval here contains"
    )


def shuffled_labels(case: Case) -> Test:
    """What does the method find where there is nothing to find? Size of the effect of fits to
    labels that say nothing (answer and target exchanged, and z turned, in a random half of the
    training prompts) over that of the subspace: mean, least and most of `REFITS` shufflings. A
    method that takes gradients knows what acts even so."""
    if not _repeatable(case):
        return void(NO_METHOD)
    train, site = case.captures.train, case.site
    try:
        fits = [
            _again(case, case.lens, shuffled(train, site, case.seed + seed), seed)
            for seed in range(REFITS)
        ]
    except LensError as error:
        return void(f"the method fails where labels say nothing: {error}")
    if all(_shared(first, second) > 1 - 1e-6 for first, second in combinations(fits, 2)):
        return void("the method looks at no labels")
    effects = case.replay.effects({str(i): SubspacePatch(basis) for i, basis in enumerate(fits)})
    shares = [case.share(effect.moved).value for effect in effects.values()]
    sizes = [abs(share) for share in shares if share is not None]
    if not sizes:
        return void(NO_EFFECT)
    return test_of(
        _range(sizes),
        "fitted to labels that say nothing, the method finds subspaces whose effect is "
        f"{', '.join(f'{size:.0%}' for size in sizes)} of this one's in size",
    )


def _range(values: list[float]) -> Estimate:
    return Estimate(value=float(np.mean(values)), low=min(values), high=max(values))


def halves_of(captured: Capture, site: Site, seed: int) -> tuple[Capture, Capture]:
    """Two random halves of a capture that share no unit of the site and hold about as many bases of
    either z. Raises `TaskError` for a single unit."""
    first, second = (
        captured.subset(torch.from_numpy(half)) for half in _halves(captured, site, seed)
    )
    return first, second


def shuffled(captured: Capture, site: Site, seed: int) -> Capture:
    """The capture with the labels of a random half of its units turned, as many of either z: answer
    and target exchanged, z = 1 for 0 and 0 for 1."""
    chosen = set(_halves(captured, site, seed)[0].tolist())
    pairs = [_turned_pair(p) if i in chosen else p for i, p in enumerate(captured.pairs)]
    sign = torch.tensor([-1.0 if i in chosen else 1.0 for i in range(len(pairs))])
    clean = Outcomes(captured.clean.logit_diff * sign, captured.clean.top)
    named = PairSet(captured.pairs.name, "shuffled", tuple(pairs))
    return replace(captured, pairs=named, clean=clean)


def _turned_pair(pair: Pair) -> Pair:
    return replace(pair.exchanged(), z=pair.z and pair.z[::-1])


def _halves(captured: Capture, site: Site, seed: int) -> tuple[np.ndarray, np.ndarray]:
    z = np.array([str(pair.z[0]) if pair.z else "" for pair in captured.pairs])
    return captured.at(site).units.halves(z, seed)


def vacuity(case: Case) -> Test:
    """Does the method find the same in a model that knows nothing? Pairs that the same fit turns to
    the target in a copy with random matrices, over those that it turns in the model itself."""
    if not _repeatable(case):
        return void(NO_METHOD)
    pairs = case.replay.pairs
    together = PairSet(pairs.name, "all", (*case.captures.train.pairs.pairs, *pairs.pairs))
    count = len(case.captures.train.pairs)
    try:
        blank = random_model(case.lens, case.seed)
        captured = capture(blank, together, [case.site], shifted=True, memory=case.replay.memory)
        train = captured.select(case.captures.train.pairs, torch.arange(count))
        test = captured.select(pairs, torch.arange(count, len(together)))
        basis = _again(case, blank, train, case.seed)
    except LensError as error:
        return void(f"the method fails in a copy with random matrices: {error}")
    there = _turned(test.at(case.site).effect(SubspacePatch(basis)))
    share = ratio(there, _turned(case.effects["subspace"]), case.units)
    if share.value is None:
        return void("the patch turns no pair to the target")
    return test_of(
        share,
        f"in a copy with random matrices the same fit turns {there.mean():.0%} of the pairs to the "
        f"target, {share.value:.0%} of what it turns here",
        0.0,
    )


def _turned(effect: Effect) -> np.ndarray:
    """1 for pairs that prefer the target under the patch alone, -1 for those only without it."""
    patched, clean = (x.logit_diff.numpy() < 0 for x in (effect.patched, effect.clean))
    return patched.astype(float) - clean.astype(float)


def _repeatable(case: Case) -> bool:
    method = str(case.subspace.fit.get("method"))
    return method in FITS and not FITS[method].blind


def _shared(first: Tensor, second: Tensor) -> float:
    """Mean squared cosine of the principal angles."""
    return float((np.cos(principal_angles(first, second)) ** 2).mean())


def _again(case: Case, lens: LensModel, captured: Capture, seed: int) -> Tensor:
    """The basis (dim, k) that the subspace's own method finds, with its own settings, in other
    activations."""
    record = case.subspace.fit
    fit, dim = FITS[str(record["method"])], case.basis.shape[1]
    settings = {name: record[name] for name in fit.options if name in record}
    return fit(lens, captured, case.site, dim=dim, seed=seed, **settings).basis
