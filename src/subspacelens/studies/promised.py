"""What the first-order theory promises at the sites of a study, beside what was measured there."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from ..core.records import Record
from ..core.site import Site
from ..measure.maps import instant_map
from ..model.lens import LensModel
from ..tasks import PairSet


class Promise(Record):
    """One site, from one forward and one backward pass (see `instant_map`). FLDD that the whole
    component and the best direction are to have, the cosine between what varies and what acts, and
    the share of illusion of that direction; None where a quantity does not exist."""

    site: str
    whole: float | None
    best: float | None
    cosine: float
    illusion: float | None


def promises(
    lens: LensModel,
    pairs: PairSet,
    sites: Iterable[Site | str],
    *,
    refined: bool = False,
    shifted: bool = False,
    memory: int | None = None,
) -> list[Promise]:
    """Of each of `sites`, whole components, from all of `pairs`; `refined`: with the gradient's
    mean along the way from base to source, by replay."""
    chosen = list(dict.fromkeys(map(Site.of, sites)))
    found = instant_map(
        lens, pairs, [site.stream for site in chosen], [site.label for site in chosen],
        refine=chosen if refined else (), shifted=shifted, memory=memory, limit=None,
    )  # fmt: skip
    scores = [found.at(site) for site in chosen]
    return [
        Promise(
            site=str(score.site),
            whole=_finite(score.whole_fldd),
            best=_finite(score.das_fldd),
            cosine=float(score.cosine),
            illusion=_finite(score.illusion),
        )
        for score in scores
    ]


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


class Slopes(BaseModel):
    """For each pair alone, whose best direction lies halfway between Δ and g: the cosine between
    the two, and ‖Δ‖‖g‖ in nats. To first order the whole component lowers the logit difference by
    cosine · size, the best direction by (1 + cosine)/2 · size."""

    model_config = ConfigDict(extra="forbid")

    cosine: list[float]
    size: list[float]

    @classmethod
    def of(cls, difference: Tensor, gradients: Tensor) -> Slopes:
        """From Δ (n, d) and the gradients (n, d) of the logit difference, in nats a unit."""
        delta, g = difference.cpu().double(), -gradients.cpu().double()
        return cls(
            cosine=torch.cosine_similarity(delta, g, dim=-1).tolist(),
            size=(delta.norm(dim=-1) * g.norm(dim=-1)).tolist(),
        )

    @property
    def whole(self) -> np.ndarray:
        """Nats by which the whole component is to lower each pair's logit difference (n,)."""
        return np.array(self.cosine) * np.array(self.size)

    @property
    def best(self) -> np.ndarray:
        """The same of each pair's best direction (n,)."""
        return (1 + np.array(self.cosine)) / 2 * np.array(self.size)
