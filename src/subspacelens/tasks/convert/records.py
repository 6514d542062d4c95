"""Any file of records, as a list of mappings from field to value."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...core.errors import TaskError, first_line
from ...core.files import regular

KINDS = (".csv", ".tsv", ".json", ".jsonl", ".parquet")


def read_records(path: Path) -> list[Mapping[str, Any]]:
    """The rows of a table, the objects of a JSON Lines file, or the objects of a JSON file that is
    a list of them or has lists of them by name. Raises `TaskError` for anything else."""
    if path.suffix not in KINDS:
        raise TaskError(f"{path}: give a file that ends in {', '.join(KINDS)}")
    try:
        content = regular(path).read_bytes()
    except OSError as error:
        raise TaskError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        records = _parsed(path.suffix, content)
    except Exception as error:
        raise TaskError(f"{path}: cannot be read as {path.suffix}: {first_line(error)}") from None
    if not records or not all(isinstance(record, Mapping) for record in records):
        raise TaskError(f"{path}: no records: give rows with named fields")
    return records


def _parsed(suffix: str, content: bytes) -> list[Any]:
    if suffix == ".parquet":
        import polars

        return polars.read_parquet(io.BytesIO(content)).to_dicts()
    text = content.decode("utf-8-sig")
    if suffix in (".csv", ".tsv"):
        separator = "," if suffix == ".csv" else "\t"
        return list(csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, strict=True))
    if suffix == ".jsonl":
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    value = json.loads(text)
    if isinstance(value, dict):
        return [record for part in value.values() if isinstance(part, list) for record in part]
    return value if isinstance(value, list) else []
