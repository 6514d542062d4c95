"""The patching map as a value: effects by label, stream, layer and head."""

from __future__ import annotations

import html
from dataclasses import dataclass, replace
from itertools import product
from typing import ClassVar

import numpy as np

from ...core.errors import SiteError
from ...core.records import parse_record
from ...core.site import Site
from .grid import Cells, SiteGrid
from .record import SCHEMA, MapRecord, StreamRecord


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
class StreamEffects(Cells):
    """Effects of one stream at one label (see `SiteEffect` and `Cells`)."""

    fldd: np.ndarray
    nats: np.ndarray
    iia: np.ndarray


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class PatchingMap(SiteGrid[SiteEffect]):
    """Effects of full-component patches, `effects[label, stream]`.

    `clean_logit_diff` (nats) and `clean_top_answer` (share of prompts whose most likely token is
    the answer) say how well the unpatched model does. `captures` counts the passes over the pairs
    that the memory budget made necessary.

    >>> patched = patching_map(lens, task.test, ["resid_post", "mlp_act"], ["S2", "END"])
    >>> patched.best(3)  # names of sites
    """

    captures: int

    of_site: ClassVar[type] = SiteEffect
    strength: ClassVar[str] = "nats"

    def beside(self, other: PatchingMap) -> PatchingMap:
        """This map with the streams of another of the same model, pairs and labels, which it lacks
        itself. Raises `SiteError` where there is more that they do not share."""

        def alike(each: PatchingMap) -> tuple:
            return each.model, each.task, each.pairs_sha256, each.labels, each.layers, each.shifted

        if alike(self) != alike(other) or set(self.streams) & set(other.streams):
            raise SiteError(f"{self!r} and {other!r} are not two parts of one map")
        return replace(
            self,
            streams=(*self.streams, *other.streams),
            effects={**self.effects, **other.effects},
            captures=self.captures + other.captures,
            seconds=self.seconds + other.seconds,
        )

    def to_json(self) -> str:
        """Schema `subspacelens.map/1`: `effects[label][stream][metric][layer][head]`."""
        return MapRecord(
            schema=SCHEMA,
            effects=self._cells(StreamRecord),
            captures=self.captures,
            **self._recorded(),
        ).model_dump_json(by_alias=True)

    @classmethod
    def from_json(cls, text: str | bytes, origin: str = "the text") -> PatchingMap:
        """Reads what `to_json` wrote; raises `ResultError` that names `origin` and the first field
        that is wrong."""
        record = parse_record(MapRecord, text, origin, f"{SCHEMA} record")
        return cls(
            effects={
                (label, stream): StreamEffects.of(record.effects[label][stream])
                for label, stream in product(record.labels, record.streams)
            },
            captures=record.captures,
            **cls._read(record),
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
