"""Safetensors that say what they are, whose they are, and whether they are whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .errors import LensError, ResultError
from .files import regular, replacing, write_atomically
from .identity import Identity
from .stored import Reading, StoredRows, bytes_of, chunks

_DTYPES = {
    "F64": torch.float64, "I64": torch.int64, "F32": torch.float32, "BF16": torch.bfloat16,
    "F16": torch.float16,
}  # fmt: skip
_HEAD = "subspacelens"
"""The one entry of the metadata: several would be written in an order of their own each time."""


@dataclass(frozen=True, eq=False, kw_only=True)
class TensorFile:
    """Named tensors of one `format` (`subspacelens.subspace/2`), the identity of the model that
    they were made with, and what else there is to say of them (`facts`, text by name).

    >>> TensorFile(format="subspacelens.x/1", made_with=lens.identity, tensors={"x": x}).save(path)
    >>> TensorFile.load(path, "subspacelens.x/1", "a file of x").tensors["x"]
    """

    format: str
    made_with: Identity
    tensors: Mapping[str, Tensor] = field(repr=False)
    facts: Mapping[str, str] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """As they are written: safetensors, the rest as its metadata with a checksum over all."""
        tensors = {name: x.detach().cpu().contiguous() for name, x in self.tensors.items()}
        head = _head_of(self.format, self.made_with, self.facts)
        head["checksum"] = _checksum(head, tensors)
        return save(tensors, metadata={_HEAD: json.dumps(head, sort_keys=True)})

    def save(self, path: Path | str) -> None:
        """Writes the file whole or not at all. Raises `ResultError` where it cannot."""
        write_atomically(Path(path), self.to_bytes())

    @classmethod
    def load(
        cls, path: Path | str, format: str, what: str, error: type[LensError] = ResultError
    ) -> TensorFile:
        """Reads what `save` wrote; `what` says what it should be.

        Raises `error` in one line for a file that cannot be read, is of another kind or of another
        version of its format, or whose tensors or metadata are not those that were written.
        """
        with _read_errors(path, error):
            with safe_open(regular(Path(path)), framework="pt") as file:
                head = _head(file.metadata())
                _check_format(path, head.get("format", ""), format, what, error)
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            made_with, facts = _checked(path, head, tensors, error)
        return cls(format=format, made_with=made_with, tensors=tensors, facts=facts)

    @staticmethod
    def format_of(path: Path | str) -> str:
        """The mark of a file's format, empty where it has none or cannot be read."""
        try:
            with safe_open(regular(Path(path)), framework="pt") as file:
                return str(_head(file.metadata()).get("format", ""))
        except (SafetensorError, OSError, ValueError):
            return ""


@dataclass(frozen=True, eq=False, kw_only=True)
class StoredFile:
    """A file as of `TensorFile` whose tensors stay in it, for those that are too large for memory:
    each has at least one dimension, and is read by rows."""

    made_with: Identity
    tensors: Mapping[str, StoredRows] = field(repr=False)
    facts: Mapping[str, str]

    @classmethod
    def open(cls, path: Path | str, format: str, what: str) -> StoredFile:
        """Opens what `TensorFile.save` or `writing` wrote, and reads it once for its checksum.
        Raises `ResultError` as `TensorFile.load` does."""
        with _read_errors(path, ResultError):
            place = regular(Path(path))
            with safe_open(place, framework="pt") as checked:
                head = _head(checked.metadata())
            _check_format(path, head.get("format", ""), format, what, ResultError)
            file = Reading(place)
            size = int.from_bytes(file.read(8, 0), "little")
            entries = json.loads(file.read(size, 8))
            tensors = {
                name: StoredRows(
                    file=file,
                    offset=8 + size + entry["data_offsets"][0],
                    rows=torch.arange(entry["shape"][0]),
                    inner=tuple(entry["shape"][1:]),
                    dtype=_DTYPES[entry["dtype"]],
                )
                for name, entry in entries.items()
                if name != "__metadata__"
            }
            made_with, facts = _checked(path, head, tensors, ResultError)
        return cls(made_with=made_with, tensors=tensors, facts=facts)


