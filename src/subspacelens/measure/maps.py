"""Patching maps: what happens when one component of one layer takes the source's value.

The first look at a model and a task: for every layer and stream, and for every single head, the
effect of the full-component patch (`patching.Full`). All sites come from one capture, each is one
replay, and the heads of a block are many patches of one replay.
"""

from __future__ import annotations

import html
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np
import psutil
import torch
from pydantic import Field, ValidationError, model_validator
from torch import Tensor

from ..certify import require_streams
from ..core.errors import ResultError, SiteError, TaskError
from ..core.files import write_atomically
from ..core.progress import track
from ..core.records import ModelRecord, Record
from ..core.site import STREAMS, Site
from ..engine.batches import TOKENS_PER_BATCH
from ..engine.capture import Capture, capture, check_pairs
from ..engine.patches import Full
from ..engine.replay import Replay
from ..model.lens import LensModel
from ..tasks.pairset import PairSet

SCHEMA = "subspacelens.map/1"
DEFAULT_PAIRS = 32


@dataclass(frozen=True)
class Cell:
    """The effect of one full-component patch: `fldd` = 1 - mean(patched) / mean(clean) logit
    difference; `nats` = mean drop of the logit difference; `iia` = share of pairs whose most likely
    token over the whole vocabulary becomes the target. `fldd` is NaN where the clean mean is not
    positive."""

    site: Site
    fldd: float
    nats: float
    iia: float


@dataclass(frozen=True, eq=False)
class Grid:
    """Effects of one stream at one label (see `Cell`), float64 (layers, cells) each: one cell a
    layer, or for `head_z` one a head. NaN where a layer lacks the stream."""

    fldd: np.ndarray
    nats: np.ndarray
    iia: np.ndarray

    @classmethod
    def empty(cls, layers: int, cells: int) -> Grid:
        return cls(*(np.full((layers, cells), np.nan) for _ in range(3)))


