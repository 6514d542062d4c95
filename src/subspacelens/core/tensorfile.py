"""Safetensors that say what they are, whose they are, and whether they are whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .errors import LensError, ResultError
from .files import regular, write_atomically
from .identity import Identity

_SUMMED = ("format", "made_with", "facts")


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
        metadata = {
            "format": self.format,
            "made_with": self.made_with.to_json(),
            "facts": json.dumps(dict(self.facts), sort_keys=True),
        }
        metadata["checksum"] = _checksum(metadata, tensors)
        return save(tensors, metadata=metadata)

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
                metadata = file.metadata() or {}
                _check_format(path, metadata.get("format", ""), format, what, error)
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if _checksum(metadata, tensors) != metadata["checksum"]:
                raise error(f"{path} is damaged: its checksum is not that of what it holds")
            made_with = Identity.from_json(metadata["made_with"])
            facts = json.loads(metadata["facts"])
        except OSError as wrong:
            raise error(f"{path} cannot be read: {wrong.strerror or wrong}") from None
        except SafetensorError as wrong:
            raise error(f"{path} cannot be read as safetensors: {wrong}") from None
        except (KeyError, ValueError) as wrong:
            raise error(f"{path} is damaged: its metadata lack or spoil {wrong}") from None
        return cls(format=format, made_with=made_with, tensors=tensors, facts=facts)

    @staticmethod
    def format_of(path: Path | str) -> str:
        """The mark of a file's format, empty where it has none or cannot be read."""
        try:
            with safe_open(regular(Path(path)), framework="pt") as file:
                return (file.metadata() or {}).get("format", "")
        except (SafetensorError, OSError):
            return ""


def _check_format(
    path: Path | str, mark: str, format: str, what: str, error: type[LensError]
) -> None:
    if mark == format:
        return
    if mark.rpartition("/")[0] == format.rpartition("/")[0]:
        raise error(
            f"{path} is {what} of another version of subspacelens ({mark}, not {format}): make it "
            "again"
        )
    raise error(f"{path} is not {what}: no '{format}' mark in it")


def _checksum(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in _SUMMED:
        digest.update(f"{name}={metadata.get(name)};".encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
