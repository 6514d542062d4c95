"""Illusions made by hand where nothing is disconnected by construction, as in the residual stream.

n is how the classes differ, less everything along which any pair's answer reacts: it tells the
classes apart and moves nothing. d is the direction in which the answer reacts most, less where
nature moves: it acts and is dormant. v = (n + d)/√2 reads the one and writes the other
(arXiv 2311.17030 §3, without a kernel). A harder sensor lies where the answers of single pairs
react, but not on average: then whoever reads only where the answer reacts reads it too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.geometry import orthonormal, svd
from ..engine.replay import Replay
from ..fit.change import acting_directions
from ..fit.closed_form import between_means, by_class
from ..measure.nature import turned

AXES = 5


def residual_illusions(replay: Replay) -> dict[str, Tensor]:
    """Unit directions v, float64 (d,), by what d lacks: the `mean` difference of the classes, the
    `axes` along which base and source differ most (`AXES`), or `most` of them (95 % of Δ's squared
    norm). Of `inside` the sensor lies where single answers react, off the mean gradients.

    Raises `TaskError` where a pair has no z or one class is empty.

    >>> residual_illusions(captures.train.at("L17.resid_post@S2"))["mean"].shape
    """
    x, z = by_class(replay)
    x = x.cpu().double()
    mean = between_means(x, z)
    slopes = replay.gradients().cpu().double()
    half = replay.gradients(replay.difference / 2).cpu().double()
    reacting = acting_directions(torch.cat([slopes, half]))
    sensor, turn = _unit(_less(mean, reacting)), turned(replay)[:, None]
    pull, later = -(turn * slopes).mean(dim=0), -(turn * half).mean(dim=0)
    difference = replay.difference.cpu().double()
    natural = {
        "mean": _unit(mean)[:, None],
        "axes": svd(difference)[2][:AXES].T,
        "most": acting_directions(difference, 0.95),
    }
    pulls = orthonormal(torch.stack([pull, later], dim=1))
    inside = _unit(_less(reacting @ (reacting.T @ mean), pulls))
    found = {name: _illusion(sensor, pull, axes) for name, axes in natural.items()}
    return found | {"inside": _illusion(inside, pull, natural["mean"])}


def _illusion(sensor: Tensor, pull: Tensor, natural: Tensor) -> Tensor:
    dormant = _less(pull, orthonormal(torch.cat([natural, sensor[:, None]], dim=1)))
    return _unit(sensor + _unit(dormant))


def _less(x: Tensor, axes: Tensor) -> Tensor:
    return x - axes @ (axes.T @ x)


def _unit(x: Tensor) -> Tensor:
    return x / x.norm()
