"""The patching map as a value: effects by label, stream, layer and head."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np

from ...core.errors import SiteError
from ...core.files import read_whole, write_atomically
from ...core.records import ModelRecord, parse_record
from ...core.site import Site
from .record import SCHEMA, MapClean, MapRecord, MapTask, StreamRecord


@dataclass(frozen=True)
class SiteEffect:
    """The effect of one full-component patch: `fldd` = 1 - mean(patched) / mean(clean) logit
    difference; `nats` = mean drop of the logit difference; `iia` = share of pairs whose most likely
    token over the whole vocabulary becomes the target. `fldd` is NaN where the clean mean is not
    positive."""

    site: Site
    fldd: float
    nats: float
    iia: float


@dataclass(frozen=True, eq=False)
class StreamEffects:
    """Effects of one stream at one label (see `SiteEffect`), float64 (layers, heads) each, (layers,
    1) but for `head_z`. NaN where a layer lacks the stream."""

    fldd: np.ndarray
    nats: np.ndarray
    iia: np.ndarray

    @classmethod
    def empty(cls, layers: int, heads: int) -> StreamEffects:
        return cls(*(np.full((layers, heads), np.nan) for _ in range(3)))


@dataclass(frozen=True, eq=False, kw_only=True)
class PatchingMap:
    """Effects of full-component patches, `effects[label, stream]`.

    `clean_logit_diff` (nats) and `clean_top_answer` (share of prompts whose most likely token is
    the answer) say how well the unpatched model does. `captures` counts the passes over the pairs
    that the memory budget made necessary.

    >>> patched = patching_map(lens, task.test, ["resid_post", "mlp_act"], ["S2", "END"])
    >>> patched.best(3)  # names of sites
    """

    model: ModelRecord
    task: str
    split: str
    pairs: int
    pairs_sha256: str
    shifted: bool
    clean_logit_diff: float
    clean_top_answer: float
    labels: tuple[str, ...]
    streams: tuple[str, ...]
    layers: int
    effects: Mapping[tuple[str, str], StreamEffects] = field(repr=False)
    captures: int
    seconds: float

    @property
    def measure(self) -> Literal["fldd", "nats"]:
        """What to show: `fldd`, unless the model does not prefer the answer and so has none."""
        return "fldd" if self.clean_logit_diff > 0 else "nats"

    def sites(self, *, stream: str | None = None, label: str | None = None) -> Iterator[SiteEffect]:
        """The effect of every site, by label, stream, layer and head."""
        for of_label, of_stream in product(self.labels, self.streams):
            if stream not in (None, of_stream) or label not in (None, of_label):
                continue
            effects = self.effects[of_label, of_stream]
            for layer, head in np.argwhere(~np.isnan(effects.nats)).tolist():
                site = Site(layer, of_stream, of_label, head if of_stream == "head_z" else None)
                metrics = (effects.fldd, effects.nats, effects.iia)
                yield SiteEffect(site, *(float(values[layer, head]) for values in metrics))

    def at(self, site: Site | str) -> SiteEffect:
        """The effect of a site, such as `L17.head_z.3@S2`. Raises `SiteError` if it has none."""
        site = Site.parse(site) if isinstance(site, str) else site
        for effect in self.sites(stream=site.stream, label=site.label):
            if effect.site == site:
                return effect
        raise SiteError(f"site {site} is not in this map: {self!r}")

    def strongest(
        self, n: int, *, stream: str | None = None, label: str | None = None
    ) -> list[SiteEffect]:
        """The `n` sites that change the logit difference most, in either direction."""
        effects = self.sites(stream=stream, label=label)
        return sorted(effects, key=lambda effect: -abs(effect.nats))[:n]

    def best(self, n: int, *, stream: str | None = None, label: str | None = None) -> list[str]:
        """The names of the `n` strongest sites, which `Site.parse` reads."""
        return [str(effect.site) for effect in self.strongest(n, stream=stream, label=label)]

    def to_json(self) -> str:
        """Schema `subspacelens.map/1`: `effects[label][stream][metric][layer][head]`."""
        effects: dict[str, dict[str, StreamRecord]] = {label: {} for label in self.labels}
        for (label, stream), own in self.effects.items():
            effects[label][stream] = StreamRecord.of(fldd=own.fldd, nats=own.nats, iia=own.iia)
        return MapRecord(
            schema=SCHEMA,
            model=self.model,
            task=MapTask(
                name=self.task,
                split=self.split,
                pairs=self.pairs,
                sha256=self.pairs_sha256,
                shifted=self.shifted,
            ),
            clean=MapClean(logit_diff=self.clean_logit_diff, top_answer=self.clean_top_answer),
            labels=list(self.labels),
            streams=list(self.streams),
            layers=self.layers,
            effects=effects,
            captures=self.captures,
            seconds=self.seconds,
        ).model_dump_json(by_alias=True)

    @classmethod
    def from_json(cls, text: str | bytes, origin: str = "the text") -> PatchingMap:
        """Reads what `to_json` wrote; raises `ResultError` that names `origin` and the first field
        that is wrong."""
        record = parse_record(MapRecord, text, origin, f"{SCHEMA} record")
        return cls(
            model=record.model,
            task=record.task.name,
            split=record.task.split,
            pairs=record.task.pairs,
            pairs_sha256=record.task.sha256,
            shifted=record.task.shifted,
            clean_logit_diff=record.clean.logit_diff,
            clean_top_answer=record.clean.top_answer,
            labels=tuple(record.labels),
            streams=tuple(record.streams),
            layers=record.layers,
            effects={
                (label, stream): StreamEffects(**record.effects[label][stream].arrays())
                for label, stream in product(record.labels, record.streams)
            },
            captures=record.captures,
            seconds=record.seconds,
        )

    def save(self, path: Path) -> None:
        """Writes the JSON to `path`, whole or not at all. Raises `ResultError` where it cannot."""
        write_atomically(path, self.to_json().encode())

    @classmethod
    def load(cls, path: Path) -> PatchingMap:
        """Reads a saved map; raises `ResultError` for a file that is missing or damaged."""
        return cls.from_json(read_whole(path), str(path))

    def __repr__(self) -> str:
        strongest = "".join(f", strongest {site}" for site in self.best(1))
        return (
            f"PatchingMap({self.model.id}, {self.task} {self.split}: {self.pairs} pairs, "
            f"{self.layers} layers x {' '.join(self.streams)} @ {' '.join(self.labels)}{strongest})"
        )

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(repr(self))}</p>" + "".join(
            f"<h4>{html.escape(label)}</h4>{self._table(label)}" for label in self.labels
        )

    def _table(self, label: str) -> str:
        """Effects by layer and stream, of the heads the strongest one."""
        titles = "".join(f"<th>{html.escape(stream)}</th>" for stream in self.streams)
        rows = ""
        for layer in range(self.layers):
            row = ""
            for stream in self.streams:
                values = getattr(self.effects[label, stream], self.measure)[layer]
                if np.isnan(values).all():
                    row += "<td></td>"
                    continue
                head = int(np.nanargmax(np.abs(values)))
                rgb = "58,134,200" if values[head] > 0 else "213,105,42"
                which = f" <small>head {head}</small>" if stream == "head_z" else ""
                shade = f"background:rgba({rgb},{min(1.0, abs(values[head])):.2f})"
                row += f'<td style="{shade}">{values[head]:.2f}{which}</td>'
            rows += f"<tr><th>{layer}</th>{row}</tr>"
        return f"<table><tr><th>layer</th>{titles}</tr>{rows}</table>"
