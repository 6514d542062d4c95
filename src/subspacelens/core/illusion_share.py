"""Which part of what a subspace does is illusion, to first order.

A patch of V reads Vᵀh and writes V for it. Nature writes something else: where the reading VᵀΔ
differs between base and source, the activation differs along the *pattern* A = ΔᵀΔV of that reading
(Haufe et al. 2014, doi 10.1016/j.neuroimage.2013.10.067: the pattern of a filter). What the patch
writes within the span of A is a part of what nature changes; the rest is a change that comes with
that reading in no prompt, and its share of the effect is illusion.
"""

from __future__ import annotations

from torch import Tensor

from .geometry import orthonormal, unit


def illusion_share(difference: Tensor, gradients: Tensor, basis: Tensor) -> float:
    """The share, 0 to 1, of the first-order effect of patching `basis` (dim, k) that it owes to
    writing what nature does not write; 1 where the rest does nothing or works against the effect,
    NaN where there is no positive effect.

    `difference` Δ and `gradients` of logit(answer) - logit(target) at the base, (n, dim) each. With
    P the projector on the span of ΔᵀΔV and g the negative gradients it is
    1 - Σ ΔᵢᵀVVᵀPgᵢ / Σ ΔᵢᵀVVᵀgᵢ: 0 where V holds all that varies with its reading, as the whole
    component does; 1 - cos(Δ, g) where all pairs share one Δ and one g, and V is the best direction
    (`first_order`).

    >>> found = first_order(replay.difference, replay.gradients())
    >>> illusion_share(replay.difference, replay.gradients(), found.basis(1))
    """
    delta, g, v = difference.cpu().double(), -gradients.cpu().double(), basis.cpu().double()
    read = delta @ v
    pattern = orthonormal(unit(delta.T @ read))
    effect = float((read * (g @ v)).sum())
    natural = float((read * (g @ pattern @ (pattern.T @ v))).sum())
    if effect <= 0:
        return float("nan")
    return 1 - min(1.0, max(0.0, natural / effect))
