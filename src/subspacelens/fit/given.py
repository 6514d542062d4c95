"""A subspace that somebody else found: a matrix or a vector in a file of another tool."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..core.errors import SubspaceError
from ..core.files import file_sha256
from ..core.site import Site
from ..model.lens import LensModel
from .subspace import Subspace, made_by


def given(
    lens: LensModel, site: Site, path: Path | str, *, key: str | None = None, row: int | None = None
) -> Subspace:
    """Reads a direction (d,), a basis (d, k) or its transpose (k, d) for `site`, d wide.

    `.npy`, `.npz`, `.safetensors`, and `.pt`/`.pth`/`.bin` (tensors only: nothing pickled is run).
    `key` names the array where a file holds several; `row` takes one row of it, such as a latent of
    an autoencoder's decoder (latents, d). Columns that are not orthonormal are made so, and
    `fit["orthonormalised"]` says whether they were.

    Raises `SubspaceError` for a file, key, row or shape that does not fit.
    """
    path = Path(path)
    array = _array(path, key)
    if row is not None:
        if array.ndim != 2 or not 0 <= row < len(array):
            raise SubspaceError(f"{path}: no row {row} in an array of shape {tuple(array.shape)}")
        array = array[row]
    width = lens.map.dim(site)
    basis = array.double()[:, None] if array.ndim == 1 else array.double()
    if basis.ndim == 2 and basis.shape[0] != width and basis.shape[1] == width:
        basis = basis.T
    if basis.ndim != 2 or basis.shape[0] != width or basis.shape[1] > width:
        raise SubspaceError(
            f"{path}: shape {tuple(array.shape)} is not a direction or a basis at {site}, which is "
            f"{width} wide"
        )
    if not bool(basis.isfinite().all()) or not bool(basis.any()):
        raise SubspaceError(f"{path}: the array is zero or not finite")
    gram = basis.T @ basis
    already = float((gram - torch.eye(len(gram))).abs().max()) < 1e-4
    record = dict(
        method="given", file=path.name, file_sha256=file_sha256(path), key=key, row=row,
        orthonormalised=not already,
    )  # fmt: skip
    return made_by(lens, site, basis, "", record)


def _array(path: Path, key: str | None) -> Tensor:
    try:
        if path.suffix == ".npy":
            found = {"": np.load(path, allow_pickle=False)}
        elif path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                found = dict(file)
        elif path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                names = list(file.keys())
                wanted = names if key is None else [name for name in names if name == key]
                found = {name: file.get_tensor(name) for name in wanted}
        elif path.suffix in (".pt", ".pth", ".bin"):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
            found = loaded if isinstance(loaded, dict) else {"": loaded}
        else:
            raise SubspaceError(
                f"{path}: a subspace is read from .safetensors, .npy, .npz, .pt, .pth or .bin"
            )
    except SubspaceError:
        raise
    except (OSError, ValueError, SafetensorError, RuntimeError, EOFError) as error:
        raise SubspaceError(f"{path} cannot be read: {_line(error)}") from None
    except Exception as error:  # torch.load raises pickle's own errors, of many kinds
        raise SubspaceError(f"{path} holds more than tensors: {_line(error)}") from None
    arrays = {n: a for n, a in found.items() if isinstance(a, (np.ndarray, Tensor))}
    if key is None and len(arrays) == 1:
        (array,) = arrays.values()
    elif key in arrays:
        array = arrays[key]
    else:
        names = ", ".join(sorted(arrays)) or "none"
        what = "name one with --key" if key is None else f"no array '{key}'"
        raise SubspaceError(f"{path}: {what}; it holds {names}")
    try:
        found = torch.as_tensor(array)
    except TypeError as error:
        raise SubspaceError(f"{path}: not an array of numbers: {_line(error)}") from None
    if found.is_complex() or found.dtype == torch.bool:
        raise SubspaceError(f"{path}: an array of {found.dtype}: give real numbers")
    return found


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
