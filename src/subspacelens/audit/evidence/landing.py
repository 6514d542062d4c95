"""Tests of where a patched activation lands among natural ones."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.covariance import ledoit_wolf
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from ...core.geometry import Support, svd
from ...core.statistics import proportion, ratio
from ..record import Test
from .case import Case, test_of, void

RANGE = (0.005, 0.995)
NEIGHBOURS = 5
AXES = 64


def _patched(case: Case) -> Tensor:
    base, difference = (x.cpu().double() for x in (case.replay.base, case.replay.difference))
    return base + (difference @ case.basis) @ case.basis.T


def natural_range(case: Case) -> Test:
    """Does the patched activation land where natural ones do? Share of patched values between the
    0.5 and the 99.5 % quantile of the training prompts, along what is written (WV; V where the
    site has no writer), every dimension counting alike."""
    weight = case.replay.writer
    written = case.basis if weight is None else weight.cpu().double() @ case.basis
    along, _, _ = svd(written)
    read = along if weight is None else weight.cpu().double().T @ along

    def inside(x: Tensor, axes: Tensor) -> np.ndarray:
        low, high = (torch.quantile(case.train.x @ axes, q, dim=0) for q in RANGE)
        values = x @ axes
        return ((values >= low) & (values <= high)).double().mean(dim=1).numpy()

    patched = _patched(case)
    share = proportion(inside(patched, read), case.units)
    own = float(inside(patched, case.basis).mean())
    usual = float(inside(case.test.x, read).mean())
    return test_of(
        share,
        f"along what is written {share.value:.0%} of the patched values lie where 99 % of natural "
        f"ones do, along the subspace itself {own:.0%}",
        usual,
    )


def off_manifold(case: Case) -> Test:
    """How far from natural activations? Mahalanobis distance (Ledoit-Wolf shrinkage) of patched
    activations over that of natural ones of the same prompts, on the leading axes of the training
    prompts, standardised by them alone."""
    support = Support.of(case.train.x)
    count = min(AXES, support.axes.shape[1])
    if count < 2:
        return void("natural activations do not vary")
    centre = case.train.x.mean(dim=0)
    axes = support.axes[:, :count]
    precision = torch.from_numpy(np.linalg.inv(ledoit_wolf((case.train.x - centre) @ axes)[0]))
    nearest = NearestNeighbors(n_neighbors=NEIGHBOURS).fit((case.train.x @ axes).numpy())

    def distances(x: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        inside = (x - centre) @ axes
        mahalanobis = ((inside @ precision) * inside).sum(dim=1).sqrt()
        near = nearest.kneighbors((x @ axes).numpy())[0].mean(axis=1)
        residual = (x - centre - inside @ axes.T).norm(dim=1)
        return mahalanobis.numpy(), near, residual.numpy()

    ours, theirs = distances(_patched(case)), distances(case.replay.base.cpu().double())
    farther = ratio(ours[0], theirs[0], case.units)
    near, residual = (
        a.mean() / max(b.mean(), 1e-30) for a, b in zip(ours[1:], theirs[1:], strict=True)
    )
    return test_of(
        farther,
        f"patched activations are {farther.value:.2f} times as far from the centre as natural ones "
        f"(Mahalanobis, {count} axes), {near:.2f} times from their {NEIGHBOURS} nearest "
        f"neighbours, {residual:.2f} times off these axes",
        1.0,
    )
