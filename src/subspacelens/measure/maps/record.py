"""Schema `subspacelens.map/1`: a patching map as it stands in `map.json`."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from ...core.records import ModelRecord, Record
from ...core.site import STREAMS

SCHEMA = "subspacelens.map/1"


class StreamRecord(Record):
    """`[layer][0]`, of `head_z` `[layer][head]`, of each metric; None where there is no value."""

    fldd: list[list[float | None]]
    nats: list[list[float | None]]
    iia: list[list[float | None]]

    @classmethod
    def of(cls, **metrics: np.ndarray) -> StreamRecord:
        return cls(
            **{
                name: [[None if np.isnan(x) else x for x in row] for row in values.tolist()]
                for name, values in metrics.items()
            }
        )

    def arrays(self) -> dict[str, np.ndarray]:
        return {name: np.array(rows, dtype=float) for name, rows in self}


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
    effects: dict[str, dict[str, StreamRecord]]
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
            for stream, values in streams.items():
                width = 1 if stream != "head_z" else max([1, *map(len, values.nats)])
                for _, rows in values:
                    if len(rows) != self.layers or any(len(row) != width for row in rows):
                        raise ValueError(
                            f"effects of {stream} at {label} are not {self.layers} layers x {width}"
                        )
        return self
