"""Parts of a long study, each kept in a file of its own, so that one that was stopped goes on."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from ..core.errors import ResultError
from ..core.files import read_whole, write_atomically

T = TypeVar("T")


@dataclass
class Kept:
    """Parts in `folder`, under the first digits of `asked`, the hash of all that they depend on;
    where `folder` is None nothing is kept. `earlier`: seconds that the parts that were read had
    taken when they were made.

    >>> kept = Kept(Path("runs/facts/parts"), asked_sha256("facts", layers=[0, 3]))
    >>> layer = kept.part("L0", LayerRecord, lambda: measure(...))
    """

    folder: Path | None = None
    asked: str = ""
    earlier: float = 0.0

    def part(self, name: str, kind: Any, make: Callable[[], T]) -> T:
        """The part of that name, of a type that pydantic can write: read, or made and written."""
        if self.folder is None:
            return make()
        path, adapter = self._own(self.folder) / f"{name}.json", TypeAdapter(kind)
        try:
            held = json.loads(read_whole(path))
            if held["asked"] == self.asked:
                part = adapter.validate_python(held["part"])
                self.earlier += held["seconds"]
                return part
        except (ResultError, ValidationError, ValueError, KeyError, TypeError):
            pass
        started = time.perf_counter()
        part = make()
        row = {
            "asked": self.asked,
            "seconds": time.perf_counter() - started,
            "part": adapter.dump_python(part, mode="json", by_alias=True),
        }
        write_atomically(path, json.dumps(row).encode())
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
