"""Parts of long work, each kept in a file of its own, so that one that was stopped goes on."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from .errors import ResultError
from .files import read_whole, write_atomically

T = TypeVar("T")


def kept(path: Path, origin: object) -> dict[str, Any] | None:
    """The row in a file, if it has this `origin`: all that it depends on, of JSON types. None where
    it has another, or where there is no row."""
    try:
        row = json.loads(read_whole(path))
    except (ResultError, ValueError):
        return None
    return row if isinstance(row, dict) and row.get("origin") == origin else None


def keep(path: Path, row: Mapping[str, Any]) -> None:
    """Writes a row with its `origin`, whole or not at all."""
    write_atomically(path, json.dumps(row).encode())


@dataclass
class Kept:
    """Parts in `folder`, under the first digits of `asked`, the hash of all that they depend on;
    where `folder` is None nothing is kept. `earlier`: seconds that the parts that were read had
    taken when they were made.

    >>> parts = Kept(Path("runs/facts/parts"), asked_sha256("facts", layers=[0, 3]))
    >>> layer = parts.part("L0", LayerRecord, lambda: measure(...))
    """

    folder: Path | None = None
    asked: str = ""
    earlier: float = 0.0

    def part(self, name: str, kind: Any, make: Callable[[], T]) -> T:
        """The part of that name, of a type that pydantic can write: read, or made and written."""
        if self.folder is None:
            return make()
        path, adapter = self._own(self.folder) / f"{name}.json", TypeAdapter(kind)
        held = kept(path, self.asked)
        if held is not None:
            try:
                part, seconds = adapter.validate_python(held["part"]), float(held["seconds"])
            except (ValidationError, KeyError, TypeError, ValueError):
                pass
            else:
                self.earlier += seconds
                return part
        started = time.perf_counter()
        part = make()
        written = adapter.dump_python(part, mode="json", by_alias=True)
        seconds = time.perf_counter() - started
        keep(path, {"origin": self.asked, "seconds": seconds, "part": written})
        return part

    def clear(self) -> None:
        """Removes these parts, once all of them are in a record, and their folder if there are no
        others."""
        if self.folder is not None:
            shutil.rmtree(self._own(self.folder), ignore_errors=True)
            with suppress(OSError):
                self.folder.rmdir()

    def _own(self, folder: Path) -> Path:
        return folder / self.asked[:16]
