"""Dormant and disconnected, shown: what the MLP writes along v_grad, by nature and when patched."""

from __future__ import annotations

import numpy as np
import torch

from ...capture import Capture
from ...model import LensModel
from ...patching import SubspacePatch
from ...results import Scatter, Written, _Record
from ...subspace import Subspace

NATURAL = (0.005, 0.995)


class Dormant(_Record):
    """Of one MLP direction. `along_v_grad`: projection of the MLP's output on the unit v_grad of
    the place, natural prompts by class and patched bases by the class of the base. `in_range`:
    share of the patched values inside the central 99 % of the natural ones. `natural_gap` and
    `patched_gap`: difference of the class means, z = 1 minus z = 0, in natural standard deviations.
    """

    site: str
    along_v_grad: Written
    in_range: float
    natural_gap: float
    patched_gap: float


def dormant(lens: LensModel, captured: Capture, v_mlp: Subspace, v_grad: Subspace) -> Dormant:
    """Projects the MLP's output before and after the patch of `v_mlp` on all pairs captured."""
    site = v_mlp.site
    weight = lens.map.writer(site)
    assert weight is not None
    read = v_grad.basis[:, 0].to(weight) @ weight
    base, source = captured.base[site], captured.source[site]
    natural = (torch.cat([base, source]) @ read).cpu().double().numpy()
    moved = base + SubspacePatch(v_mlp.basis).delta(base, source)
    patched = (moved @ read).cpu().double().numpy()
    z = np.array([pair.z for pair in captured.pairs.pairs])
    low, high = np.quantile(natural, NATURAL)
    spread = natural.std() or 1.0
    both = z.T.flatten()
    return Dormant(
        site=str(site),
        along_v_grad=Written(natural=_by_class(natural, both), patched=_by_class(patched, z[:, 0])),
        in_range=float(((patched >= low) & (patched <= high)).mean()),
        natural_gap=float((natural[both == 1].mean() - natural[both == 0].mean()) / spread),
        patched_gap=float((patched[z[:, 0] == 1].mean() - patched[z[:, 0] == 0].mean()) / spread),
    )


def _by_class(values: np.ndarray, z: np.ndarray) -> Scatter:
    return Scatter(z0=values[z == 0].tolist(), z1=values[z == 1].tolist())