@contextmanager
def writing(
    path: Path | str,
    like: Mapping[str, Tensor | StoredRows],
    *,
    format: str,
    made_with: Identity,
    facts: Mapping[str, str],
) -> Iterator[dict[str, StoredRows]]:
    """A file as of `TensorFile`, with tensors of the shapes and dtypes of `like` to be written by
    rows inside the context; what is not written is zero. It is whole at `path` afterwards, after an
    error not at all. Raises `ResultError` where it cannot be written."""
    head = _head_of(format, made_with, facts) | {"checksum": "0" * 64}
    names = {dtype: name for name, dtype in _DTYPES.items()}
    entries, end = {}, 0
    for name, x in sorted(like.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])):
        offsets = [end, end := end + x.nbytes]
        entries[name] = {
            "dtype": names[x.dtype], "shape": list(x.shape), "data_offsets": offsets
        }  # fmt: skip
    with replacing(Path(path)) as file:
        start = file.write(_header(head, entries))
        file.truncate(start + end)
        file.flush()
        tensors = {
            name: StoredRows(
                file=file,
                offset=start + entries[name]["data_offsets"][0],
                rows=torch.arange(x.shape[0]),
                inner=tuple(x.shape[1:]),
                dtype=x.dtype,
            )
            for name, x in like.items()
        }
        yield tensors
        del head["checksum"]
        head["checksum"] = _checksum(head, tensors)
        file.seek(0)
        file.write(_header(head, entries))


def _header(head: Mapping[str, Any], entries: Mapping[str, Any]) -> bytes:
    """What safetensors has before its tensors."""
    text = json.dumps({"__metadata__": {_HEAD: json.dumps(head, sort_keys=True)}, **entries})
    data = text.encode()
    data += b" " * (-len(data) % 8)
    return len(data).to_bytes(8, "little") + data


def _head_of(format: str, made_with: Identity, facts: Mapping[str, str]) -> dict[str, Any]:
    return {"format": format, "made_with": made_with.to_json(), "facts": dict(facts)}


@contextmanager
def _read_errors(path: Path | str, error: type[LensError]) -> Iterator[None]:
    try:
        yield
    except OSError as wrong:
        raise error(f"{path} cannot be read: {wrong.strerror or wrong}") from None
    except SafetensorError as wrong:
        raise error(f"{path} cannot be read as safetensors: {wrong}") from None
    except (LookupError, ValueError, TypeError, AttributeError) as wrong:
        raise error(f"{path} is damaged: its metadata lack or spoil {wrong}") from None


def _checked(
    path: Path | str,
    head: dict[str, Any],
    tensors: Mapping[str, Tensor] | Mapping[str, StoredRows],
    error: type[LensError],
) -> tuple[Identity, dict[str, str]]:
    """Whose the tensors are and what else is said of them, if they are what was written."""
    if head.pop("checksum") != _checksum(head, tensors):
        raise error(f"{path} is damaged: its checksum is not that of what it holds")
    made_with, facts = Identity.from_json(head["made_with"]), head["facts"]
    if not all(isinstance(fact, str) for fact in facts.values()):
        raise ValueError("facts that are no text")
    return made_with, facts


def _head(metadata: Mapping[str, str] | None) -> dict[str, Any]:
    """What a file says of itself; the first versions said it in entries of their own. Raises
    `ValueError` where that is no JSON."""
    if metadata is None or _HEAD not in metadata:
        return dict(metadata or {})
    try:
        head = json.loads(metadata[_HEAD])
    except RecursionError:
        raise ValueError("an entry nested too deeply") from None
    if not isinstance(head, dict):
        raise ValueError("an entry that is no object")
    return head


def _check_format(
    path: Path | str, mark: Any, format: str, what: str, error: type[LensError]
) -> None:
    if mark == format:
        return
    if str(mark).rpartition("/")[0] == format.rpartition("/")[0]:
        raise error(
            f"{path} is {what} of another version of subspacelens ({mark}, not {format}): make it "
            "again"
        )
    raise error(f"{path} is not {what}: no '{format}' mark in it")


def _checksum(
    head: Mapping[str, Any], tensors: Mapping[str, Tensor] | Mapping[str, StoredRows]
) -> str:
    digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        for chunk in chunks(tensor):
            digest.update(bytes_of(chunk.contiguous()))
    return digest.hexdigest()
