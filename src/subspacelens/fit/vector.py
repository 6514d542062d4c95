"""A steering vector in a file: as long as it is, and pointing where it does."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from ..core.errors import SubspaceError
from ..core.files import file_sha256
from ..core.site import Site
from ..interop import recognised
from ..interop.hub import located
from ..model.lens import LensModel
from .foreign import foreign_rows
from .given import chosen_array
from .subspace import Subspace


@dataclass(frozen=True)
class Vector:
    """`values`, float64 (dim,), and where they were `found`."""

    values: Tensor = field(repr=False)
    found: dict[str, str | int | float | bool | None]


def read_vector(
    lens: LensModel, site: Site, path: Path | str, *, key: str | None = None, row: int | None = None
) -> Vector:
    """Reads one vector (d,), (d, 1) or (1, d) for `site`, d wide, from the files that `given`
    reads; `key` and `row` as there. It is not normalised. Of a file that `Subspace.save` wrote it
    is the one column, of length 1 and without a sign of its own.

    Raises `SubspaceError` as `given` does, and for a file with several vectors.

    >>> read_vector(lens, sl.Site.parse("L9.resid_post@END"), "steer.npy").values.norm()
    """
    path = located(Path(path))
    found: dict[str, str | int | float | bool | None]
    if Subspace.is_ours(path):
        values = Subspace.load(path, lens, site).basis
        found = {"kind": "a subspace: length 1, and its sign is arbitrary"}
    elif path.exists() and (other := recognised(path)) is not None:
        rows = () if row is None else (row,)
        values, found = foreign_rows(lens, other, site, rows, key=key)
    else:
        array = chosen_array(path, key)
        array.check(f"{path}", site, lens.map.dim(site), row)
        values, found = array.read(row), {"key": key, "row": row}
    values = values.double()
    if values.ndim == 2 and 1 not in values.shape:
        raise SubspaceError(
            f"{path}: shape {tuple(values.shape)} holds several vectors: one is added, so name a "
            "row with --row"
        )
    values = values.flatten()
    if not bool(values.isfinite().all()) or not bool(values.any()):
        raise SubspaceError(f"{path}: the array is zero or not finite")
    if "file" not in found:
        found = {"file": path.name, "file_sha256": file_sha256(path)} | found
    return Vector(values, found)
