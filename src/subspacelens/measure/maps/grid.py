"""What all maps have in common: numbers by label, stream, layer and head of one model and task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, Protocol, Self, TypeVar

import numpy as np

from ...core.errors import SiteError
from ...core.files import read_whole, write_atomically
from ...core.records import ModelRecord
from ...core.site import Site
from .record import GridRecord, MapClean, MapTask, StreamCells


class OfSite(Protocol):
    """The numbers of one site."""

    @property
    def site(self) -> Site: ...


E = TypeVar("E", bound=OfSite)
R = TypeVar("R", bound=StreamCells)


@dataclass(frozen=True, eq=False)
class Cells:
    """Numbers of one stream at one label: float64 arrays (layers, heads), (layers, 1) but for
    `head_z`. NaN where a layer lacks the stream."""

    @classmethod
    def empty(cls, layers: int, heads: int) -> Self:
        return cls(*(np.full((layers, heads), np.nan) for _ in fields(cls)))

    @classmethod
    def of(cls, record: StreamCells) -> Self:
        """Reads what `record` wrote."""
        return cls(**record.arrays())

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The array of every metric, by its name."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class SiteGrid(ABC, Generic[E]):
    """`effects[label, stream]` of one model on some pairs, on which the unpatched model prefers the
    answer by `clean_logit_diff` nats and gives it as its most likely token in a share
    `clean_top_answer` of the prompts."""

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
    effects: Mapping[tuple[str, str], Any] = field(repr=False)
    seconds: float

    of_site: ClassVar[type]
    strength: ClassVar[str]
    """What `sites` gives, and its attribute by whose size `strongest` ranks, in nats."""

    @property
    def measure(self) -> Literal["fldd", "nats"]:
        """What to show: `fldd`, unless the model does not prefer the answer and so has none."""
        return "fldd" if self.clean_logit_diff > 0 else "nats"

    def sites(self, *, stream: str | None = None, label: str | None = None) -> Iterator[E]:
        """The numbers of every site, by label, stream, layer and head."""
        for of_label, of_stream in product(self.labels, self.streams):
            if stream not in (None, of_stream) or label not in (None, of_label):
                continue
            arrays = self.effects[of_label, of_stream].arrays
            for layer, head in np.argwhere(~np.isnan(arrays[self.strength])).tolist():
                site = Site(layer, of_stream, of_label, head if of_stream == "head_z" else None)
                numbers = {name: float(values[layer, head]) for name, values in arrays.items()}
                yield self.of_site(site, **numbers)

    def at(self, site: Site | str) -> E:
        """The numbers of a site, such as `L17.head_z.3@S2`. Raises `SiteError` if it has none."""
        site = Site.of(site)
        for effect in self.sites(stream=site.stream, label=site.label):
            if effect.site == site:
                return effect
        raise SiteError(f"site {site} is not in this map: {self!r}")

    def strongest(self, n: int, *, stream: str | None = None, label: str | None = None) -> list[E]:
        """The `n` sites that change the logit difference most, in either direction."""
        found = self.sites(stream=stream, label=label)
        return sorted(found, key=lambda effect: -abs(getattr(effect, self.strength)))[:n]

    def best(self, n: int, *, stream: str | None = None, label: str | None = None) -> list[str]:
        """The names of the `n` strongest sites, which `Site.parse` reads."""
        return [str(effect.site) for effect in self.strongest(n, stream=stream, label=label)]

    def save(self, path: Path) -> None:
        """Writes the JSON to `path`, whole or not at all. Raises `ResultError` where it cannot."""
        write_atomically(path, self.to_json().encode())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads a saved map; raises `ResultError` for a file that is missing or damaged."""
        return cls.from_json(read_whole(path), str(path))

    @abstractmethod
    def to_json(self) -> str:
        """What `save` writes."""

    @classmethod
    @abstractmethod
    def from_json(cls, text: str | bytes, origin: str = "the text") -> Self:
        """Reads what `to_json` wrote; `origin` is named in errors."""

    def _cells(self, kind: type[R]) -> dict[str, dict[str, R]]:
        """The effects as records, by label and stream."""
        cells: dict[str, dict[str, R]] = {label: {} for label in self.labels}
        for (label, stream), own in self.effects.items():
            cells[label][stream] = kind.of(**own.arrays)
        return cells

    def _recorded(self) -> dict[str, Any]:
        """The fields of a `GridRecord`, but for the effects."""
        return dict(
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
            seconds=self.seconds,
        )

    @staticmethod
    def _read(record: GridRecord) -> dict[str, Any]:
        """The fields of a map, but for the effects."""
        return dict(
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
            seconds=record.seconds,
        )

    def __repr__(self) -> str:
        strongest = "".join(f", strongest {site}" for site in self.best(1))
        return (
            f"{type(self).__name__}({self.model.id}, {self.task} {self.split}: {self.pairs} pairs, "
            f"{self.layers} layers x {' '.join(self.streams)} @ {' '.join(self.labels)}{strongest})"
        )
