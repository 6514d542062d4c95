"""Records: JSON with a schema, read back whole or refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .errors import ResultError
from .files import read_whole

R = TypeVar("R", bound=BaseModel)

Number = Annotated[float, Field(ge=-1e100, le=1e100)]
"""A number whose square and whose distance from another are numbers too."""


class Record(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Estimate(Record):
    """A value with its 95 % interval. All three are None where the quantity does not exist
    (the null part of a direction that has none)."""

    value: Number | None
    low: Number | None = None
    high: Number | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if (self.low is None) != (self.high is None):
            raise ValueError("an interval has two ends or none")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"the interval [{self.low:g}, {self.high:g}] ends before it begins")
        return self

    def scaled(self, factor: float) -> Estimate:
        """The estimate of `factor` times the quantity."""
        if self.value is None or self.low is None or self.high is None:
            return Estimate(value=None if self.value is None else factor * self.value)
        ends = factor * self.low, factor * self.high
        return Estimate(value=factor * self.value, low=min(ends), high=max(ends))


class EffectRecord(Record):
    """What one patch does on all pairs: `nats` = mean over pairs of clean minus patched logit
    difference; `fldd` = 1 - mean(patched) / mean(clean) logit difference; `iia` = share of pairs
    whose most likely token over the whole vocabulary is the target; `iia_pair` = share of pairs in
    which the target is more likely than the answer."""

    nats: Estimate
    fldd: Estimate
    iia: Estimate
    iia_pair: Estimate

    @classmethod
    def absent(cls) -> EffectRecord:
        """Of a patch that does not exist: no metric has a value."""
        nothing = Estimate(value=None)
        return cls(nats=nothing, fldd=nothing, iia=nothing, iia_pair=nothing)


class ModelRecord(Record):
    id: str
    weights_sha256: str
    dtype: str


def read_record(kind: type[R], path: Path | str, what: str) -> R:
    """A record of `kind` from a JSON file; `what` says what it should be. Raises `ResultError`
    naming the file and the first field that is wrong."""
    return parse_record(kind, read_whole(path), path, what)


def parse_record(kind: type[R], text: str | bytes, origin: Path | str, what: str) -> R:
    """A record of `kind` from JSON that comes from `origin`; `what` says what it should be. Raises
    `ResultError` naming the origin and the first field that is wrong."""
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        reason = first["msg"].removeprefix("Value error, ")
        raise ResultError(f"{origin} is not a {what}: {where}: {reason}") from None
