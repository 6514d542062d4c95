"""Records: JSON with a schema, read back whole or refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from .errors import ResultError

R = TypeVar("R", bound=BaseModel)


class Record(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Estimate(Record):
    """A value with its 95 % interval. All three are None where the quantity does not exist
    (the null part of a direction that has none)."""

    value: float | None
    low: float | None = None
    high: float | None = None


class ModelRecord(Record):
    id: str
    weights_sha256: str
    dtype: str


def read_record(kind: type[R], path: Path | str, what: str) -> R:
    """A record of `kind` from a JSON file; `what` says what it should be. Raises `ResultError`
    naming the file and the first field that is wrong."""
    try:
        return kind.model_validate_json(Path(path).read_bytes())
    except OSError as error:
        raise ResultError(f"cannot read {path}: {error.strerror or error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise ResultError(f"{path} is not a {what}: {where}: {first['msg']}") from None
