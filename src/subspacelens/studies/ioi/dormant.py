"""Dormant and disconnected, shown: what the MLP writes along v_grad, by nature and when patched."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...audit.record import Scatter, Written
from ...certify import centred
from ...core.records import Estimate, Record
from ...engine.patches import SubspacePatch
from ...engine.replay import Replay
from ...fit.subspace import Subspace
from ...measure.effects import named_patches
from ...measure.splits import exact_split

NATURAL = (0.005, 0.995)


class Dormant(Record):
    """Of one MLP direction. `effect`, `read_row` and `read_null` are FLDD: of the patch, and of
    writing the whole direction while only its part that is read downstream, or only its part that
    nothing reads, senses the source. `along_v_grad`: projection of the MLP's output on the unit
    v_grad right behind it, natural prompts by class and patched bases by the class of the base.
    `in_range`: share of the patched values inside the central 99 % of the natural ones;
    `in_range_written`: the same along the direction that the patch itself writes. `natural_gap` and
    `patched_gap`: difference of the class means, z = 1 minus z = 0, in natural standard deviations.
    """

    site: str
    effect: Estimate
    read_row: Estimate
    read_null: Estimate
    along_v_grad: Written
    in_range: float
    in_range_written: float
    natural_gap: float
    patched_gap: float


def dormant(replay: Replay, v_mlp: Subspace, v_grad: Subspace) -> Dormant:
    """Splits what `v_mlp` reads, and projects the MLP's output before and after its patch on
    `v_grad`, on all pairs of a replay of its site."""
    lens, site = replay.lens, replay.site
    parts = exact_split(lens, site, v_mlp.basis, centred=centred(lens))
    wanted = {
        name: patch
        for name, patch in named_patches(parts, parts.basis).items()
        if name in ("subspace", "read_row", "read_null")
    }
    effects = replay.effects(wanted, decided=True)
    weight = lens.map.linear_writer(site)
    base, source = replay.base, replay.source
    moved = base + SubspacePatch(v_mlp.basis).delta(base, source)
    written = weight @ v_mlp.basis[:, 0].to(weight)

    def along(direction: Tensor) -> tuple[np.ndarray, np.ndarray]:
        read = direction.to(weight) @ weight
        natural, patched = torch.cat([base, source]) @ read, moved @ read
        return natural.cpu().double().numpy(), patched.cpu().double().numpy()

    natural, patched = along(v_grad.basis[:, 0])
    z = np.array([pair.z for pair in replay.pairs])
    spread = natural.std() or 1.0
    both = z.T.flatten()
    return Dormant(
        site=str(site),
        effect=effects["subspace"].fldd,
        read_row=effects["read_row"].fldd,
        read_null=effects["read_null"].fldd,
        along_v_grad=Written(natural=_by_class(natural, both), patched=_by_class(patched, z[:, 0])),
        in_range=_inside(natural, patched),
        in_range_written=_inside(*along(written)),
        natural_gap=float((natural[both == 1].mean() - natural[both == 0].mean()) / spread),
        patched_gap=float((patched[z[:, 0] == 1].mean() - patched[z[:, 0] == 0].mean()) / spread),
    )


def _inside(natural: np.ndarray, patched: np.ndarray) -> float:
    """Share of the patched values in the central 99 % of the natural ones."""
    low, high = np.quantile(natural, NATURAL)
    return float(((patched >= low) & (patched <= high)).mean())


def _by_class(values: np.ndarray, z: np.ndarray) -> Scatter:
    return Scatter(z0=values[z == 0].tolist(), z1=values[z == 1].tolist())
