"""Tests of how the subspace was chosen: by chance, by the gradient, by another half of the data, by
a model that knows nothing."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from ...core.errors import LensError
from ...core.geometry import principal_angles
from ...core.records import Estimate
from ...core.site import Site
from ...core.statistics import ratio
from ...engine.capture import Capture, capture
from ...engine.effect import Effect
from ...engine.patches import SubspacePatch
from ...engine.random_weights import random_model
from ...fit import FITS
from ...fit.subspace import Subspace
from ...model.lens import LensModel
from ...tasks.pairset import PairSet
from ..record import Test
from .case import Case, test_of, void

GRADIENT_PAIRS = 64
DIGITS = 9
"""Of a cosine: the last bits of a gradient depend on where its memory lies."""


def chance(case: Case) -> Test:
    """Is the effect beyond a random subspace's? Share of uniformly random subspaces that write as
    much, with the true one among them, that do at least as much: the p-value of a Monte Carlo test.
    Control: the share that do of subspaces drawn from the natural covariance of what is orthogonal
    to this one."""
    random = case.random
    size = abs(case.drop[: random.uniform.shape[1]].mean())
    above, natural_above = (
        int((np.abs(drops.mean(axis=1)) >= size).sum())
        for drops in (random.uniform, random.natural)
    )
    p = (1 + above) / (1 + len(random.uniform))
    return test_of(
        Estimate(value=p),
        f"{above} of {len(random.uniform)} uniformly random subspaces that write as much do as "
        f"much (p = {p:.2g}), and {natural_above} of {len(random.natural)} drawn from the natural "
        "covariance of the rest",
        natural_above / len(random.natural),
    )


def gradient_agreement(case: Case) -> Test:
    """Would the model's own gradient choose it? Largest cosine of a direction in V with the leading
    axis of the per-pair gradients of the logit difference (training pairs)."""
    some = case.setting.fitted.subset(slice(GRADIENT_PAIRS))
    slopes = some.gradients().cpu().double()
    if float(slopes.norm()) == 0:
        return void("the gradient is zero")
    axis = torch.linalg.svd(slopes, full_matrices=False)[2][0]
    cosine = round(float((case.basis.T @ axis).norm()), DIGITS)
    control = float(np.mean([float((b.T @ axis).norm()) for b in case.haar()]))
    return test_of(
        Estimate(value=cosine),
        f"the cosine with the gradient is {cosine:.2f}; the gradient knows what acts, "
        "not what varies",
        control,
    )


def stability(case: Case) -> Test:
    """Would the other half of the data find the same? Mean squared cosine of the principal angles
    between fits on random halves of the training prompts, by the method of this subspace."""
    if not _repeatable(case):
        return void("the method is not one that could be run again")
    dim = case.basis.shape[1]
    try:
        first, second = (
            _again(case, case.lens, half, seed).basis
            for seed, half in enumerate(halves_of(case.captures.train, case.site, case.seed))
        )
    except LensError as error:
        return void(f"half of the data is too little: {error}")
    shared = float((np.cos(principal_angles(first, second)) ** 2).mean())
    own = np.mean([np.cos(principal_angles(case.basis, half)) ** 2 for half in (first, second)])
    return test_of(
        Estimate(value=shared),
        f"fits on either half of the training pairs share {shared:.0%}, and {own:.0%} on average "
        "with this subspace (squared cosine)",
        dim / case.basis.shape[0],
    )


def halves_of(captured: Capture, site: Site, seed: int) -> Iterator[Capture]:
    """Two random halves of a capture that share no unit of the site and hold about as many bases of
    either z. Raises `TaskError` for a single unit."""
    pairs = captured.pairs
    units = captured.at(site).units
    z = np.array([pair.z[0] if pair.z else 0 for pair in pairs])
    for number, half in enumerate(units.halves(z, seed)):
        chosen = tuple(pairs[int(i)] for i in half)
        yield captured.select(PairSet(pairs.name, f"half {number}", chosen), torch.from_numpy(half))


def vacuity(case: Case) -> Test:
    """Does the method find the same in a model that knows nothing? Pairs that the same fit turns to
    the target in a copy with random matrices, over those that it turns in the model itself."""
    if not _repeatable(case):
        return void("the method is not one that could be run again")
    pairs = case.replay.pairs
    together = PairSet(pairs.name, "all", (*case.captures.train.pairs.pairs, *pairs.pairs))
    count = len(case.captures.train.pairs)
    try:
        blank = random_model(case.lens, case.seed)
        captured = capture(blank, together, [case.site], shifted=True, memory=case.replay.memory)
        train = captured.select(case.captures.train.pairs, torch.arange(count))
        test = captured.select(pairs, torch.arange(count, len(together)))
        basis = _again(case, blank, train, case.seed).basis
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


def _again(case: Case, lens: LensModel, captured: Capture, seed: int) -> Subspace:
    """The subspace's own method with its own settings, on other activations."""
    record = case.subspace.fit
    fit, dim = FITS[str(record["method"])], case.basis.shape[1]
    settings = {name: record[name] for name in fit.options if name in record}
    return fit(lens, captured, case.site, dim=dim, seed=seed, **settings)
