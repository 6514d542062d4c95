"""Illusions made by hand, without training: read what is disconnected, write what sleeps.

At an MLP site with down-projection W, n is a direction of the kernel that varies with the feature,
so nothing reads it; d is a direction of the row space whose write W d goes along t, by which the
feature is written in the residual stream. v = cos θ n + sin θ d reads mostly n and writes only
along W d (arXiv 2311.17030 §3 and its remark on MLPs between two components).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..certify import centred
from ..core.geometry import Split
from ..core.site import Site
from ..engine.replay import Replay
from ..fit.closed_form import between_means, by_class
from ..measure.nature import turned
from ..model.lens import LensModel
from ..tasks.pairset import PairSet

"""d ∝ W⁺t writes t and nothing else; d ∝ Wᵀt is the unit direction that writes most along t."""

TARGETS = ("difference", "gradient")
"""t is how the classes differ in the residual stream behind the layer, or the gradient there of the
logit difference, both as means over pairs and turned towards z = 1."""


@dataclass(frozen=True)
class Construction:
    """Unit directions, float64 (m, dim): one for all pairs (m = 1), or one for each. `angle` (m,)
    is θ in radians, at which the patch writes most along `write`."""

    read: Tensor = field(repr=False)
    write: Tensor = field(repr=False)
    angle: Tensor

    @property
    def direction(self) -> Tensor:
        """v, (m, dim)."""
        return self.angle.cos()[:, None] * self.read + self.angle.sin()[:, None] * self.write


def best_angle(read: Tensor, write: Tensor, change: Tensor) -> Tensor:
    """θ, (m,), at which sin θ (cos θ n + sin θ d)ᵀΔ is largest on average.

    `read`, `write` (m, dim) unit directions; `change` (m, dim) the mean of Δ towards z = 1, or each
    pair's own. With a = nᵀΔ and b = dᵀΔ it is ½ (a sin 2θ - b cos 2θ + b): for a dormant d
    (b = 0) 45°, whence the paper's 1/√2.
    """
    a, b = (read * change).sum(-1), (write * change).sum(-1)
    return torch.atan2(a, -b) / 2


def constructions(
    weight: Tensor, split: Split, sensed: Tensor, target: Tensor
) -> dict[str, Construction]:
    """Both writings. `weight` W (out, dim), `split` its row space and kernel; `sensed` (m, dim) is
    what n should sense and `target` (m, out) what should be written."""
    read = _unit(split.null(sensed.T).T)
    inside = weight @ split.rows
    along = target.double()
    inner = {
        "pseudoinverse": torch.linalg.lstsq(inside, along.T).solution.T,
        "transpose": along @ inside,
    }
    writes = {name: _unit(coordinates @ split.rows.T) for name, coordinates in inner.items()}
    return {
        name: Construction(read, write, best_angle(read, write, sensed.double()))
        for name, write in writes.items()
    }


def written_through(lens: LensModel, site: Site) -> tuple[Tensor, Split]:
    """The site's writer W (d_model, dim) as its readers see it, centred where they centre, float64
    on the CPU; and its row space and kernel. Raises `SiteError` for a site without a writer."""
    is_centred = centred(lens)
    weight = lens.map.linear_writer(site)
    matrix = weight.cpu().double()
    if is_centred:
        matrix = matrix - matrix.mean(dim=0, keepdim=True)
    return matrix, Split.of(weight, centred=is_centred)


def sensed(replay: Replay, *, one_for_all: bool = True) -> Tensor:
    """How the activation changes with the feature: the difference of the class means, float64
    (1, dim); or, not `one_for_all`, each pair's own difference, (n, dim)."""
    if not one_for_all:
        return _double(replay.difference)
    x, z = by_class(replay)
    return between_means(_double(x), z)[None]


def targets(replay: Replay, *, one_for_all: bool = True) -> dict[str, Tensor]:
    """`TARGETS` at the site of `replay`, the residual stream behind the layer: float64 (1, d), or
    (n, d), one a pair."""
    downhill = -_double(replay.gradients())
    if one_for_all:
        downhill = (turned(replay)[:, None] * downhill).mean(0, keepdim=True)
    return {"difference": sensed(replay, one_for_all=one_for_all), "gradient": downhill}


def has_classes(pairs: PairSet) -> bool:
    """Whether every pair says which of two classes its prompts belong to, and the two differ."""
    return len(pairs.classes) == 2 and all(
        pair.z is not None and pair.z[0] != pair.z[1] for pair in pairs.pairs
    )


def along(direction: Tensor, change: Tensor) -> Tensor:
    """δ = (vᵀΔ) v for unit v (1 | n, dim) and Δ (n, dim), float64."""
    change = _double(change)
    return (direction * change).sum(-1, keepdim=True) * direction


def random_write(split: Split, count: int, generator: torch.Generator) -> Tensor:
    """Unit directions of the row space, uniformly at random, (count, dim)."""
    draws = torch.randn(count, split.rank, generator=generator, dtype=torch.float64)
    return _unit(draws @ split.rows.T)


def _double(x: Tensor) -> Tensor:
    return x.detach().cpu().double()


def _unit(rows: Tensor) -> Tensor:
    """Rows of length 1; a row of zeros (no target: nothing is read any more) stays one."""
    return torch.nn.functional.normalize(rows, dim=-1)
