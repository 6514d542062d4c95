"""Pairs that are in memory: dicts of the form that a line of a file of pairs has."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from typing_extensions import TypeIs

from ..core.errors import TaskError

Dicts = Iterable[Mapping[str, Any]]
Source = Path | str | Dicts
"""A JSON Lines file of pairs, or dicts of the same form."""


def in_memory(source: Source) -> TypeIs[Dicts]:
    """Whether pairs are no file's."""
    return not isinstance(source, (str, Path))


def name_of(source: Source) -> str:
    """A name for the pairs of a source: the file's stem, or `pairs`."""
    return "pairs" if in_memory(source) else Path(source).stem


def dict_lines(pairs: Dicts, name: str) -> Iterator[tuple[str, str]]:
    """Each dict as the line of JSON that it would be in a file, and where it is from, `name[3]`.
    Raises `TaskError` for what is no dict, or holds what JSON cannot."""
    if isinstance(pairs, Mapping):
        raise TaskError(f"{name}: one dict is no list of pairs: write [pair]")
    for number, pair in enumerate(pairs):
        where = f"{name}[{number}]"
        if not isinstance(pair, Mapping):
            raise TaskError(
                f"{where}: {reprlib.repr(pair)} is no dict: give base, source, answer and target"
            )
        try:
            yield where, json.dumps(dict(pair), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise TaskError(f"{where}: JSON cannot hold it: {error}") from None
