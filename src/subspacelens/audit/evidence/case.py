"""What all tests of one subspace share, computed once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...core.geometry import haar
from ...core.records import Estimate
from ...core.site import Site
from ...core.statistics import ratio
from ...engine.capture import Capture
from ...engine.outcomes import Outcomes
from ...engine.replay import Replay
from ...engine.task_capture import TaskCapture
from ...fit.subspace import Subspace
from ...measure.effects import Scorer
from ...measure.readers import ReaderShare
from ...measure.splits import Decomposition
from ...measure.support import SupportSplit
from ...model.lens import LensModel
from ..record import Test

CONTROL_DRAWS = 50
SMALLEST_NATS = 1e-4


@dataclass(frozen=True)
class Natural:
    """Activations of the prompts of a capture, bases then sources, float64 (2n, dim), and z (2n,),
    None where the pairs carry none. `role` is 0 for bases and 1 for sources."""

    x: Tensor
    z: np.ndarray | None
    role: np.ndarray

    @classmethod
    def of(cls, captured: Capture, site: Site) -> Natural:
        x = torch.cat([captured.base[site], captured.source[site]]).cpu().double()
        pairs = captured.pairs.pairs
        values = [p.z[0] if p.z else None for p in pairs] + [p.z[1] if p.z else None for p in pairs]
        z = None if None in values else np.array(values)
        if z is not None and z.min() == z.max():
            z = None
        return cls(x, z, np.repeat([0, 1], len(pairs)))


@dataclass(frozen=True)
class Case:
    """All that the tests of one subspace need, computed once."""

    lens: LensModel
    site: Site
    subspace: Subspace
    basis: Tensor
    captures: TaskCapture
    replay: Replay
    scorer: Scorer
    parts: Decomposition | None
    readers: tuple[ReaderShare, ...]
    outcomes: dict[str, Outcomes | None]
    by_support: SupportSplit
    train: Natural
    test: Natural
    random_drops: np.ndarray | None
    seed: int

    def drop(self, name: str) -> np.ndarray | None:
        found = self.outcomes[name]
        return None if found is None else self.scorer.drop(found)

    def share(self, drop: np.ndarray | None) -> Estimate:
        """E(patch) / E(V); nothing where either does not exist or E(V) cannot be told from 0."""
        whole = self.drop("subspace")
        assert whole is not None
        if drop is None or abs(whole.mean()) < SMALLEST_NATS:
            return Estimate(value=None)
        return ratio(drop, whole, self.scorer.units)

    def haar(self) -> Tensor:
        """Random subspaces of the same dimension, (draws, dim, k)."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        dim, k = self.basis.shape
        return haar(dim, k, CONTROL_DRAWS, generator)


def test_of(estimate: Estimate, reading: str, control: float | None = None) -> Test:
    return Test(**estimate.model_dump(), control=control, reading=reading)


def void(reading: str) -> Test:
    return Test(value=None, control=None, reading=reading)


def class_scores(train: Natural, test: Natural, basis: Tensor) -> np.ndarray:
    """Projection of the test prompts on the direction within `basis` that joins the class means
    of the training prompts."""
    z = train.role if train.z is None else train.z
    inside = train.x @ basis
    axis = inside[z == 1].mean(0) - inside[z == 0].mean(0)
    return ((test.x @ basis) @ (axis / axis.norm().clamp(min=1e-30))).numpy()
