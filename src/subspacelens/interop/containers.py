"""The arrays in a file, found by its first bytes and never by its name; nothing pickled is run."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from ..core.errors import SubspaceError
from ..core.files import regular

PICKLE = (
    "a pickle, which runs code when it is loaded, so it is not: where you trust it, save its "
    "tensors with torch.save or numpy.save"
)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever goes wrong inside is a `SubspaceError` of one line that names the file."""
    try:
        yield
    except SubspaceError:
        raise
    except OSError as error:
        raise SubspaceError(f"{path} cannot be read: {error.strerror or _line(error)}") from None
    except pickle.UnpicklingError:
        raise SubspaceError(f"{path} holds more than tensors: {PICKLE}") from None
    except Exception as error:  # torch.load raises pickle's own errors, of many kinds
        raise SubspaceError(f"{path} cannot be read: {_line(error)}") from None


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def container_of(path: Path) -> str:
    """`torch`, `safetensors`, `npy`, `npz`, `gguf`, `pickle`, `json` or `` for none of these."""
    with regular(path).open("rb") as file:
        start = file.read(16)
    if start.startswith(b"GGUF"):
        return "gguf"
    if start.startswith(b"\x93NUMPY"):
        return "npy"
    if start.startswith(b"PK\x03\x04") and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if any(name.endswith("data.pkl") for name in names):
            return "torch"
        return "npz" if all(name.endswith(".npy") for name in names) else ""
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size - 8:
        return "safetensors"
    if start.lstrip()[:1] == b"{":
        return "json"
    # Before 2019 torch.save wrote a pickled magic number first.
    if start.startswith(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P"):
        return "torch"
    return "pickle" if start[:1] == b"\x80" else ""


def loaded(path: Path) -> Any:
    """What `torch.save` wrote, if it is tensors and plain containers of them.

    Raises `SubspaceError` for anything else; nothing is run.
    """
    with reading(path), warnings.catch_warnings(action="ignore"):
        modern = zipfile.is_zipfile(path)
        return torch.load(regular(path), map_location="cpu", weights_only=True, mmap=modern)


def tensors_of(path: Path) -> dict[str, Any]:
    """The tensors of a file by name: a torch file's also where they are a list or one alone (under
    the empty name). What a torch file holds beside tensors stays as it is.

    Raises `SubspaceError` for a file that holds no tensors, and for a pickle.
    """
    with reading(path):
        kind = container_of(path)
        if kind == "torch":
            found = loaded(path)
            return _flat(found)
        if kind == "safetensors":
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if kind == "npy":
            return {"": _tensor(np.load(path, mmap_mode="r", allow_pickle=False))}
        if kind == "npz":
            with np.load(path, allow_pickle=False) as archive:
                return {name: _tensor(archive[name]) for name in archive.files}
        if kind == "pickle":
            raise SubspaceError(f"{path} is {PICKLE}")
        raise SubspaceError(f"{path} is no file of tensors that is known here")


def _flat(found: Any) -> dict[str, Any]:
    if isinstance(found, Mapping):
        return {str(name): value for name, value in found.items()}
    if isinstance(found, (list, tuple)):
        return {str(number): value for number, value in enumerate(found)}
    return {"": found}


def _tensor(array: np.ndarray) -> Tensor:
    if array.dtype.kind not in "fiu":
        raise ValueError(f"an array of {array.dtype}: give real numbers")
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))


def shapes_of(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of a safetensors file's tensors by name, none of them read."""
    with reading(path), safe_open(regular(path), framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def names_of(path: Path) -> list[str]:
    """What the arrays of an .npz are called, none of them read."""
    with reading(path), zipfile.ZipFile(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


def stored(path: Path, name: str, rows: slice | int | None = None, columns: int | None = None):
    """One tensor of a safetensors file, or a row or a column of it, read alone."""
    with reading(path), safe_open(path, framework="pt") as file:
        if rows is None and columns is None:
            return file.get_tensor(name)
        part = file.get_slice(name)
        return part[:, columns] if rows is None else part[rows]
