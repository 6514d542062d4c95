"""From a patch to a rank-1 edit that does the same at one token (arXiv 2311.17030 §6)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.errors import EditError
from .rank_one import RankOneEdit
from .second_moments import SecondMoment


def key_vector(moment: SecondMoment, keys: Tensor) -> Tensor:
    """Of all b with bᵀx = 1 the one that minimises bᵀΣb, the mean square of what the edit reads
    elsewhere: b = Σ⁻¹x / (xᵀΣ⁻¹x), float64 (n, d) for keys x (n, d).

    Raises `EditError` for a key of zeros or a singular Σ.
    """
    x = keys.double().cpu()
    solved = moment.solve(x.T).T
    scale = (x * solved).sum(-1, keepdim=True)
    if not bool((scale > 0).all()):
        raise EditError("a key that is zero has no edit: nothing is active at that token")
    return solved / scale


def edit_from_patch(
    weight: Tensor,
    layer: int,
    directions: Tensor,
    base: Tensor,
    source: Tensor,
    moment: SecondMoment,
) -> list[RankOneEdit]:
    """For each pair the rank-1 edit that does at one token what a patch does (arXiv 2311.17030 §6).

    W' = W + a bᵀ with W' x_base = W x_patched: a = (vᵀ(x_src - x_base)) W v and b = `key_vector`
    (x_base). It is exact at that token and acts, weakly, at all others. `weight` is W (d_model, d)
    of `layer`; `directions` unit v, `base` and `source` activations, all (n, d); `moment` Σ of the
    activations over text. Computed in float64. Raises `EditError` for a key of zeros or a singular
    Σ.

    >>> edits = edit_from_patch(weight, 18, v, base, source, second_moments(lens, [18], text)[18])
    """
    v, x, y = (t.double().cpu() for t in (directions, base, source))
    written = v @ weight.double().cpu().T
    a = ((y - x) * v).sum(-1, keepdim=True) * written
    return [
        RankOneEdit(layer, a_row, b_row)
        for a_row, b_row in zip(a, key_vector(moment, x), strict=True)
    ]


def variance(b: Tensor, moment: SecondMoment) -> Tensor:
    """bᵀΣb of vectors (n, d), float64 (n,), with the Σ that edits are made with."""
    b = b.double().cpu()
    return torch.einsum("nd,de,ne->n", b, moment.effective, b)
