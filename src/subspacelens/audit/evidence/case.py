"""What all tests of one subspace share, each part computed once, when it is first asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ...core.geometry import Split, haar
from ...core.records import Estimate
from ...core.site import Site
from ...core.statistics import Units, ratio
from ...engine.effect import Effect
from ...engine.patches import SubspacePatch
from ...engine.replay import Replay
from ...engine.task_capture import TaskCapture
from ...fit.subspace import Subspace
from ...measure.effects import (
    RANDOM_DRAWS,
    RandomEffects,
    drops_of,
    named_patches,
    random_effects,
)
from ...measure.nature import NaturalChange
from ...measure.readers import ReaderShare
from ...measure.splits import Decomposition, split_at
from ...measure.support import EXPLAINED, SupportSplit, split_by_support
from ...model.lens import LensModel
from ..record import Test

CONTROL_DRAWS = 50
SUPPORT_PAIRS = 32
SMALLEST_NATS = 1e-4
NO_EFFECT = "the subspace has no effect to compare with"


@dataclass(frozen=True, eq=False)
class Natural:
    """Activations of the prompts of a capture, bases then sources, float64 (2n, dim), and z (2n,),
    None where the pairs carry none. `role` is 0 for bases and 1 for sources."""

    x: Tensor = field(repr=False)
    z: np.ndarray | None = field(repr=False)
    role: np.ndarray = field(repr=False)

    @classmethod
    def of(cls, replay: Replay) -> Natural:
        x = torch.cat([replay.base, replay.source]).cpu().double()
        pairs = replay.pairs
        values = [p.z[0] if p.z else None for p in pairs] + [p.z[1] if p.z else None for p in pairs]
        z = None if None in values else np.array(values)
        if z is not None and z.min() == z.max():
            z = None
        return cls(x, z, np.repeat([0, 1], len(pairs)))


@dataclass(frozen=True, eq=False, kw_only=True)
class Case:
    """One subspace under audit.

    `replay` is its site on the test pairs at the positions `chosen`, `nature` what z changes there,
    None where the pairs carry no z. `explained` are the shares of natural variance at which the
    patch is split by support, `draws` how many random subspaces of either kind are tried; without
    `proxies` there is no row/null split where it would stand for some readers only. `kernel` is the
    split by the site's writer where it is known already, `named` are the patches of `named_patches`
    that are replayed, None for all.
    """

    captures: TaskCapture = field(repr=False)
    replay: Replay
    chosen: Tensor = field(repr=False)
    subspace: Subspace
    nature: NaturalChange | None = field(repr=False)
    explained: Sequence[float] = EXPLAINED
    draws: int = RANDOM_DRAWS
    proxies: bool = True
    kernel: Split | None = field(default=None, repr=False)
    named: Sequence[str] | None = None
    seed: int = 0

    @property
    def lens(self) -> LensModel:
        return self.replay.lens

    @property
    def site(self) -> Site:
        return self.replay.site

    @property
    def units(self) -> Units:
        """What intervals are over."""
        return self.replay.units

    @cached_property
    def basis(self) -> Tensor:
        """V, float64 (dim, k)."""
        return self.subspace.basis.double()

    @cached_property
    def patch(self) -> SubspacePatch:
        return SubspacePatch(self.basis)

    @cached_property
    def train(self) -> Natural:
        return Natural.of(self.captures.train.at(self.site))

    @cached_property
    def test(self) -> Natural:
        return Natural.of(self.replay)

    @cached_property
    def split(self) -> tuple[Decomposition | None, tuple[ReaderShare, ...]]:
        if self.kernel is not None:
            return Decomposition(self.kernel, True, self.basis), ()
        if self.replay.writer is None and not self.proxies:
            return None, ()
        return split_at(self.replay, self.basis)

    @property
    def parts(self) -> Decomposition | None:
        """What is read downstream and what is not, None where there is no such split."""
        return self.split[0]

    @property
    def exact(self) -> bool:
        """Whether the row/null split is by construction and says something."""
        return self.parts is not None and self.parts.exact and not self.parts.degenerate

    @property
    def readers(self) -> tuple[ReaderShare, ...]:
        """Whom a split by proxy was chosen from; none at exact sites."""
        return self.split[1]

    @cached_property
    def effects(self) -> dict[str, Effect]:
        """Effects of the patches of `named_patches` that exist here, and of none, `no_op`."""
        patches = named_patches(self.parts, self.basis)
        if self.named is not None:
            patches = {name: patch for name, patch in patches.items() if name in self.named}
        patches.pop("no_op", None)
        effects = self.replay.effects(patches, decided=True)
        return effects | {"no_op": Effect(self.replay.pairs, self.replay.clean, self.replay.clean)}

    @cached_property
    def reversed(self) -> Effect:
        """The patch with base and source exchanged."""
        replay = self.captures.reversed.at(self.site).subset(self.chosen)
        return replay.effects({"": self.patch}, decided=True)[""]

    @cached_property
    def random(self) -> RandomEffects:
        natural = self.captures.train.difference(self.site).cpu().double()
        return random_effects(self.replay, natural, self.basis, self.draws, self.seed)

    @cached_property
    def taken_apart(self) -> dict[str, np.ndarray]:
        """Drops in nats, (n,) each, of the parts of the write (`NaturalChange.parts`); none where
        what is natural is not known."""
        if self.nature is None:
            return {}
        parts = self.nature.parts(self.replay, self.basis)
        drops = drops_of(self.replay, torch.stack(list(parts.values())).to(self.replay.base))
        return dict(zip(parts, drops, strict=True))

    @cached_property
    def by_support(self) -> dict[float, SupportSplit]:
        some = self.replay.subset(slice(SUPPORT_PAIRS))
        return split_by_support(self.train.x, some, self.basis, self.explained)

    @property
    def clean(self) -> np.ndarray:
        """Logit differences without a patch, float64 (n,), in nats."""
        return self.replay.clean.logit_diff.double().numpy()

    @property
    def drop(self) -> np.ndarray:
        """What the patch under audit takes from each logit difference, float64 (n,), in nats."""
        return self.effects["subspace"].drop

    def share_of(self, patch: str) -> Estimate:
        """E(patch) / E(V); without a value where the patch does not exist."""
        if patch not in self.effects:
            return Estimate(value=None)
        return self.share(self.effects[patch].drop)

    def share(self, drop: np.ndarray) -> Estimate:
        """The mean of `drop` (m,), of the first m pairs, over E(V) of the same; without a value
        where E(V) cannot be told from 0."""
        pairs = slice(len(drop))
        if abs(self.drop[pairs].mean()) < SMALLEST_NATS:
            return Estimate(value=None)
        return ratio(drop, self.drop[pairs], Units(self.units.of_pair[pairs]))

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
