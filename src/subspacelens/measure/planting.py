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

import torch
from torch import Tensor

from ..core.errors import SiteError
from ..core.site import Site
from ..engine.buckets import Bucket, entry_of
from ..engine.capture import Capture
from ..engine.replay import Replay
from ..engine.task_capture import TaskCapture
from ..fit.closed_form import by_class
from ..model.lens import LensModel
from ..model.mapping.values import Block, ModelMap, Reader
from ..model.mapping.ways import Way, Within


@dataclass(frozen=True, eq=False, kw_only=True)
class Channels:
    """p channels at one site.

    The value of each for a prompt with activation h and feature z is follow·(2z - 1) +
    reads·(h - centre): `follow` (p,), `reads` (p, dim), `centre` (dim,). `writes` (d_model, p) is
    what each adds to the residual stream per unit of its value, at a site with a linear writer; at
    others `writes` are orthonormal directions (dim, p) of the activation itself, and `silent` (p,)
    says which of them nobody reads. All float64.
    """

    follow: Tensor
    reads: Tensor = field(repr=False)
    centre: Tensor = field(repr=False)
    writes: Tensor = field(repr=False)
    silent: Tensor

    def values(self, h: Tensor, z: Tensor) -> Tensor:
        """(n, p), of prompts with activations h (n, dim) and z (n,)."""
        return (2 * z[:, None] - 1) * self.follow + (h - self.centre) @ self.reads.T

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
    """Whether what a site writes enters the residual stream as it is, or by one linear map."""
    return not isinstance(lens.map.block(site).entries[site.stream], Within)


def planted_lens(lens: LensModel, site: Site, channels: Channels) -> LensModel:
    """The model as replays see it that has these channels; the modules are those of `lens`.

    Raises `SiteError` where no channel can be planted.
    """
    if not can_be_planted(lens, site):
        raise SiteError(f"site {site}: a norm follows, so that no channels can be planted there")
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


def plant(captured: Capture, site: Site, channels: Channels) -> Capture:
    """The capture of one site in the model that has these channels there, unpatched answers
    included. Raises `TaskError` for pairs without z, `SiteError` where none can be planted.

    >>> planted = plant(captures.test, site, channels).at(site)
    """
    lens, replay = planted_lens(captured.lens, site, channels), captured.at(site)
    x, z = by_class(replay)
    base, source = _activations(replay, channels, x.cpu().double(), z.double()).chunk(2)
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
    planted = only.at(site)
    return replace(only, clean=planted.delta_outcomes(torch.zeros_like(planted.base)))


def planted_task(captures: TaskCapture, site: Site, channels: Channels) -> TaskCapture:
    """The same of all splits but the templates held out (`plant`)."""
    train, test, swapped = (
        plant(each, site, channels) for each in (captures.train, captures.test, captures.reversed)
    )
    return replace(captures, train=train, test=test, reversed=swapped, held_out=None)


def _activations(replay: Replay, channels: Channels, h: Tensor, z: Tensor) -> Tensor:
    values = channels.values(h, z)
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
    stream = bucket.entries[entry].clone()
    stream[:, 0] += added[bucket.pairs.to(added.device)]
    return replace(bucket, entries={entry: stream})
