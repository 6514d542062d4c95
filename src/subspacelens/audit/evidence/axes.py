"""A subspace of several dimensions, axis by axis: which of them do what the whole of it does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ...core.records import Estimate
from ...core.statistics import ratio
from ..record import Axis, AxisLabel
from ..verdict import asked_at, label_of_axis
from . import effects, natural, nature
from .case import Case

MOST = 8
"""Axes that are looked at one by one; the rest are one."""
PAIRS = 64
LEAST = 0.1
"""An axis with less of the effect than this is not judged."""
IDLE = 0.25
"""An axis does nothing if its effect is clearly below this share of an even part."""

_CONDITIONS = {
    "row_effect": effects.row_effect,
    "covariation": nature.covariation,
    "read_source": effects.read_source,
    "natural": natural.natural,
    "beyond": natural.beyond,
    "acting": natural.acting,
    "comovement": natural.comovement,
}


def axes(case: Case) -> tuple[Axis, ...]:
    """The principal axes of what nature does within V, Vᵀ E[ΔΔᵀ] V, largest first, each patched
    alone and judged as the whole is. None for a subspace of one dimension, or of all."""
    width, dim = case.basis.shape
    if dim in (1, width):
        return ()
    inside = case.setting.fitted.difference.cpu().double() @ case.basis
    _, _, turned = torch.linalg.svd(inside, full_matrices=True)
    columns = case.basis @ turned.T
    parts = columns.split([1] * min(dim, MOST) + [dim - MOST] * (dim > MOST), dim=1)
    some = replace(
        case,
        setting=case.setting.subset(slice(PAIRS)),
        patches=("subspace", "row", "read_row", "read_null"),
        proxies=False,
    )
    whole = case.drop[:PAIRS]
    return tuple(_axis(some, whole, part, number) for number, part in enumerate(parts, 1))


def _axis(case: Case, whole: np.ndarray, basis: Tensor, number: int) -> Axis:
    own = replace(case, subspace=replace(case.subspace, basis=basis.float()))
    dimensions, even = basis.shape[1], basis.shape[1] / case.basis.shape[1]
    known = abs(whole.mean()) >= case.smallest
    share = ratio(own.drop, whole, case.units) if known else Estimate(value=None)
    label: AxisLabel = "unjudged"
    if share.low is not None and share.high is not None:
        if max(abs(share.low), abs(share.high)) < IDLE * even:
            label = "idle"
        elif share.low > LEAST:
            tests = {name: _CONDITIONS[name](own) for name in asked_at(own.exact)[1:]}
            label = label_of_axis(tests, own.exact)
    return Axis(number=number, dimensions=dimensions, share=share, label=label)
