"""The instant map as a value: what is predicted, by label, stream, layer and head."""

from __future__ import annotations

import html
from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import numpy as np

from ...core.records import parse_record
from ...core.site import Site
from .grid import Cells, SiteGrid
from .record import INSTANT_SCHEMA, InstantRecord, StreamScoresRecord


@dataclass(frozen=True)
class SiteScore:
    """What a site promises before any fit. `whole`: by how many nats patching the whole component
    lowers the logit difference; `das`: by how many the best subspace does; `whole_fldd` and
    `das_fldd` the same as shares of the clean logit difference, NaN where that is not positive.
    `cosine`: see `FirstOrder`. `illusion`: see `illusion_share`, NaN where `das` is not positive.
    """

    site: Site
    whole: float
    das: float
    whole_fldd: float
    das_fldd: float
    cosine: float
    illusion: float


@dataclass(frozen=True, eq=False)
class StreamScores(Cells):
    """Scores of one stream at one label (see `SiteScore` and `Cells`)."""

    whole: np.ndarray
    das: np.ndarray
    whole_fldd: np.ndarray
    das_fldd: np.ndarray
    cosine: np.ndarray
    illusion: np.ndarray


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class InstantMap(SiteGrid[SiteScore]):
    """Scores of every site, `effects[label, stream]`, for subspaces of `dim` dimensions.

    `refined` names the sites whose gradient was averaged along the path from base to source; all
    others are of first order. `passes` counts the passes over the pairs that the memory budget made
    necessary.

    >>> found = instant_map(lens, task.test, ["resid_post", "mlp_act"], ["S2", "END"])
    >>> score = found.at("L18.mlp_act@S2")
    >>> score.das_fldd, score.illusion
    """

    dim: int
    refined: tuple[str, ...]
    passes: int

    of_site: ClassVar[type] = SiteScore
    strength: ClassVar[str] = "das"

    def to_json(self) -> str:
        """Schema `subspacelens.instant/1`: `effects[label][stream][metric][layer][head]`."""
        return InstantRecord(
            schema=INSTANT_SCHEMA,
            effects=self._cells(StreamScoresRecord),
            dim=self.dim,
            refined=list(self.refined),
            passes=self.passes,
            **self._recorded(),
        ).model_dump_json(by_alias=True)

    @classmethod
    def from_json(cls, text: str | bytes, origin: str = "the text") -> InstantMap:
        """Reads what `to_json` wrote; raises `ResultError` that names `origin` and the first field
        that is wrong."""
        record = parse_record(InstantRecord, text, origin, f"{INSTANT_SCHEMA} record")
        return cls(
            effects={
                (label, stream): StreamScores.of(record.effects[label][stream])
                for label, stream in product(record.labels, record.streams)
            },
            dim=record.dim,
            refined=tuple(record.refined),
            passes=record.passes,
            **cls._read(record),
        )

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th>{html.escape(str(score.site))}</th><td>{score.whole:.2f}</td>"
            f"<td>{score.das:.2f}</td><td>{score.illusion:.0%}</td></tr>"
            for score in self.strongest(10)
        )
        return (
            f"<p>{html.escape(repr(self))}</p><table><tr><th>site</th><th>whole, nats</th>"
            f"<th>DAS, nats</th><th>illusion</th></tr>{rows}</table>"
        )
