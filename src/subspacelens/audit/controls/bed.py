"""What planted channels are made of: how a site varies at equal z, and what moves the answer behind
it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ...core.geometry import haar, svd
from ...core.site import Site
from ...core.statistics import within_classes
from ...core.stored import in_memory
from ...engine.capture import Capture
from ...engine.replay import Replay
from ...fit.change import acting_directions
from ...fit.closed_form import between_means, by_class
from ...measure.nature import turned
from ...measure.planting import Channels, plant

PAIRS = 64
"""Pairs whose gradients say what moves the answer."""
MOVED = 12
"""Pairs that are moved to see how far."""
AXES = 40
STEPS = (0.1, 0.25, 0.5, 1.0, 1.7, 3.0)
DRAWS = 8
WEAK = 0.1
"""A direction that moves the answer less than this share of the gradient's is not written along."""
LEAST = 1e-6
"""What is left of the gradient below this share is rounding."""
KEPT = 0.5
"""A planted model keeps this share of the model's own logit difference."""


@dataclass(frozen=True, eq=False)
class Bed:
    """Of the pairs to fit on: `centre` (dim,) of the activation, `axes` (r, dim), readings of unit
    standard deviation at equal z, and `between` (r,), how far apart the classes lie along them; of
    the residual stream behind the site, or of the site where it is that stream: `pull` (d,), minus
    the mean gradient, turned to z, at the base and half way to the other class, `acting` (d, r),
    where the answer reacts, `classes` (d,), what of the difference of the class means lies there,
    and `nature` (d,), what of the difference in what the site itself writes does, the same where it
    is the stream. `column` is the length of a typical column of the writer, 1 where there is none.
    All float64."""

    centre: Tensor = field(repr=False)
    axes: Tensor = field(repr=False)
    between: Tensor = field(repr=False)
    pull: Tensor = field(repr=False)
    acting: Tensor = field(repr=False)
    classes: Tensor = field(repr=False)
    nature: Tensor = field(repr=False)
    column: float
    _stream: Replay = field(repr=False)

    @classmethod
    def of(cls, train: Capture, site: Site) -> Bed:
        """Raises `TaskError` where a pair has no z or one class is empty, `SiteError` where no
        channel can be planted."""
        replay = train.at(site)
        x, z = by_class(replay)
        x = x.cpu().double()
        centre = x.mean(dim=0)
        _, s, vh = svd(within_classes(x, z))
        kept = min(AXES, int((s > 1e-6 * s[0]).sum()))
        axes = vh[:kept] / s[:kept, None] * len(x) ** 0.5
        between = between_means(x, z)
        indices = torch.arange(min(PAIRS, len(replay.pairs)))
        some = train.subset(indices)
        stream, width = some.at(site), train.lens.map.d_model
        if replay.writer is not None:
            stream = plant(some, site, _open(len(centre), width)).at(site)
        difference, turn = _class_difference(stream), turned(stream)
        half = torch.zeros(stream.base.shape, dtype=torch.float64)
        half[:, -width:] = turn[:, None] * difference / 2
        ends = torch.stack([stream.gradients(), stream.gradients(half.to(stream.base))])
        slopes = ends.cpu().double()[..., -width:]
        weight, acting = replay.writer, acting_directions(slopes.flatten(0, 1))
        classes = acting @ (acting.T @ difference)
        nature = classes
        if weight is not None:
            written = weight.cpu().double() @ between
            nature = acting @ (acting.T @ written)
        return cls(
            centre,
            axes,
            axes @ between,
            -(turn[:, None] * slopes).mean(dim=(0, 1)),
            acting,
            classes,
            nature,
            1.0 if weight is None else float(weight.norm(dim=0).median()),
            stream.subset(slice(MOVED)),
        )

    def noise(self, generator: torch.Generator) -> Tensor:
        """A reading (dim,) of unit standard deviation at equal z that does not tell the classes
        apart."""
        mix = torch.randn(len(self.axes), generator=generator, dtype=torch.float64)
        size = self.between.square().sum().clamp(min=torch.finfo(torch.float64).tiny)
        mix = mix - (mix @ self.between) * self.between / size
        return mix / mix.norm() @ self.axes

    def halves(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Two orthogonal halves, (d, r / 2) each, of where the answer reacts; all of it twice where
        there is one direction. Of `DRAWS` random ones those in which the weaker moves the answer
        most: the first along the gradient, or the second along what a dormant can write."""
        count = self.acting.shape[1]
        if count == 1:
            return self.acting, self.acting
        drawn = [
            (self.acting @ turn).tensor_split([(count + 1) // 2], dim=1)
            for turn in haar(count, count, DRAWS, generator)
        ]

        def weaker(both: tuple[Tensor, ...]) -> Tensor:
            ours, theirs = both
            return torch.minimum((ours.T @ self.pull).norm(), self._woken(theirs, theirs).norm())

        ours, theirs = max(drawn, key=weaker)
        return ours, theirs

    def written(self, kind: str, axes: Tensor, generator: torch.Generator) -> Tensor:
        """A unit vector (d,) of the stream in the span of `axes` that moves the answer: along the
        `gradient`, along the difference of the `classes`, or along what either has in the span of a
        random `half` of them. The difference of the classes is left for the gradient where it moves
        little."""
        pull, classes = (axes @ (axes.T @ each) for each in (self.pull, self.classes))
        direction = pull if kind == "gradient" else classes
        if direction @ self.pull < WEAK * direction.norm() * self.pull.norm():
            direction = pull
        if kind == "half":
            whole = direction if self._of_stream else pull
            direction = _along_half(whole, axes, generator)
        return direction / direction.norm()

    def dormant(self, axes: Tensor, generator: torch.Generator) -> Tensor:
        """The like, of the gradient in the span of a random half of `axes`, or of all where little
        is left there, along which nothing of the site itself follows z; 0 where nothing is left."""
        direction = self._woken(_half(axes, generator), axes)
        if direction.norm() < WEAK * self.pull.norm():
            direction = self._woken(axes, axes)
        if direction.norm() < LEAST * self.pull.norm():
            return torch.zeros_like(direction)
        return direction / direction.norm()

    def _woken(self, some: Tensor, axes: Tensor) -> Tensor:
        """What of the gradient lies in the span of `some` of the `axes`, less what of it is along
        what of `nature` lies in their span."""
        pull, nature = some @ (some.T @ self.pull), axes @ (axes.T @ self.nature)
        size = nature.square().sum().clamp(min=torch.finfo(nature.dtype).tiny)
        return pull - (pull @ nature) / size * nature

    def unread(self, generator: torch.Generator) -> Tensor:
        """A unit vector (d,) of the stream to which the answer does not react."""
        direction = torch.randn(len(self.pull), generator=generator, dtype=torch.float64)
        direction = direction - self.acting @ (self.acting.T @ direction)
        return direction / direction.norm()

    @property
    def _of_stream(self) -> bool:
        return self._stream.writer is None

    def length(self, direction: Tensor, fldd: float, *, replacing: bool = False) -> float:
        """How far the stream of either class must lie along a unit vector (d,), so that its
        exchange lowers the logit difference by the share `fldd`, or as much as can be. `replacing`
        what is along it; the model must go on doing the task then."""
        stream, width, turn = self._stream, len(self.pull), turned(self._stream)
        clean = stream.clean.logit_diff.double()
        slope = float(direction @ self.pull)
        if slope > WEAK * float(self.pull.norm()):
            typical = fldd * float(clean.mean()) / (2 * slope)
        else:
            typical = 0.0
        if replacing or typical == 0:
            typical = max(typical, float((direction @ self.classes).abs()) / 2)
        lengths = typical * np.array(STEPS)
        along = torch.zeros(len(turn), dtype=torch.float64)
        if replacing:
            along = -((stream.base.cpu().double() - self.centre) @ direction)
        sides = torch.tensor([-1.0, 1.0] if replacing else [2.0]).double()
        moved = along + sides[:, None, None] * turn * torch.tensor(lengths)[:, None]
        deltas = torch.zeros(*moved.shape, stream.base.shape[1], dtype=torch.float64)
        deltas[..., -width:] = moved[..., None] * direction
        outcomes = stream.delta_outcomes(deltas.flatten(0, 1).to(stream.base)).logit_diff
        left = outcomes.double().mean(dim=1).unflatten(0, moved.shape[:2]).numpy()
        before = left[0] if replacing else np.full(len(lengths), float(clean.mean()))
        reached = 1 - left[-1] / np.maximum(before, 1e-9)
        reached[before < KEPT * float(clean.mean())] = -np.inf
        enough = np.flatnonzero(reached >= fldd)
        if len(enough) == 0:
            return float(lengths[np.argmax(reached)])
        first_enough = int(enough[0])
        ends = [max(0, first_enough - 1), first_enough]
        if not np.isfinite(reached[ends]).all():
            return float(lengths[first_enough])
        return float(np.exp(np.interp(fldd, reached[ends], np.log(lengths[ends]))))


def _half(axes: Tensor, generator: torch.Generator) -> Tensor:
    """A random half of the columns of `axes` (d, r)."""
    count = axes.shape[1]
    return axes[:, torch.randperm(count, generator=generator)[: (count + 1) // 2]]


def _along_half(direction: Tensor, axes: Tensor, generator: torch.Generator) -> Tensor:
    """What of a direction (d,) lies along a random half of `axes`; all of it where `DRAWS` halves
    have too little."""
    for _ in range(DRAWS):
        some = _half(axes, generator)
        part = some @ (some.T @ direction)
        if part.norm() > direction.norm() / 2:
            return part
    return direction


def _class_difference(replay: Replay) -> Tensor:
    """Of the residual stream that the base prompts have where a patch enters, (d,)."""
    stream = torch.empty(len(replay.pairs), replay.lens.map.d_model, dtype=torch.float64)
    for bucket in replay.buckets:
        stream[bucket.pairs] = in_memory(bucket.entries[replay.entry])[:, 0].cpu().double()
    first = turned(replay) > 0
    return stream[~first].mean(dim=0) - stream[first].mean(dim=0)


def _open(dim: int, width: int) -> Channels:
    """Channels without value, one for each dimension of the stream: to patch it through them."""
    return Channels(
        follow=torch.zeros(width, dtype=torch.float64),
        reads=torch.zeros(width, dim, dtype=torch.float64),
        centre=torch.zeros(dim, dtype=torch.float64),
        writes=torch.eye(width, dtype=torch.float64),
        silent=torch.zeros(width, dtype=torch.bool),
        groups=torch.zeros(width, dtype=torch.long),
    )
