"""Schemas of maps: a patching map as it stands in `map.json`, an instant one in `instant.json`."""

from __future__ import annotations

from typing import Generic, Literal, Self, TypeVar

import numpy as np
from pydantic import Field, model_validator

from ...core.records import ModelRecord, Record
from ...core.site import STREAMS

SCHEMA = "subspacelens.map/1"
INSTANT_SCHEMA = "subspacelens.instant/1"

Rows = list[list[float | None]]


class StreamCells(Record):
    """`[layer][0]`, of `head_z` `[layer][head]`, of each metric; None where there is no value."""

    @classmethod
    def of(cls, **metrics: np.ndarray) -> Self:
        return cls(
            **{
                name: [[None if np.isnan(x) else x for x in row] for row in values.tolist()]
                for name, values in metrics.items()
            }
        )

    def arrays(self) -> dict[str, np.ndarray]:
        return {name: np.array(rows, dtype=float) for name, rows in self}


class StreamRecord(StreamCells):
    fldd: Rows
    nats: Rows
    iia: Rows


class StreamScoresRecord(StreamCells):
    whole: Rows
    das: Rows
    whole_fldd: Rows
    das_fldd: Rows
    cosine: Rows
    illusion: Rows


class MapTask(Record):
    name: str
    split: str
    pairs: int = Field(ge=1)
    sha256: str
    shifted: bool


class MapClean(Record):
    logit_diff: float
    top_answer: float


C = TypeVar("C", bound=StreamCells)


class GridRecord(Record, Generic[C]):
    """What all maps have."""

    model: ModelRecord
    task: MapTask
    clean: MapClean
    labels: list[str] = Field(min_length=1)
    streams: list[str] = Field(min_length=1)
    layers: int = Field(ge=1)
    effects: dict[str, dict[str, C]]
    seconds: float

    @model_validator(mode="after")
    def _complete(self) -> Self:
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
            for stream, values in streams.items():
                every = [rows for _, rows in values]
                width = 1 if stream != "head_z" else max([1, *map(len, every[0])])
                for rows in every:
                    if len(rows) != self.layers or any(len(row) != width for row in rows):
                        raise ValueError(
                            f"effects of {stream} at {label} are not {self.layers} layers x {width}"
                        )
        return self


class MapRecord(GridRecord[StreamRecord]):
    """Schema `subspacelens.map/1`, as it stands in `map.json`."""

    schema_: Literal["subspacelens.map/1"] = Field(alias="schema")
    captures: int = Field(ge=1)


class InstantRecord(GridRecord[StreamScoresRecord]):
    """Schema `subspacelens.instant/1`, as it stands in `instant.json`."""

    schema_: Literal["subspacelens.instant/1"] = Field(alias="schema")
    dim: int = Field(ge=1)
    refined: list[str]
    passes: int = Field(ge=1)
