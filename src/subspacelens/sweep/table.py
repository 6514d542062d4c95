"""The records of a store as a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from ..core.errors import ResultError
from ..core.files import write_atomically
from .store import Store

INDEX = "index.parquet"
LONGEST = 2000
"""Characters of a condition: polars' parser descends into long ones until its stack is full."""
ORDER = ("model", "task", "label", "stream", "layer", "head", "fit", "dim", "seed", "pair", "key")


def results(directory: Path | str, where: str | None = None) -> pl.DataFrame:
    """One row a cell of a sweep, failed ones too: what was asked, what came out.

    `where` is an SQL condition on the columns, such as `subspace_fldd > 0.3 and layer >= 10`.
    Raises `ResultError` for a folder without a sweep and for a condition that cannot be read.

    >>> strong = sl.results("runs/sweep", "subspace_fldd > 0.3 and layer >= 10")
    >>> strong.select("layer", "label", "verdict", "subspace_fldd")
    """
    if where is not None and len(where) > LONGEST:
        raise ResultError(
            f"--where: a condition of {len(where):,} characters, {LONGEST:,} at most: filter the "
            "table that --csv or --parquet writes"
        )
    table = read_index(Store(directory, create=False))
    if where is None:
        return table
    try:
        return table.filter(pl.sql_expr(where))
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, TypeError) as error:
        raise ResultError(f"--where '{where}': {str(error).splitlines()[0]}") from None


def read_index(store: Store) -> pl.DataFrame:
    """The index, made anew if it is damaged or not that of the records."""
    path = store.directory / INDEX
    try:
        table = pl.read_parquet(path)
        known = dict(table.select("key", "status").iter_rows())
        there = dict.fromkeys(store.failed_keys(), "failed") | dict.fromkeys(
            store.done_keys(), "done"
        )
        if known == there:
            return table
    except (OSError, pl.exceptions.PolarsError):
        pass
    return make_index(store)


def make_index(store: Store) -> pl.DataFrame:
    """The table of all whole records, sorted by what was asked. Raises `ResultError` for
    numbers that no table holds."""
    rows = [_row(record) for key in store.done_keys() if (record := store.load(key)) is not None]
    done = {row["key"] for row in rows}
    rows += [
        _row(record)
        for key in store.failed_keys()
        if key not in done and (record := store.failure(key)) is not None
    ]
    names = {name: None for row in rows for name in row}
    try:
        columns = [{name: row.get(name) for name in names} for row in rows]
        table = pl.DataFrame(columns, infer_schema_length=None)
        return table.sort(ORDER) if rows else table
    except (pl.exceptions.PolarsError, TypeError, OverflowError) as error:
        reason = str(error).splitlines()[0]
        raise ResultError(
            f"{store.directory}: its records do not fit into one table: {reason}"
        ) from None


def write_index(store: Store) -> pl.DataFrame:
    """Makes the index and puts it into the store. Raises `ResultError` where it cannot."""
    table = make_index(store)
    write_atomically(store.directory / INDEX, to_parquet(table))
    return table


def to_parquet(table: pl.DataFrame) -> bytes:
    from io import BytesIO

    buffer = BytesIO()
    table.write_parquet(buffer)
    return buffer.getvalue()


def _row(record: dict[str, Any]) -> dict[str, Any]:
    row = {"status": record["status"], "error": record.get("error")}
    row |= record["cell"] | record.get("summary", {})
    row |= {
        "seconds": record.get("run", {}).get("seconds"),
        "content_sha256": record.get("content_sha256"),
        "key": record["key"],
    }
    return row
