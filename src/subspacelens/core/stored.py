"""Rows of tensors in a file, read and written when they are asked for."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from .errors import ResultError

_HERE = torch.device("cpu")
_AT_ONCE = 2**24
"""Bytes of one read."""


class OpenFile(Protocol):
    """What has a number by which its bytes are read and written, and a name."""

    @property
    def name(self) -> str: ...

    def fileno(self) -> int: ...


class Reading:
    """A file that is open to be read for as long as anyone holds it. Raises `OSError`."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._number = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._number)

    def fileno(self) -> int:
        return self._number

    def read(self, count: int, start: int) -> bytes:
        """At most `count` bytes from the byte `start` on."""
        return os.pread(self._number, count, start)


@dataclass(frozen=True, eq=False, kw_only=True)
class StoredRows:
    """A tensor (n, *inner) in a file: row i is row `rows[i]` of what lies there from `offset` on.

    It knows what a `Tensor` of `shape`, `dtype` and `device` would, and gives tensors for slices of
    rows. Raises `ResultError` where the file ends too early.
    """

    file: OpenFile = field(repr=False)
    offset: int
    rows: Tensor = field(repr=False)
    inner: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device = _HERE

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.rows), *self.inner

    @property
    def nbytes(self) -> int:
        return len(self.rows) * self._row

    @property
    def _row(self) -> int:
        """Bytes of one row."""
        return torch.Size(self.inner).numel() * self.dtype.itemsize

    def take(self, rows: Tensor) -> StoredRows:
        """Those of the rows at `rows` (m,), still in the file."""
        return replace(self, rows=self.rows[rows])

    def to(self, device: torch.device) -> StoredRows:
        """The same for a reader that wants it on another device."""
        return replace(self, device=device)

    def __getitem__(self, rows: slice) -> Tensor:
        wanted = self.rows[rows].tolist()
        found = torch.empty(len(wanted), *self.inner, dtype=self.dtype)
        data = bytes_of(found)
        for place, row, count in _runs(wanted):
            self._read(data[place * self._row : (place + count) * self._row], row * self._row)
        return found.to(self.device)

    def __setitem__(self, rows: slice, value: Tensor) -> None:
        """Writes rows that lie together."""
        value = value.detach().to("cpu", self.dtype).contiguous()
        place = self.offset + int(self.rows[rows][0]) * self._row
        data = bytes_of(value)
        while data:
            done = os.pwrite(self.file.fileno(), data, place)
            data, place = data[done:], place + done

    def _read(self, data: memoryview, place: int) -> None:
        while data:
            found = os.pread(self.file.fileno(), min(len(data), _AT_ONCE), self.offset + place)
            if not found:
                raise ResultError(f"{self.file.name} ends too early: it was changed while in use")
            data[: len(found)] = found
            data, place = data[len(found) :], place + len(found)


def _runs(rows: list[int]) -> Iterator[tuple[int, int, int]]:
    """Places, first rows and lengths of what lies together."""
    start = 0
    for end in range(1, len(rows) + 1):
        if end == len(rows) or rows[end] != rows[end - 1] + 1:
            yield start, rows[start], end - start
            start = end


def bytes_of(x: Tensor) -> memoryview:
    """What a contiguous tensor in main memory consists of, not copied."""
    return x.view(-1).view(torch.uint8).numpy().data


def chunks(held: Tensor | StoredRows) -> Iterator[Tensor]:
    """All rows in order: of a file few at a time."""
    if isinstance(held, Tensor):
        yield held
        return
    step = max(1, _AT_ONCE * held.shape[0] // max(1, held.nbytes))
    for start in range(0, held.shape[0], step):
        yield held[start : start + step]


def in_memory(held: Tensor | StoredRows) -> Tensor:
    """The whole tensor."""
    return held if isinstance(held, Tensor) else held[:]


def taken(held: Tensor | StoredRows, rows: Tensor) -> Tensor | StoredRows:
    """Those of the rows at `rows` (m,): a copy, or still in the file."""
    return held[rows.to(held.device)] if isinstance(held, Tensor) else held.take(rows)
