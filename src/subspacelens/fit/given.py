"""A subspace that somebody else made: a matrix or a vector in a file of another tool."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.lib import format as npy
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..core.errors import SubspaceError
from ..core.files import file_sha256, regular
from ..core.site import Site
from ..interop import recognised
from ..interop.names import site_named
from ..model.lens import LensModel
from .foreign import foreign_rows, from_foreign
from .subspace import Subspace, check_shape, made_by, not_numbers, spanned

SUFFIXES = (".safetensors", ".npy", ".npz", ".pt", ".pth", ".bin")


def given(
    lens: LensModel,
    site: Site | str,
    path: Path | str,
    *,
    key: str | None = None,
    row: int | None = None,
) -> Subspace:
    """Reads a direction (d,), a basis (d, k) or its transpose (k, d) for `site`, d wide.

    `.npy`, `.npz`, `.safetensors`, and `.pt`/`.pth`/`.bin` (tensors only: nothing pickled is run).
    `key` names the array where a file holds several; `row` takes one row of it, such as a latent of
    an autoencoder's decoder (latents, d). Columns that are not orthonormal are made so, and
    `fit["orthonormalised"]` says whether they were. A file that `Subspace.save` wrote is read as
    what it is: it must be of this model and this site. So is what another tool saved
    (`interop.recognised`): its numbers are read as what that tool means by them.

    Raises `SubspaceError` for a file, key, row or shape that does not fit; for numbers that are
    complex, boolean, sparse, quantised or not finite; and for columns that are linearly dependent
    as far as the precision of the file can tell. Shapes are checked before an array is read.

    >>> latent = given(lens, "L9.resid_post@END", "decoder.safetensors", key="W_dec", row=7)
    >>> latent.dim, latent.fit["orthonormalised"]
    """
    path, site = Path(path), site_named(site, lens) if isinstance(site, str) else site
    if Subspace.is_ours(path):
        if key not in (None, "basis") or row is not None:
            raise SubspaceError(f"{path} is a subspace of this library: it has no keys and rows")
        return Subspace.load(path, lens, site)
    found = recognised(path) if path.exists() else None
    if found is not None:
        rows = () if row is None else (row,)
        return from_foreign(lens, found, site, key=key, rows=rows)
    width = lens.map.dim(site)
    array = chosen_array(path, key)
    array.check(f"{path}", site, width, row)
    columns, already = spanned(array.read(row), width, f"{path}")
    record = dict(
        method="given", operation="unsaid", file=path.name, file_sha256=file_sha256(path),
        key=key, row=row, orthonormalised=not already,
    )  # fmt: skip
    return made_by(lens, site, columns, "", record)


def given_rows(
    lens: LensModel,
    site: Site | str,
    path: Path | str,
    rows: Sequence[int],
    *,
    key: str | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    """Rows (m, d) of an array in a file, such as the latents of an autoencoder's decoder, as they
    are, and where they are from. `key` and errors: see `given`.

    >>> latents, origin = given_rows(lens, "L9.resid_post@END", "decoder.npy", range(64))
    """
    path, site = Path(path), site_named(site, lens) if isinstance(site, str) else site
    found = recognised(path) if path.exists() else None
    if found is not None:
        return foreign_rows(lens, found, site, rows, key=key)
    array = chosen_array(path, key)
    for row in rows:
        array.check(f"{path}", site, lens.map.dim(site), row)
    origin = dict(file=path.name, file_sha256=file_sha256(path), key=key)
    return torch.stack([array.read(row).double() for row in rows]), origin


@dataclass(frozen=True)
class _Array:
    """An array in a file: what its header says, and how all of it or one row is read."""

    shape: tuple[int, ...]
    kind: str
    read: Callable[[int | None], Tensor]

    def check(self, name: str, site: Site, width: int, row: int | None) -> None:
        """Raises `SubspaceError` unless this, or a row of it, can be a basis at the site."""
        if self.kind:
            raise SubspaceError(f"{name}: an array of {self.kind}: give real numbers, dense")
        shape = self.shape
        if row is not None:
            if len(shape) != 2 or not 0 <= row < shape[0]:
                raise SubspaceError(f"{name}: no row {row} in an array of shape {shape}")
            shape = shape[1:]
        check_shape(shape, site, width, name)


def chosen_array(path: Path, key: str | None) -> _Array:
    """The array of a file that `key` names, or the only one. Raises `SubspaceError`."""
    if path.suffix not in SUFFIXES:
        raise SubspaceError(f"{path}: a subspace is read from {', '.join(SUFFIXES)}")
    try:
        return _picked(path, _arrays(regular(path)), key)
    except SubspaceError:
        raise
    except OSError as error:
        reason = error.strerror or _line(error)
        raise SubspaceError(f"{path} cannot be read: {reason}") from None
    except (ValueError, SafetensorError, RuntimeError, EOFError, zipfile.BadZipFile) as error:
        raise SubspaceError(f"{path} cannot be read: {_line(error)}") from None
    except Exception as error:  # torch.load raises pickle's own errors, of many kinds
        raise SubspaceError(f"{path} holds more than tensors: {_line(error)}") from None


def _picked(path: Path, arrays: Mapping[str, _Array], key: str | None) -> _Array:
    if key is None and len(arrays) == 1:
        return next(iter(arrays.values()))
    if key is not None and key in arrays:
        return arrays[key]
    what = "name one with --key" if key is None else f"no array '{key}'"
    raise SubspaceError(f"{path}: {what}; it holds {', '.join(sorted(arrays)) or 'none'}")


def _arrays(path: Path) -> dict[str, _Array]:
    """The arrays of a file by name, none of them read yet."""
    if path.suffix == ".npy":
        with path.open("rb") as file:
            return {"": _of_npy(file, lambda: np.load(path, mmap_mode="r", allow_pickle=False))}
    if path.suffix == ".npz":
        return _of_npz(path)
    if path.suffix == ".safetensors":
        return _of_safetensors(path)
    with warnings.catch_warnings(action="ignore"):  # of torch about its own old forms
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=_mappable(path))
    entries = loaded if isinstance(loaded, Mapping) else {"": loaded}
    return {str(name): _of_tensor(x) for name, x in entries.items() if isinstance(x, Tensor)}


def _of_npy(file: IO[bytes], load: Callable[[], Any]) -> _Array:
    version = npy.read_magic(file)
    headers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    if version not in headers:
        raise ValueError(f"an array of numpy's format {version}")
    shape, _, dtype = headers[version](file)
    if dtype.kind == "O":
        raise ValueError("an array of Python objects, which would have to be unpickled")

    def read(row: int | None) -> Tensor:
        array = load() if row is None else load()[row]
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))

    return _Array(shape, "" if dtype.kind in "fiu" else str(dtype), read)


def _of_npz(path: Path) -> dict[str, _Array]:
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            name = member.removesuffix(".npy")

            @cache
            def load(name: str = name) -> np.ndarray:
                with np.load(path, allow_pickle=False) as file:
                    return file[name]

            with archive.open(member) as file:
                arrays[name] = _of_npy(file, load)
    return arrays


def _of_safetensors(path: Path) -> dict[str, _Array]:
    arrays = {}
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            part = file.get_slice(name)
            kind = part.get_dtype()

            def read(row: int | None, name: str = name) -> Tensor:
                with safe_open(path, framework="pt") as again:
                    return again.get_tensor(name) if row is None else again.get_slice(name)[row]

            arrays[name] = _Array(
                tuple(part.get_shape()),
                "" if kind.startswith(("F", "BF", "I", "U")) else kind,
                read,
            )
    return arrays


def _of_tensor(tensor: Tensor) -> _Array:
    shape = () if tensor.is_nested else tuple(tensor.shape)

    def read(row: int | None) -> Tensor:
        return (tensor if row is None else tensor[row]).detach().clone()

    return _Array(shape, not_numbers(tensor), read)


def _mappable(path: Path) -> bool:
    """Whether the file is of PyTorch's present format, with all of it as large as it says."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        packed = [part for part in archive.infolist() if part.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise ValueError("it is compressed, which torch.save does not do")
    return True


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
