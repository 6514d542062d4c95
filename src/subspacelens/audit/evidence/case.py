"""What all tests of one subspace share, and what all subspaces of one site do: each part is
computed once, when it is first asked for."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ...certify import centred
from ...core.geometry import Split, haar
from ...core.records import Estimate
from ...core.site import Site
from ...core.statistics import Units, ratio
from ...engine.effect import Effect
from ...engine.patches import Full, SubspacePatch
from ...engine.replay import Replay
from ...engine.task_capture import TaskCapture
from ...fit.subspace import Subspace
from ...measure.effects import (
    NAMED,
    RANDOM_DRAWS,
    RandomEffects,
    drops_of,
    named_patches,
    random_effects,
)
from ...measure.nature import NaturalChange, natural_change
from ...measure.readers import ReaderShare
from ...measure.splits import Decomposition, split_by_readers
from ...measure.support import EXPLAINED, SupportSplit, split_by_support
from ...model.lens import LensModel
from ...tasks.pairset import PairSet, Value
from ..record import Test

CONTROL_DRAWS = 50
SUPPORT_PAIRS = 32
SMALLEST_NATS = 1e-4
NO_EFFECT = "the subspace has no effect to compare with"
READ_ELSEWHERE = "keys and values are read by other tokens at once, past their own column"


@dataclass(frozen=True, eq=False)
class Natural:
    """Activations of the prompts of a capture, bases then sources, float64 (2n, dim), and which of
    the values z has, counted from 0, (2n,), None where the pairs carry none or only one. `role` is
    0 for bases and 1 for sources."""

    x: Tensor = field(repr=False)
    z: np.ndarray | None = field(repr=False)
    role: np.ndarray = field(repr=False)

    @classmethod
    def of(cls, replay: Replay, classes: Sequence[Value]) -> Natural:
        x = torch.cat([replay.base, replay.source]).cpu().double()
        z, pairs = None, replay.pairs
        if len(pairs.classes) > 1:
            codes = [[classes.index(value) for value in pair.z or ()] for pair in pairs]
            z = np.array(codes).T.flatten()
        return cls(x, z, np.repeat([0, 1], len(pairs)))

    @property
    def two(self) -> np.ndarray | None:
        """z where it has two values, 0 and 1; None where it has more or is not known."""
        return self.z if self.z is not None and set(self.z) == {0, 1} else None


@dataclass(frozen=True, eq=False, kw_only=True)
class Setting:
    """One site of one task: what audits of all its subspaces share. `replay` is the site on the
    test pairs at the positions `chosen`; without `kernel` the row/null split decides nothing, as
    where a site has a kernel by what was planted only."""

    captures: TaskCapture = field(repr=False)
    replay: Replay
    chosen: Tensor = field(repr=False)
    kernel: bool = True

    @cached_property
    def fitted(self) -> Replay:
        """The site on the training pairs."""
        return self.captures.train.at(self.replay.site)

    @cached_property
    def train(self) -> Natural:
        return Natural.of(self.fitted, self.classes)

    @cached_property
    def test(self) -> Natural:
        return Natural.of(self.replay, self.classes)

    @property
    def classes(self) -> tuple[Value, ...]:
        """The values of z in training and test pairs, in order; none where a pair has no z."""
        both = self.captures.train.pairs, self.replay.pairs
        if not all(pairs.classes for pairs in both):
            return ()
        return PairSet("", "", tuple(pair for pairs in both for pair in pairs)).classes

    @cached_property
    def nature(self) -> NaturalChange | None:
        """What z changes, None where the pairs carry none."""
        return natural_change(self.fitted, self.replay)

    @cached_property
    def full(self) -> Effect:
        """The patch of the whole component."""
        return self.replay.effects({"": Full()}, decided=True)[""]

    @cached_property
    def split(self) -> Split | None:
        """What is read of the component and what is not, None where it has no linear writer."""
        weight = self.replay.writer
        return None if weight is None else Split.of(weight, centred=self.centred)

    @cached_property
    def centred(self) -> bool:
        """Whether what is written counts less its mean over dimensions."""
        return centred(self.replay.lens)

    @cached_property
    def written(self) -> Tensor | None:
        """The writer matrix as it counts, float64 on the CPU; None where there is none."""
        if self.replay.writer is None:
            return None
        weight = self.replay.writer.cpu().double()
        return weight - weight.mean(dim=0, keepdim=True) if self.centred else weight

    @cached_property
    def heard(self) -> Tensor | None:
        """The writer as far as the answer reacts to what it writes, float64 (r, dim), along an
        orthonormal basis of such directions of the stream; None without a writer or z."""
        if self.written is None or self.nature is None:
            return None
        met = torch.linalg.pinv(self.written @ self.written.T, hermitian=True)
        stream = met @ self.written @ self.nature.acting
        return torch.linalg.qr(stream).Q.T @ self.written

    @cached_property
    def gain(self) -> float:
        """By how much the writer stretches at most."""
        return 0.0 if self.written is None else float(torch.linalg.matrix_norm(self.written, 2))

    def subspace(self, basis: Tensor, method: str) -> Subspace:
        """One of the site that was not fitted, by its basis (dim, k)."""
        return Subspace(
            basis=basis.float(),
            site=self.replay.site,
            made_with=self.captures.train.made_with,
            data_sha256="",
            fit={"method": method},
        )

    def subset(self, pairs: slice) -> Setting:
        """The same for some of its pairs; what was computed of the training pairs is kept."""
        smaller = replace(self, replay=self.replay.subset(pairs), chosen=self.chosen[pairs])
        same = ("fitted", "train", "nature", "split", "written", "heard", "gain")
        return self._lending(smaller, *same)

    def planted(self, captures: TaskCapture) -> Setting:
        """The same pairs in the model that has other channels at the site."""
        replay = captures.test.at(self.replay.site).subset(self.chosen)
        own = Setting(captures=captures, replay=replay, chosen=self.chosen, kernel=self.has_kernel)
        return self._lending(own)

    @property
    def has_kernel(self) -> bool:
        """Whether the component writes nothing along some directions."""
        split, writer = self.split, self.replay.writer
        return split is not None and writer is not None and split.rank < writer.shape[1]

    def _lending(self, other: Setting, *names: str) -> Setting:
        """`other`, with what was computed here under these names and is the same there."""
        there = {name: x for name, x in self.__dict__.items() if name in (*names, "centred")}
        other.__dict__.update(there)
        return other


@dataclass(frozen=True, eq=False, kw_only=True)
class OfSetting:
    """Something under audit at the site of a `setting`."""

    setting: Setting

    @property
    def captures(self) -> TaskCapture:
        return self.setting.captures

    @property
    def replay(self) -> Replay:
        return self.setting.replay

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

    @property
    def clean(self) -> np.ndarray:
        """Logit differences without a patch, float64 (n,), in nats."""
        return self.replay.clean.logit_diff.double().numpy()


@dataclass(frozen=True, eq=False, kw_only=True)
class Case(OfSetting):
    """One subspace under audit.

    `patches` names the patches of the effect table to replay, beside that of the whole component.
    `explained` are the shares of natural variance at which the patch is split by support, `draws`
    how many random subspaces of either kind are tried; without `proxies` there is no row/null
    split where it would stand for some readers only.
    """

    subspace: Subspace
    patches: Collection[str] = NAMED
    explained: Sequence[float] = EXPLAINED
    draws: int = RANDOM_DRAWS
    proxies: bool = True
    seed: int = 0

    @property
    def train(self) -> Natural:
        return self.setting.train

    @property
    def test(self) -> Natural:
        return self.setting.test

    @property
    def nature(self) -> NaturalChange | None:
        return self.setting.nature

    @cached_property
    def basis(self) -> Tensor:
        """V, float64 (dim, k)."""
        return self.subspace.basis.double()

    @cached_property
    def patch(self) -> SubspacePatch:
        return SubspacePatch(self.basis)

    @cached_property
    def split(self) -> tuple[Decomposition | None, tuple[ReaderShare, ...]]:
        if self.setting.split is not None:
            return Decomposition(self.setting.split, True, self.basis), ()
        return split_by_readers(self.replay, self.basis) if self.proxies else (None, ())

    @property
    def parts(self) -> Decomposition | None:
        """What is read downstream and what is not, None where there is no such split."""
        return self.split[0]

    @property
    def exact(self) -> bool:
        """Whether the row/null split is by construction and says something."""
        parts = self.parts
        return self.setting.kernel and parts is not None and parts.exact and not parts.degenerate

    @property
    def readers(self) -> tuple[ReaderShare, ...]:
        """Whom a split by proxy was chosen from; none at exact sites."""
        return self.split[1]

    @cached_property
    def effects(self) -> dict[str, Effect]:
        """Effects of the patches of `named_patches` that are asked for and exist here, of the whole
        component, and of none, `no_op`."""
        named = named_patches(self.parts, self.basis)
        wanted = {name: patch for name, patch in named.items() if name in self.patches}
        unpatched = Effect(self.replay.pairs, self.replay.clean, self.replay.clean)
        found = self.replay.effects(wanted, decided=True)
        return {"full": self.setting.full} | found | {"no_op": unpatched}

    @cached_property
    def reversed(self) -> Effect:
        """The patch with base and source exchanged."""
        replay = self.captures.reversed.at(self.site).subset(self.setting.chosen)
        return replay.effects({"": self.patch}, decided=True)[""]

    @cached_property
    def random(self) -> RandomEffects:
        natural = self.setting.fitted.difference.cpu().double()
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
    def drop(self) -> np.ndarray:
        """What the patch under audit takes from each logit difference, float64 (n,), in nats, or by
        how much it moves the metric of the audit (`Effect.moved`)."""
        return self.effects["subspace"].moved

    @property
    def smallest(self) -> float:
        """What is less is no effect."""
        return smallest_effect(self.replay)

    def share_of(self, patch: str) -> Estimate:
        """E(patch) / E(V); without a value where the patch does not exist."""
        if patch not in self.effects:
            return Estimate(value=None)
        return self.share(self.effects[patch].moved)

    def share(self, drop: np.ndarray) -> Estimate:
        """The mean of `drop` (m,), of the first m pairs, over E(V) of the same; without a value
        where E(V) cannot be told from 0."""
        pairs = slice(len(drop))
        if abs(self.drop[pairs].mean()) < self.smallest:
            return Estimate(value=None)
        return ratio(drop, self.drop[pairs], Units(self.units.of_pair[pairs]))

    def haar(self) -> Tensor:
        """Random subspaces of the same dimension, (draws, dim, k)."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        dim, k = self.basis.shape
        return haar(dim, k, CONTROL_DRAWS, generator)


def smallest_effect(replay: Replay) -> float:
    """What is less is no effect: in nats, or as a part of what another metric is."""
    if replay.metric is None:
        return SMALLEST_NATS
    return SMALLEST_NATS * float(replay.clean.measured.abs().mean())


def test_of(estimate: Estimate, reading: str, control: float | None = None) -> Test:
    return Test(**estimate.model_dump(), control=control, reading=reading)


def void(reading: str) -> Test:
    return Test(value=None, control=None, reading=reading)


def class_scores(train: Natural, test: Natural, basis: Tensor) -> np.ndarray:
    """Projection of the test prompts on the direction within `basis` that joins the class means
    of the training prompts."""
    z = train.role if train.two is None else train.two
    inside = train.x @ basis
    axis = inside[z == 1].mean(0) - inside[z == 0].mean(0)
    return ((test.x @ basis) @ (axis / axis.norm().clamp(min=1e-30))).numpy()
