"""Planted truth: channels whose role is known, in a model as it is, at one site.

A patch at a site changes nothing before it. So a capture whose activations at the site are others,
and whose residual stream behind it holds what these others write, *is* the capture of the model
that has these channels at the label's column: no weight is touched, and no prompt runs again.

- At a site with a linear writer W the activation becomes [h; u] and the writer [W, U]: units of the
  same layer, side by side with its own. What they write on the mean of either class was written
  elsewhere before, and is taken out there, so that the stream behind them gains their noise alone.
- In the residual stream orthonormal directions D take the values u in place of what was along
  them, and those of them that are `silent` are taken out again right behind the site, from the
  skip path too: a patch along them reaches nobody.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from zlib import crc32

import torch
from torch import Tensor

from ..core.errors import SiteError
from ..core.site import Site
from ..core.stored import in_memory
from ..engine.buckets import Bucket, entry_of
from ..engine.capture import Capture
from ..engine.outcomes import Outcomes
from ..engine.replay import Replay
from ..engine.task_capture import TaskCapture
from ..fit.closed_form import by_class
from ..model.lens import LensModel
from ..model.mapping.values import Block, ModelMap, Reader
from ..model.mapping.ways import Way, Within
from ..tasks.pairset import PairSet

UNPLANTABLE = (
    "a norm follows the site, or the weight of its expert, so that no channels can be planted there"
)


@dataclass(frozen=True, eq=False, kw_only=True)
class Channels:
    """p channels at one site.

    The value of each for a prompt with activation h and feature z is follow·(2z - 1) +
    reads·(h - centre): `follow` (p,), `reads` (p, dim), `centre` (dim,). Of `groups` (p,) channels
    follow z in those pairs alone whose common tokens are of their group, one of as many as there
    are; all do where there is one. `writes` (d_model, p) is
    what each adds to the residual stream per unit of its value, at a site with a linear writer; at
    others `writes` are orthonormal directions (dim, p) of the activation itself, and `silent` (p,)
    says which of them nobody reads. All float64.
    """

    follow: Tensor
    reads: Tensor = field(repr=False)
    centre: Tensor = field(repr=False)
    writes: Tensor = field(repr=False)
    silent: Tensor
    groups: Tensor

    def values(self, h: Tensor, z: Tensor, group: Tensor) -> Tensor:
        """(n, p), of prompts with activations h (n, dim), z (n,) and a group (n,)."""
        return self.feature(z, group) + (h - self.centre) @ self.reads.T

    def feature(self, z: Tensor, group: Tensor) -> Tensor:
        """The part (n, p) of the values that follows z."""
        return (2 * z[:, None] - 1) * self.follow * (group[:, None] == self.groups)

    def groups_of(self, pairs: PairSet) -> Tensor:
        """The group (n,) of each pair, by the tokens that base and source have in common."""
        count = int(self.groups.max()) + 1
        common = (
            [a for a, b in zip(p.base.ids, p.source.ids, strict=False) if a == b] for p in pairs
        )
        return torch.tensor([crc32(str(ids).encode()) % count for ids in common])

    def direction(self, weights: dict[int, float], beside: bool) -> Tensor:
        """The direction of the planted activation, float64 (dim,) or, `beside` the component's own
        units, (dim + p,), in which the channels have these weights."""
        count, dim = self.reads.shape
        plain = torch.zeros(count, dtype=torch.float64)
        for channel, weight in weights.items():
            plain[channel] = weight
        if beside:
            return torch.cat([torch.zeros(dim, dtype=torch.float64), plain])
        return self.writes @ plain


@dataclass(frozen=True, kw_only=True)
class _PlantedMap(ModelMap):
    """The map of a model with units beside those of one site, or directions that nobody reads."""

    site: Site
    wide: Tensor | None = field(repr=False)

    def dim(self, site: Site) -> int:
        if self.wide is None or site != self.site:
            return super().dim(site)
        return self.wide.shape[1]

    def writer(self, site: Site) -> Tensor | None:
        return self.wide if site == self.site and self.wide is not None else super().writer(site)


@dataclass(frozen=True)
class _Unheard(Way):
    """The way of a change from which what lies along `silent` (dim, s) is taken out."""

    way: Way
    silent: Tensor = field(repr=False)

    @property
    def alone(self) -> bool:  # type: ignore[override]
        return self.way.alone

    def start(self, layer: int) -> tuple[str, int]:
        return self.way.start(layer)

    def entered(self, stream: Tensor, delta: Tensor, writer: Tensor | None) -> Tensor:
        silent = self.silent.to(delta)
        return self.way.entered(stream, delta - (delta @ silent) @ silent.T, writer)

    def around(self, block: Block, adding):
        return self.way.around(block, adding)

    def reaches(self, reader: Reader) -> bool:
        return self.way.reaches(reader)


def can_be_planted(lens: LensModel, site: Site) -> bool:
    """Whether what a site writes enters the residual stream as it is, or by one linear map: not
    where what follows is another one for each token."""
    return not isinstance(lens.map.block(site).entries[site.stream], Within)


def planted_lens(lens: LensModel, site: Site, channels: Channels) -> LensModel:
    """The model as replays see it that has these channels; the modules are those of `lens`.

    Raises `SiteError` where no channel can be planted.
    """
    if not can_be_planted(lens, site):
        raise SiteError(f"site {site}: {UNPLANTABLE}")
    old, weight = lens.map, lens.map.writer(site)
    blocks, wide = list(old.blocks), None
    if weight is not None:
        wide = torch.cat([weight, channels.writes.to(weight)], dim=1)
    else:
        block = old.block(site)
        way = _Unheard(block.entries[site.stream], channels.writes[:, channels.silent])
        blocks[site.layer] = replace(block, entries={**block.entries, site.stream: way})
    kept = {each.name: getattr(old, each.name) for each in fields(ModelMap)}
    kept["blocks"] = tuple(blocks)
    return replace(lens, map=_PlantedMap(**kept, site=site, wide=wide))


def plant(captured: Capture, site: Site, channels: Channels, *, answered: bool = True) -> Capture:
    """The capture of one site in the model that has these channels there. `answered`: what it says
    unpatched is replayed, else it is NaN.

    Raises `TaskError` for pairs without z, `SiteError` where no channels can be planted.

    >>> planted = plant(captures.test, site, channels).at(site)
    """
    lens, replay = planted_lens(captured.lens, site, channels), captured.at(site)
    x, z = by_class(replay)
    group = channels.groups_of(captured.pairs).repeat(2)
    values = channels.values(x.cpu().double(), z.double(), group)
    base, source = _activations(replay, channels, x.cpu().double(), values).chunk(2)
    entry = entry_of(lens.map, site)
    added = _added(replay, channels, base).to(replay.base)
    only = replace(
        captured,
        lens=lens,
        sites=(site,),
        base={site: base.to(replay.base)},
        source={site: source.to(replay.base)},
        buckets={site.label: tuple(_shifted(each, entry, added) for each in replay.buckets)},
    )
    if not answered:
        count = len(replay.pairs)
        unknown = Outcomes(torch.full((count,), torch.nan), torch.full((count,), -1))
        return replace(only, clean=unknown)
    planted = only.at(site)
    return replace(only, clean=planted.delta_outcomes(torch.zeros_like(planted.base), decided=True))


def planted_task(captures: TaskCapture, site: Site, channels: Channels) -> TaskCapture:
    """The same of all splits but the templates held out (`plant`); only the test split is answered,
    which is all that an audit asks for."""
    train, swapped = (
        plant(each, site, channels, answered=False) for each in (captures.train, captures.reversed)
    )
    test = plant(captures.test, site, channels)
    return replace(captures, train=train, test=test, reversed=swapped, held_out=None)


def _activations(replay: Replay, channels: Channels, h: Tensor, values: Tensor) -> Tensor:
    if replay.writer is not None:
        return torch.cat([h, values], dim=1)
    along = (h - channels.centre) @ channels.writes
    return h + (values - along) @ channels.writes.T


def _added(replay: Replay, channels: Channels, base: Tensor) -> Tensor:
    """By how much the residual stream behind the site differs from what it was, (n, d_model)."""
    old = replay.base.cpu().double()
    if replay.writer is not None:
        return (old - channels.centre) @ channels.reads.T @ channels.writes.T
    silent = channels.writes[:, channels.silent]
    return base - old - ((base - channels.centre) @ silent) @ silent.T


def _shifted(bucket: Bucket, entry: tuple[str, int], added: Tensor) -> Bucket:
    stream = in_memory(bucket.entries[entry]).clone()
    stream[:, 0] += added[bucket.pairs.to(added.device)].to(stream.device)
    return replace(bucket, entries={entry: stream})
