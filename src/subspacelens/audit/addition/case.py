"""What all tests of one addition share: each part is computed once, when it is first asked for.

An addition writes δ = s α v: along a vector v as long as it is given, turned to the pair, s = 1
where z goes from 0 to 1 and -1 where it goes back; without z it is α v everywhere. Nothing is read.
So only what is written matters, W v at a site with a linear writer W, and there all directions are
compared.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ...core.errors import LensError, TaskError
from ...core.geometry import haar, natural_draws, orthonormal, unit
from ...core.records import Estimate
from ...core.statistics import ratio, within_classes
from ...engine.effect import Effect
from ...engine.patches import Add, Patch
from ...engine.replay import Replay
from ...fit.closed_form import between_means, by_class
from ...measure.effects import RANDOM_DRAWS, RANDOM_PAIRS, drops_of
from ...measure.nature import turned
from ..evidence.case import SMALLEST_NATS, OfSetting

OPEN = 1e-6
"""Directions that the writer stretches less than this share of the most are not written along."""


@dataclass(frozen=True, eq=False)
class Nature:
    """What z changes at the site: `mean` (dim,), the mean activation at z = 1 less that at z = 0,
    of the training prompts; in the space that is written to: `acting` (out, r), orthonormal, where
    the answer reacts. `amount`: how often the class difference must be written to do, there, what
    v does. All float64."""

    mean: Tensor = field(repr=False)
    acting: Tensor = field(repr=False)
    amount: float


@dataclass(frozen=True, eq=False, kw_only=True)
class Addition(OfSetting):
    """One addition under audit: `alpha` times `vector`, float64 (dim,), at the site of a setting;
    `draws` random vectors of either kind are tried. Raises `LensError` for an alpha that is 0 or
    not finite."""

    vector: Tensor = field(repr=False)
    alpha: float = 1.0
    draws: int = RANDOM_DRAWS
    seed: int = 0

    def __post_init__(self) -> None:
        if not np.isfinite(self.alpha) or self.alpha == 0:
            raise LensError(f"alpha {self.alpha:g}: how much is added is a number that is not 0")

    @property
    def z(self) -> np.ndarray | None:
        """z of the test prompts, bases and then sources, (2n,); None where it does not have two
        values in them and in the training prompts."""
        return None if self._fitted is None else self._z_of(self.replay)

    @property
    def z_fitted(self) -> np.ndarray | None:
        """The same of the training prompts."""
        return None if self.z is None else self._fitted

    @cached_property
    def _fitted(self) -> np.ndarray | None:
        return self._z_of(self.setting.fitted)

    @staticmethod
    def _z_of(replay: Replay) -> np.ndarray | None:
        try:
            return by_class(replay)[1].numpy()
        except TaskError:
            return None

    @cached_property
    def sign(self) -> Tensor:
        """s of each pair, float64 (n,)."""
        if self.z is None:
            return torch.ones(len(self.replay.pairs), dtype=torch.float64)
        return turned(self.replay)

    @property
    def patch(self) -> Patch:
        return Add(self.vector, self.alpha, self.sign)

    @cached_property
    def delta(self) -> Tensor:
        """What is added to each base activation, float64 (n, dim)."""
        return self.sign[:, None] * self.alpha * self.vector

    @cached_property
    def effects(self) -> dict[str, Effect]:
        """Of the whole component, of the addition, of the class difference, turned, where there is
        one, and of nothing, `no_op`."""
        patches: dict[str, Patch] = {"add": self.patch}
        if self.nature is not None:
            patches["mean"] = Add(self.nature.mean, 1.0, self.sign)
        unpatched = Effect(self.replay.pairs, self.replay.clean, self.replay.clean)
        found = self.replay.effects(patches, decided=True)
        return {"full": self.setting.full} | found | {"no_op": unpatched}

    @property
    def drop(self) -> np.ndarray:
        """What the addition takes from each logit difference, float64 (n,), in nats."""
        return self.effects["add"].drop

    def share(self, drop: np.ndarray) -> Estimate:
        """The mean of `drop` (n,) over that of the addition; without a value where that cannot be
        told from 0."""
        if abs(self.drop.mean()) < SMALLEST_NATS:
            return Estimate(value=None)
        return ratio(drop, self.drop, self.units)

    def written(self, x: Tensor) -> Tensor:
        """What changes x (..., dim) at the site write, float64 (..., out)."""
        weight = self.setting.written
        return x if weight is None else x @ weight.T

    def along(self, x: Tensor) -> Tensor:
        """How much of W v activations x (m, dim) write, (m,): 1 is as much as v does."""
        return self._along(x, self.written(self.vector))

    def along_acting(self, x: Tensor) -> Tensor | None:
        """The same of the part of W v to which the answer reacts; None where it is not known."""
        if self.nature is None:
            return None
        acting = self.nature.acting
        return self._along(x, acting @ (acting.T @ self.written(self.vector)))

    def _along(self, x: Tensor, direction: Tensor) -> Tensor:
        size = direction.square().sum().clamp(min=torch.finfo(torch.float64).tiny)
        return self.written(x) @ direction / size

    @cached_property
    def difference(self) -> Tensor | None:
        """m, the mean activation of training prompts with z = 1 less that with z = 0, float64
        (dim,); None where the pairs carry no z of two values."""
        if self.z is None:
            return None
        x, z = by_class(self.setting.fitted)
        return between_means(x.cpu().double(), z)

    @property
    def cosine(self) -> float | None:
        """Between what is added and m, of what either writes."""
        if self.difference is None:
            return None
        ours, natural = self.written(self.alpha * self.vector), self.written(self.difference)
        return float(torch.cosine_similarity(ours, natural, dim=0))

    @cached_property
    def nature(self) -> Nature | None:
        """None where the pairs carry no z of two values."""
        change, mean = self.setting.nature, self.difference
        if change is None or mean is None:
            return None
        acting = change.acting if self._back is None else self._back.T @ change.acting
        acting = orthonormal(unit(acting))
        seen = self.written(mean) @ acting
        size = seen.square().sum().clamp(min=torch.finfo(torch.float64).tiny)
        amount = self.alpha * (self.written(self.vector) @ acting) @ seen / size
        return Nature(mean, acting, float(amount))

    @cached_property
    def _back(self) -> Tensor | None:
        """The least change at the site that writes what is to be written, (dim, out): the
        pseudoinverse of W."""
        weight = self.setting.written
        return None if weight is None else torch.linalg.pinv(weight, rtol=OPEN)

    @cached_property
    def taken_apart(self) -> dict[str, np.ndarray]:
        """Drops in nats, (n,) each, of parts of what is written: `natural` is c m, as much of the
        class difference as does what v does where the answer reacts, `beyond` the rest, `along`
        what of it lies there. None where nature is not known."""
        if self.nature is None:
            return {}
        acting = self.nature.acting
        added = self.alpha * self.vector
        natural = max(0.0, self.nature.amount) * self.nature.mean
        visible = acting @ (acting.T @ self.written(added))
        visible = visible if self._back is None else self._back @ visible
        parts = {"natural": natural, "beyond": added - natural, "along": visible}
        deltas = torch.stack([self.sign[:, None] * each for each in parts.values()])
        drops = drops_of(self.replay, deltas.to(self.replay.base))
        return dict(zip(parts, drops, strict=True))

    @cached_property
    def random(self) -> dict[str, list[Effect]]:
        """What vectors do that write as much as v, turned as it is, on the first pairs: `uniform`
        ones, and `natural` ones, drawn from the covariance of what the differences of the training
        pairs have orthogonal to v."""
        some, sign = self.replay.subset(slice(RANDOM_PAIRS)), self.sign[:RANDOM_PAIRS]
        generator = torch.Generator().manual_seed(self.seed)
        dim, direction = len(self.vector), unit(self.vector[:, None])
        difference = self.setting.fitted.difference.cpu().double()
        rest = difference - (difference @ direction) @ direction.T
        drawn = {
            "uniform": haar(dim, 1, self.draws, generator)[..., 0],
            "natural": natural_draws(rest, 1, self.draws, generator)[..., 0],
        }
        patches = {
            f"{kind}.{number}": Add(vector, 1.0, sign)
            for kind, vectors in drawn.items()
            for number, vector in enumerate(self.matched(vectors))
        }
        found = some.effects(patches, decided=True)
        return {
            kind: [effect for name, effect in found.items() if name.startswith(kind)]
            for kind in drawn
        }

    def matched(self, vectors: Tensor) -> Tensor:
        """Vectors (m, dim), each as long as writes as much as α v does."""
        sizes = self.written(vectors).norm(dim=1).clamp(min=torch.finfo(torch.float64).tiny)
        size = abs(self.alpha) * self.written(self.vector).norm()
        return vectors * (size / sizes)[:, None]

    @cached_property
    def range(self) -> tuple[float, float]:
        """How far natural prompts go along W v: from the least to the most of the 0.5 and the
        99.5 % quantiles of the classes of z, in training prompts."""
        values, z = self.along(self.setting.train.x).numpy(), self.z_fitted
        classes = [values] if z is None else [values[z == each] for each in (0, 1)]
        ends = np.array([np.quantile(each, (0.005, 0.995)) for each in classes])
        return float(ends[:, 0].min()), float(ends[:, 1].max())

    @cached_property
    def unpatched(self) -> Tensor:
        """What the base activations of the test pairs write along W v, float64 (n,)."""
        return self.along(self.replay.base.cpu().double())

    def inside(self, alpha: float) -> np.ndarray:
        """Whether the reading of each patched activation lies in `range`, with another α, (n,)."""
        low, high = self.range
        values = (self.unpatched + alpha * self.sign).numpy()
        return (values >= low) & (values <= high)

    @cached_property
    def usual(self) -> float:
        """The share of the unpatched test prompts that lie there."""
        low, high = self.range
        values = self.along(self.setting.test.x).numpy()
        return float(((values >= low) & (values <= high)).mean())

    @cached_property
    def deviation(self) -> float:
        """Standard deviation along W v of training prompts, within the classes of z, in units of
        v."""
        values, z = self.along(self.setting.train.x)[:, None], self.z_fitted
        z = np.zeros(len(values)) if z is None else z
        return float(within_classes(values, z).square().mean().sqrt())
