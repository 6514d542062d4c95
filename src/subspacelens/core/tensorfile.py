"""Safetensors that say what they are, whose they are, and whether they are whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .errors import LensError, ResultError
from .files import regular, write_atomically
from .identity import Identity

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
        head = {
            "format": self.format,
            "made_with": self.made_with.to_json(),
            "facts": dict(self.facts),
        }
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
        try:
            with safe_open(regular(Path(path)), framework="pt") as file:
                head = _head(file.metadata())
                _check_format(path, head.get("format", ""), format, what, error)
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if head.pop("checksum") != _checksum(head, tensors):
                raise error(f"{path} is damaged: its checksum is not that of what it holds")
            made_with, facts = Identity.from_json(head["made_with"]), head["facts"]
            if not all(isinstance(fact, str) for fact in facts.values()):
                raise ValueError("facts that are no text")
        except OSError as wrong:
            raise error(f"{path} cannot be read: {wrong.strerror or wrong}") from None
        except SafetensorError as wrong:
            raise error(f"{path} cannot be read as safetensors: {wrong}") from None
        except (KeyError, ValueError, TypeError, AttributeError) as wrong:
            raise error(f"{path} is damaged: its metadata lack or spoil {wrong}") from None
        return cls(format=format, made_with=made_with, tensors=tensors, facts=facts)

    @staticmethod
    def format_of(path: Path | str) -> str:
        """The mark of a file's format, empty where it has none or cannot be read."""
        try:
            with safe_open(regular(Path(path)), framework="pt") as file:
                return str(_head(file.metadata()).get("format", ""))
        except (SafetensorError, OSError, ValueError):
            return ""


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


def _checksum(head: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
