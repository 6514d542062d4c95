"""Pairs from tables and from the layouts of published benchmarks, as lines of a file of pairs.

A layout is a function from all records and the user's `Choices` to one line a record, or, where a
record makes no pair, the reason as text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.errors import TaskError
from .causalgym import causalgym
from .choices import Choices
from .mib import COUNTERFACTUAL, mib
from .ravel import ravel
from .records import read_records
from .table import table

Layout = Callable[[Sequence[Mapping[str, Any]], Choices], Iterable[dict[str, Any] | str]]

LAYOUTS: dict[str, Layout] = {"table": table, "mib": mib, "ravel": ravel, "causalgym": causalgym}

__all__ = ["LAYOUTS", "Choices", "Conversion", "convert"]


@dataclass(frozen=True)
class Conversion:
    """The `lines` of a file of pairs, and how many records make none, by reason."""

    layout: str
    lines: tuple[dict[str, Any], ...]
    left_out: Mapping[str, int]


def convert(
    path: Path, layout: str | None = None, choices: Choices | None = None, limit: int | None = None
) -> Conversion:
    """The pairs of a .csv, .tsv, .json, .jsonl or .parquet file, at most `limit` of them.

    `layout` is one of `LAYOUTS`, by default told by the names of the fields. Raises `TaskError` for
    a file that cannot be read, fields that the layout needs and that are not there, and a file of
    which no record makes a pair.

    >>> convert(Path("pairs.csv")).lines
    """
    records = read_records(path)
    layout = layout or _told(records[0])
    if layout not in LAYOUTS:
        raise TaskError(f"unknown layout '{layout}': one of {', '.join(LAYOUTS)}")
    lines: list[dict[str, Any]] = []
    left_out: Counter[str] = Counter()
    try:
        for line in LAYOUTS[layout](records, choices or Choices()):
            if isinstance(line, str):
                left_out[line] += 1
            elif limit is None or len(lines) < limit:
                lines.append(line)
    except TaskError as error:
        raise TaskError(f"{path}: {error}") from None
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise TaskError(
            f"{path}: a record is not of the layout '{layout}' ({type(error).__name__}: {error})"
        ) from None
    if not lines:
        why = "; ".join(f"{count} because {reason}" for reason, count in left_out.items())
        raise TaskError(f"{path}: no record makes a pair: {why}")
    return Conversion(layout, tuple(lines), dict(left_out))


def _told(record: Mapping[str, Any]) -> str:
    fields = set(record)
    if {"base", "src", "base_label", "src_label"} <= fields:
        return "causalgym"
    if {"input", "source_input", "inv_label"} <= fields:
        return "ravel"
    if "prompt" in fields and any(name.endswith(COUNTERFACTUAL) for name in fields):
        return "mib"
    return "table"