@dataclass(frozen=True, eq=False)
class PatchingMap:
    """Effects of full-component patches, `grids[label, stream]`.

    `clean_logit_diff` (nats) and `clean_top_answer` (share of prompts whose most likely token is
    the answer) say how well the unpatched model does. `captures` counts the passes over the pairs
    that the memory budget made necessary.
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
    grids: Mapping[tuple[str, str], Grid] = field(repr=False)
    captures: int
    seconds: float

    @property
    def measure(self) -> Literal["fldd", "nats"]:
        """What to show: `fldd`, unless the model does not prefer the answer and so has none."""
        return "fldd" if self.clean_logit_diff > 0 else "nats"

    def cells(self, *, stream: str | None = None, label: str | None = None) -> Iterator[Cell]:
        """Every cell that exists, by label, stream, layer and head."""
        for of_label, of_stream in product(self.labels, self.streams):
            if stream not in (None, of_stream) or label not in (None, of_label):
                continue
            grid = self.grids[of_label, of_stream]
            for layer, head in np.argwhere(~np.isnan(grid.nats)).tolist():
                site = Site(layer, of_stream, of_label, head if of_stream == "head_z" else None)
                values = (grid.fldd, grid.nats, grid.iia)
                yield Cell(site, *(float(value[layer, head]) for value in values))

    def at(self, site: Site | str) -> Cell:
        """The cell of a site, such as `L17.head_z.3@S2`. Raises `SiteError` if it has none."""
        site = Site.parse(site) if isinstance(site, str) else site
        for cell in self.cells(stream=site.stream, label=site.label):
            if cell.site == site:
                return cell
        raise SiteError(f"site {site} is not a cell of this map: {self!r}")

    def strongest(
        self, n: int, *, stream: str | None = None, label: str | None = None
    ) -> list[Cell]:
        """The `n` cells that change the logit difference most, in either direction."""
        cells = self.cells(stream=stream, label=label)
        return sorted(cells, key=lambda cell: -abs(cell.nats))[:n]

    def best(self, n: int, *, stream: str | None = None, label: str | None = None) -> list[str]:
        """The sites of the `n` strongest cells, as strings that `Site.parse` reads."""
        return [str(cell.site) for cell in self.strongest(n, stream=stream, label=label)]

    def to_json(self) -> str:
        """Schema `subspacelens.map/1`: `effects[label][stream][metric][layer][cell]`."""
        effects: dict[str, dict[str, GridRecord]] = {label: {} for label in self.labels}
        for (label, stream), grid in self.grids.items():
            effects[label][stream] = GridRecord(
                fldd=_listed(grid.fldd), nats=_listed(grid.nats), iia=_listed(grid.iia)
            )
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
        try:
            record = MapRecord.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the whole"
            what = f"{where}: {first['msg']}"
            raise ResultError(f"{origin} is not a {SCHEMA} record: {what}") from None
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
            grids={
                (label, stream): record.effects[label][stream].grid()
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
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ResultError(f"cannot read {path}: {error.strerror or error}") from None
        return cls.from_json(data, str(path))

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
        head = "".join(f"<th>{html.escape(stream)}</th>" for stream in self.streams)
        rows = ""
        for layer in range(self.layers):
            row = ""
            for stream in self.streams:
                values = getattr(self.grids[label, stream], self.measure)[layer]
                found = np.flatnonzero(~np.isnan(values))
                if not len(found):
                    row += "<td></td>"
                    continue
                cell = found[np.abs(values[found]).argmax()]
                rgb = "58,134,200" if values[cell] > 0 else "213,105,42"
                which = f" <small>head {cell}</small>" if stream == "head_z" else ""
                shade = f"background:rgba({rgb},{min(1.0, abs(values[cell])):.2f})"
                row += f'<td style="{shade}">{values[cell]:.2f}{which}</td>'
            rows += f"<tr><th>{layer}</th>{row}</tr>"
        return f"<table><tr><th>layer</th>{head}</tr>{rows}</table>"


def patching_map(
    lens: LensModel,
    pairs: PairSet,
    streams: Iterable[str],
    labels: Iterable[str],
    *,
    shifted: bool = False,
    memory: int | None = None,
    limit: int | None = DEFAULT_PAIRS,
) -> PatchingMap:
    """The effect of the full-component patch at every layer of `streams` at `labels`, of the single
    heads for `head_z`, on the first `limit` pairs (None: all of them).

    `memory` is the budget in bytes for what one capture keeps and for one replay, by default a
    quarter of what is free; where one capture of everything would pass it, there are several, each
    of fewer labels and layers. `shifted` allows a label in different columns of base and source.
    Each stream must pass its certificate at a middle layer.

    Raises `SiteError` for a stream that no layer has or that fails a proof, `TaskError` for a label
    that the pairs lack.
    """
    started = time.perf_counter()
    streams, labels = tuple(dict.fromkeys(streams)), tuple(dict.fromkeys(labels))
    if not streams:
        raise SiteError(f"no stream to map: give some of {', '.join(STREAMS)}")
    if not labels:
        raise TaskError(f"no label to map: task {pairs.name} has {', '.join(pairs.labels)}")
    if limit is not None and limit < 1:
        raise TaskError(f"limit={limit}: a map needs at least one pair")
    pairs = pairs[:limit]
    sites = [site for label in labels for site in _sites(lens, streams, label)]
    for label in labels:
        check_pairs(pairs, Site(0, streams[0], label), shifted=shifted)
    require_streams(lens, _sites(lens, streams, labels[0]))
    memory = memory or _free(lens.device) // 4
    grids = {
        (label, stream): Grid.empty(len(lens.map.blocks), _cells(lens, stream))
        for label, stream in product(labels, streams)
    }
    groups = _groups(lens, pairs, sites, memory)
    targets = np.array([pair.target for pair in pairs.pairs])
    captured: Capture | None = None
    for captured, site in track(_captured(lens, pairs, groups, shifted), "map", len(sites)):
        clean = captured.clean.logit_diff.double().mean().item()
        found = Replay(lens, captured, site, memory=memory).outcomes(_deltas(lens, captured, site))
        patched = found.logit_diff.double().mean(dim=1).numpy()
        grid, here = grids[site.label, site.stream], np.s_[site.layer, : len(patched)]
        grid.nats[here] = clean - patched
        grid.fldd[here] = 1 - patched / clean if clean > 0 else np.nan
        grid.iia[here] = (found.top.numpy() == targets).mean(axis=1)
    assert captured is not None
    answers = torch.tensor([pair.answer for pair in pairs.pairs])
    return PatchingMap(
        model=ModelRecord(
            id=lens.id,
            weights_sha256=lens.weights_sha256,
            dtype=str(lens.dtype).removeprefix("torch."),
        ),
        task=pairs.name,
        split=pairs.split,
        pairs=len(pairs),
        pairs_sha256=pairs.sha256,
        shifted=shifted,
        clean_logit_diff=captured.clean.logit_diff.double().mean().item(),
        clean_top_answer=(captured.clean.top == answers).double().mean().item(),
        labels=labels,
        streams=streams,
        layers=len(lens.map.blocks),
        grids=grids,
        captures=len(groups),
        seconds=time.perf_counter() - started,
    )


def _sites(lens: LensModel, streams: tuple[str, ...], label: str) -> list[Site]:
    """All layers that have each stream, lowest layer first, whole `head_z` for its heads."""
    blocks = lens.map.blocks
    for stream in streams:
        first = Site(0, stream, label)
        if all(stream in block.missing for block in blocks):
            lens.map.block(first)
    return [
        Site(layer, stream, label)
        for layer, block in enumerate(blocks)
        for stream in streams
        if stream not in block.missing
    ]


def _cells(lens: LensModel, stream: str) -> int:
    return max(block.n_heads for block in lens.map.blocks) if stream == "head_z" else 1


def _deltas(lens: LensModel, captured: Capture, site: Site) -> Tensor:
    """(cells, n, dim): the full patch of the site, or of each of its heads alone."""
    delta = Full().delta(captured.base[site], captured.source[site])
    if site.stream != "head_z":
        return delta[None]
    mask = delta.new_zeros(lens.map.block(site).n_heads, 1, delta.shape[-1])
    for head in range(len(mask)):
        mask[head, :, lens.map.head_slice(replace(site, head=head))] = 1
    return mask * delta


def _captured(
    lens: LensModel, pairs: PairSet, groups: list[list[Site]], shifted: bool
) -> Iterator[tuple[Capture, Site]]:
    for group in groups:
        captured = capture(lens, pairs, group, shifted=shifted)
        for site in group:
            yield captured, site


def _groups(lens: LensModel, pairs: PairSet, sites: list[Site], memory: int) -> list[list[Site]]:
    """Consecutive sites that share a capture, each group's estimated size within `memory`, or a
    single site."""
    size = torch.finfo(lens.dtype).bits // 8
    lengths = [len(pair.base.ids) for pair in pairs.pairs]
    columns = min(TOKENS_PER_BATCH, sum(lengths))
    layers, width = len(lens.map.blocks), lens.map.d_model
    groups: list[list[Site]] = []
    used = memory
    for site in sites:
        prefix = sum(pair.base.columns[site.label] for pair in pairs.pairs)
        activation = lens.map.dim(site) * (2 * len(pairs) + columns)
        entry = width * (sum(lengths) - prefix + columns)
        fixed = 2 * width * prefix * (layers - site.layer)
        own = size * (activation + entry)
        fresh = not groups or all(other.label != site.label for other in groups[-1])
        more = own + size * fixed if fresh else own
        if groups and used + more <= memory:
            groups[-1].append(site)
            used += more
        else:
            groups.append([site])
            used = own + size * fixed
    return groups


def _free(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def _listed(values: np.ndarray) -> list[list[float | None]]:
    return [[None if np.isnan(x) else x for x in row] for row in values.tolist()]


class GridRecord(Record):
    """`[layer][cell]` of each metric; None where there is no such cell, or no such value."""

    fldd: list[list[float | None]]
    nats: list[list[float | None]]
    iia: list[list[float | None]]

    def grid(self) -> Grid:
        return Grid(*(np.array(x, dtype=float) for x in (self.fldd, self.nats, self.iia)))


class MapTask(Record):
    name: str
    split: str
    pairs: int = Field(ge=1)
    sha256: str
    shifted: bool


class MapClean(Record):
    logit_diff: float
    top_answer: float


class MapRecord(Record):
    """Schema `subspacelens.map/1`, as it stands in `map.json`."""

    schema_: Literal["subspacelens.map/1"] = Field(alias="schema")
    model: ModelRecord
    task: MapTask
    clean: MapClean
    labels: list[str] = Field(min_length=1)
    streams: list[str] = Field(min_length=1)
    layers: int = Field(ge=1)
    effects: dict[str, dict[str, GridRecord]]
    captures: int = Field(ge=1)
    seconds: float

    @model_validator(mode="after")
    def _complete(self) -> MapRecord:
        unknown = set(self.streams) - set(STREAMS)
        if unknown:
            raise ValueError(f"unknown stream {', '.join(sorted(unknown))}")
        for given, where in ((self.labels, "labels"), (self.streams, "streams")):
            if len(set(given)) != len(given):
                raise ValueError(f"{where} are named twice")
        if set(self.effects) != set(self.labels):
            raise ValueError("effects are not those of the labels")
        for label, streams in self.effects.items():
            if set(streams) != set(self.streams):
                raise ValueError(f"effects of {label} are not those of the streams")
            for stream, grid in streams.items():
                cells = 1 if stream != "head_z" else max(len(grid.nats[0]) if grid.nats else 0, 1)
                for values in (grid.fldd, grid.nats, grid.iia):
                    if len(values) != self.layers or any(len(row) != cells for row in values):
                        raise ValueError(
                            f"effects of {stream} at {label} are not {self.layers} layers x "
                            f"{cells} cells"
                        )
        return self
