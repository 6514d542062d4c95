"""What z changes at a site by its class means, and where the answer reacts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.errors import TaskError
from ..core.geometry import svd
from ..engine.replay import Replay
from ..tasks.pairset import PairSet, Value

ENERGY = 0.99
"""The directions that act carry this share of the gradients' squared norm."""


def class_means(replay: Replay) -> dict[tuple[str, Value], Tensor]:
    """The mean activation (d,), float64 on the CPU, of all bases and sources by template and value
    of z. Raises `TaskError` for a pair without z, and where z has one value."""
    x = torch.cat([replay.base, replay.source]).cpu().double()
    both, templates = classes(replay.pairs), [pair.template for pair in replay.pairs]
    z = [before for before, _ in both] + [after for _, after in both]
    keys = list(zip(2 * templates, z, strict=True))
    return {
        key: x[torch.tensor([each == key for each in keys])].mean(dim=0)
        for key in dict.fromkeys(keys)
    }


def class_changes(replay: Replay) -> Tensor:
    """For each pair the mean of its source's class less that of its base's, both of the pair's
    template, float64 (n, d). Raises as `class_means`."""
    means = class_means(replay)
    ends = zip(replay.pairs, classes(replay.pairs), strict=True)
    return torch.stack([means[p.template, after] - means[p.template, z] for p, (z, after) in ends])


def classes(pairs: PairSet) -> Sequence[tuple[Value, Value]]:
    """z of base and source of each pair. Raises `TaskError` where a pair has none, and where z has
    one value in all prompts."""
    found = [pair.z for pair in pairs if pair.z is not None]
    if len(found) < len(pairs):
        number = next(number for number, pair in enumerate(pairs) if pair.z is None)
        raise TaskError(f"task {pairs.name}: pair {number} has no z, which this needs")
    if len({value for both in found for value in both}) < 2:
        raise TaskError(f"task {pairs.name}: z is {found[0][0]} in every prompt")
    return found


def reactions(replay: Replay) -> Tensor:
    """The gradients of the logit difference at the base and half way to the source, (2n, d), in
    nats a unit."""
    return torch.cat([replay.gradients(), replay.gradients(replay.difference / 2)])


def acting_directions(slopes: Tensor, energy: float = ENERGY) -> Tensor:
    """The leading right singular vectors, float64 (d, r), that carry a share `energy` of the
    squared norm of the gradients `slopes` (m, d)."""
    _, s, vh = svd(slopes.cpu().double())
    carried = s.square().cumsum(0) / s.square().sum().clamp(min=torch.finfo(s.dtype).tiny)
    return vh[: int((carried < energy).sum()) + 1].T.contiguous()
