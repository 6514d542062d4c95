"""A subspace of a site's activations: an orthonormal basis and where it comes from."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..core.errors import SiteError, SubspaceError
from ..core.files import write_atomically
from ..core.site import Site
from ..model.lens import LensModel

FORMAT = "subspacelens.subspace/1"


@dataclass(frozen=True, eq=False)
class Subspace:
    """`basis` is float32 (dim, k) with orthonormal columns. `fit` says how it was found, and
    `data_sha256` on which pairs (empty if that is not known)."""

    basis: Tensor = field(repr=False)
    site: Site
    model_id: str
    weights_sha256: str = field(repr=False)
    dtype: str
    data_sha256: str = field(repr=False)
    fit: dict[str, Any]

    def __post_init__(self) -> None:
        check_basis(self.basis, f"subspace at {self.site}")

    @property
    def dim(self) -> int:
        """k, the number of dimensions."""
        return self.basis.shape[1]

    def to_bytes(self) -> bytes:
        """Safetensors with the basis under `basis` and the provenance as metadata."""
        metadata = {
            "format": FORMAT,
            "site": str(self.site),
            "model": self.model_id,
            "weights_sha256": self.weights_sha256,
            "dtype": self.dtype,
            "data_sha256": self.data_sha256,
            "fit": json.dumps(self.fit),
        }
        return save({"basis": self.basis.contiguous()}, metadata=metadata)

    def save(self, path: Path | str) -> None:
        """Writes `to_bytes` whole or not at all. Raises `ResultError` where it cannot."""
        write_atomically(Path(path), self.to_bytes())

    @staticmethod
    def is_ours(path: Path | str) -> bool:
        """Whether a file was written by `save`."""
        try:
            with safe_open(path, framework="pt") as file:
                return (file.metadata() or {}).get("format") == FORMAT
        except (SafetensorError, OSError):
            return False

    @classmethod
    def load(
        cls, path: Path | str, lens: LensModel | None = None, site: Site | None = None
    ) -> Subspace:
        """Reads a file written by `save`. With `lens` or `site`, refuses one made for another.

        Raises `SubspaceError` for a damaged or foreign file, and names both sides of a mismatch.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                basis = file.get_tensor("basis") if "basis" in file.keys() else None  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise SubspaceError(f"{path} cannot be read as safetensors: {error}") from None
        if basis is None or metadata.get("format") != FORMAT:
            raise SubspaceError(f"{path} is not a subspace file: no '{FORMAT}' mark in it")
        try:
            made_for = Site.parse(metadata["site"])
            found = cls(
                basis,
                made_for,
                metadata["model"],
                metadata["weights_sha256"],
                metadata["dtype"],
                metadata["data_sha256"],
                json.loads(metadata["fit"]),
            )
        except (KeyError, SiteError, json.JSONDecodeError) as error:
            raise SubspaceError(f"{path}: its metadata is damaged: {error}") from None
        except SubspaceError as error:
            raise SubspaceError(f"{path}: {error}") from None
        if site is not None and made_for != site:
            raise SubspaceError(f"{path} was made for site {made_for}, not {site}")
        if lens is not None:
            found.check(lens, str(path))
        return found

    def check(self, lens: LensModel, name: str = "subspace") -> None:
        """Raises `SubspaceError` unless the subspace belongs to this model and fits its site."""
        if self.weights_sha256 != lens.weights_sha256:
            raise SubspaceError(
                f"{name} was made for model {self.model_id} ({self.weights_sha256[:12]}), "
                f"not {lens.id} ({lens.weights_sha256[:12]})"
            )
        width = lens.map.dim(self.site)
        if self.basis.shape[0] != width:
            raise SubspaceError(
                f"{name} has {self.basis.shape[0]} rows, but {self.site} is {width} wide"
            )

    def _repr_html_(self) -> str:
        rows = {"site": self.site, "dimensions": self.dim, "model": self.model_id} | self.fit
        body = "".join(
            f"<tr><th>{escape(str(k))}</th><td>{escape(str(v))}</td></tr>" for k, v in rows.items()
        )
        return f"<table>{body}</table>"


def check_basis(basis: Tensor, what: str) -> None:
    """Raises `SubspaceError` unless `basis` is float32, finite, (dim, k) with k <= dim, and
    orthonormal to 1e-4."""
    if basis.ndim != 2 or basis.dtype != torch.float32:
        raise SubspaceError(
            f"{what}: a basis is a float32 matrix (dim, k), not {basis.dtype} {tuple(basis.shape)}"
        )
    dim, k = basis.shape
    if not 1 <= k <= dim:
        raise SubspaceError(f"{what}: {k} dimensions do not fit into {dim}")
    gram = basis.double().T @ basis.double()
    if not bool(basis.isfinite().all()) or float((gram - torch.eye(k)).abs().max()) > 1e-4:
        raise SubspaceError(f"{what}: the columns of the basis are not orthonormal")


def made_by(
    lens: LensModel, site: Site, basis: Tensor, data_sha256: str, fit: dict[str, Any]
) -> Subspace:
    """A `Subspace` of this model at this site; `basis` is orthonormalised by QR in float64 and its
    sign fixed (the largest entry of each column is positive), so that equal fits are equal files.

    Raises `SubspaceError` if the columns are linearly dependent or not finite.
    """
    if not bool(basis.isfinite().all()):
        raise SubspaceError(
            f"{site}: the fit '{fit.get('method')}' gave a basis that is not finite"
        )
    q, r = torch.linalg.qr(basis.detach().cpu().double())
    if float(r.diagonal().abs().min()) < 1e-9 * float(r.diagonal().abs().max()):
        raise SubspaceError(
            f"{site}: the fit '{fit.get('method')}' found fewer than {basis.shape[1]} independent "
            "directions; ask for a smaller --dim"
        )
    largest = q.gather(0, q.abs().argmax(dim=0, keepdim=True))
    dtype = str(lens.dtype).removeprefix("torch.")
    return Subspace(
        (q * largest.sign()).float(), site, lens.id, lens.weights_sha256, dtype, data_sha256, fit
    )
