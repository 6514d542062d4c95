"""Readers by what is in a file: each says None where it is not its format."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from ..core.errors import SubspaceError
from .containers import PICKLE, container_of, names_of, reading, shapes_of, tensors_of
from .foreign import Foreign

LARGEST_CONFIG = 2**24


@dataclass(frozen=True)
class Source:
    """A file or a folder that is to be told apart; what is read of it is read once."""

    path: Path

    @cached_property
    def container(self) -> str:
        """`folder`, or what `container_of` says."""
        with reading(self.path):
            return "folder" if self.path.is_dir() else container_of(self.path)

    def config(self, name: str) -> dict[str, Any]:
        """The JSON object in a file of the folder; empty where there is none. Raises
        `SubspaceError` where it is no JSON."""
        path = self.path / name
        if self.container != "folder" or not path.is_file():
            return {}
        with reading(path):
            if path.stat().st_size > LARGEST_CONFIG:
                raise ValueError(f"larger than {LARGEST_CONFIG >> 20} MiB")
            found = json.loads(path.read_text("utf-8"))
        return found if isinstance(found, dict) else {}

    @cached_property
    def names(self) -> frozenset[str]:
        """What a file's arrays are called; none is read for it but a torch file's mapping."""
        if self.container == "npz":
            return frozenset(names_of(self.path))
        if self.container == "safetensors":
            return frozenset(shapes_of(self.path))
        return frozenset(self.tensors) if self.container == "torch" else frozenset()

    @cached_property
    def tensors(self) -> dict[str, Any]:
        """What a torch, .npz or safetensors file holds by name, empty for anything else."""
        known = self.container in ("torch", "npz", "safetensors")
        return tensors_of(self.path) if known else {}

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of a file's tensors by name; of safetensors none is read for them."""
        if self.container == "safetensors":
            return shapes_of(self.path)
        return {k: tuple(x.shape) for k, x in self.tensors.items() if isinstance(x, Tensor)}


Reader = Callable[[Source], Foreign | None]
READERS: dict[str, Reader] = {}
"""Every reader by the name of the format."""


def reader(name: str) -> Callable[[Reader], Reader]:
    """Registers a function of `Source` that gives a `Foreign`, or None for another format."""

    def register(function: Reader) -> Reader:
        READERS[name] = function
        return function

    return register


def recognised(path: Path | str) -> Foreign | None:
    """What a file or folder of another tool holds, None where no reader knows it (a plain array).

    Raises `SubspaceError` for one that several readers know, one that a reader knows and finds
    damaged, and a pickle.
    """
    source = Source(Path(path))
    if source.container == "pickle":
        raise SubspaceError(f"{path} is {PICKLE}")
    found = {name: value for name, read in READERS.items() if (value := read(source)) is not None}
    if len(found) > 1:
        raise SubspaceError(
            f"{path} can be read as {' and as '.join(found)}, and nothing in it says which: save "
            "the one that you mean as a plain array"
        )
    return next(iter(found.values()), None)
