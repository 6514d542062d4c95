"""Tests of how the subspace was chosen: by chance, by the gradient."""

from __future__ import annotations

import numpy as np

from ...core.geometry import svd
from ...core.records import Estimate
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
    axis = svd(slopes)[2][0]
    cosine = round(float((case.basis.T @ axis).norm()), DIGITS)
    control = float(np.mean([float((b.T @ axis).norm()) for b in case.haar()]))
    return test_of(
        Estimate(value=cosine),
        f"the cosine with the gradient is {cosine:.2f}; the gradient knows what acts, "
        "not what varies",
        control,
    )
