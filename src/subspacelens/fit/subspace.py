"""A subspace of a site's activations: an orthonormal basis and where it comes from."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.errors import SiteError, SubspaceError
from ..core.geometry import independent, unit
from ..core.identity import MODEL, Identity
from ..core.site import Site
from ..core.tensorfile import TensorFile
from ..model.lens import LensModel

FORMAT = "subspacelens.subspace/2"


@dataclass(frozen=True, eq=False, kw_only=True)
class Subspace:
    """An orthonormal `basis`, float32 (dim, k), at a `site` of the model `made_with`.

    `data_sha256` is the hash of the pairs that it was fitted on, empty if that is not known; `fit`
    names the method and every setting. Raises `SubspaceError` for a basis that is none.

    >>> subspace = sl.das(lens, captures.train, "L18.mlp_act@S2")
    >>> subspace.save("s2.safetensors")
    >>> sl.Subspace.load("s2.safetensors", lens).dim
    1
    """

    basis: Tensor = field(repr=False)
    site: Site
    made_with: Identity
    data_sha256: str = field(repr=False)
    fit: dict[str, Any]

    def __post_init__(self) -> None:
        check_basis(self.basis, f"subspace at {self.site}")

    @classmethod
    def of(
        cls,
        lens: LensModel,
        site: Site | str,
        directions: Tensor | np.ndarray,
        *,
        note: str = "",
    ) -> Subspace:
        """A subspace that is in memory: a direction (dim,), a basis (dim, k) or directions (k, dim)
        at a site that is `dim` wide, of real numbers of any kind.

        The columns are made orthonormal; `fit["orthonormalised"]` says whether they had to be, and
        `fit["sha256"]` is the hash of what was given, as float64. `note` is kept beside them, such
        as where the tensor comes from.

        Raises `SubspaceError` for numbers that are not real, dense and finite, for another shape
        and a square one, in which rows cannot be told from columns, and for directions that are
        linearly dependent as far as their kind of number can tell.

        >>> latent = sl.Subspace.of(lens, "L18.mlp_act@S2", decoder[7], note="latent 7")
        >>> sl.patch(lens, task, latent.site, latent).fldd.value
        """
        site = Site.of(site)
        width, name = lens.map.dim(site), f"directions for {site}"
        array = torch.as_tensor(directions).detach()
        problem = not_numbers(array)
        if problem:
            raise SubspaceError(f"{name}: an array of {problem}: give real numbers, dense")
        shape = tuple(array.shape)
        check_shape(shape, site, width, name)
        if len(shape) == 2 and shape[0] == shape[1] > 1:
            raise SubspaceError(
                f"{name}: a square array {shape} may hold its directions as rows or as columns; "
                "all of them are the whole component, which a patch without a subspace replaces"
            )
        columns, already = spanned(array.cpu(), width, name)
        digest = hashlib.sha256(array.cpu().double().contiguous().numpy().tobytes()).hexdigest()
        record = dict(method="given", sha256=digest, orthonormalised=not already)
        return made_by(lens, site, columns, "", record | ({"note": note} if note else {}))

    @property
    def dim(self) -> int:
        """k, the number of dimensions."""
        return self.basis.shape[1]

    @property
    def model_id(self) -> str:
        return self.made_with.id

    @property
    def weights_sha256(self) -> str:
        return self.made_with.weights

    def to_bytes(self) -> bytes:
        """What `save` writes: safetensors with the basis under `basis`, the rest as metadata."""
        return self._file().to_bytes()

    def save(self, path: Path | str) -> None:
        """Writes the subspace whole or not at all. Raises `ResultError` where it cannot."""
        self._file().save(path)

    def _file(self) -> TensorFile:
        facts = {
            "site": str(self.site),
            "data_sha256": self.data_sha256,
            "fit": json.dumps(self.fit),
        }
        return TensorFile(
            format=FORMAT, made_with=self.made_with, tensors={"basis": self.basis}, facts=facts
        )

    @staticmethod
    def is_ours(path: Path | str) -> bool:
        """Whether a file was written by `save`, of this version of the format or another."""
        return TensorFile.format_of(path).startswith(FORMAT.rpartition("/")[0])

    @classmethod
    def load(
        cls,
        path: Path | str,
        lens: LensModel | None = None,
        site: Site | str | None = None,
    ) -> Subspace:
        """Reads a file written by `save`; with `lens` or `site`, refuses one made for another.

        Raises `SubspaceError` for a file that is damaged or no subspace, or for a mismatch, naming
        both sides.
        """
        file = TensorFile.load(path, FORMAT, "a subspace file", SubspaceError)
        try:
            subspace = cls(
                basis=file.tensors["basis"],
                site=Site.parse(file.facts["site"]),
                made_with=file.made_with,
                data_sha256=file.facts["data_sha256"],
                fit=json.loads(file.facts["fit"]),
            )
        except (KeyError, ValueError, SiteError) as error:
            raise SubspaceError(f"{path}: its metadata is damaged: {error}") from None
        except SubspaceError as error:
            raise SubspaceError(f"{path}: {error}") from None
        if site is not None and subspace.site != Site.of(site):
            raise SubspaceError(f"{path} was made for site {subspace.site}, not {site}")
        if lens is not None:
            subspace.check(lens, str(path))
        return subspace

    def check(self, lens: LensModel, name: str = "subspace") -> None:
        """Raises `SubspaceError` unless `lens`, as it is now, computes what the model did that the
        subspace was made with, and the basis is as wide as the site.

        Weights, configuration, buffers, settings of modules and hooks must agree; device, library
        versions and the model's name need not.
        """
        self.made_with.require(lens.identity, name, MODEL, SubspaceError)
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


def not_numbers(tensor: Tensor) -> str:
    """What a tensor holds where it is no dense array of real numbers; empty where it is one."""
    if tensor.is_quantized:
        return "quantised numbers"
    if tensor.layout is not torch.strided or tensor.is_nested:
        return f"layout {tensor.layout}"
    if tensor.is_meta:
        return "no numbers (device meta)"
    if tensor.is_complex() or tensor.dtype == torch.bool:
        return str(tensor.dtype).removeprefix("torch.")
    return ""


def check_shape(shape: tuple[int, ...], site: Site, width: int, name: str) -> None:
    """Raises `SubspaceError` unless an array of this shape can be a direction (width,), a basis
    (width, k) or its transpose."""
    fits = shape == (width,) or (len(shape) == 2 and max(shape) == width and min(shape) >= 1)
    if not fits:
        raise SubspaceError(
            f"{name}: shape {shape} is not a direction or a basis at {site}, which is {width} wide"
        )


def spanned(array: Tensor, width: int, name: str) -> tuple[Tensor, bool]:
    """The columns of an array of such a shape, float64 (width, k) of length one, and whether they
    were orthonormal already, to 1e-4. Raises `SubspaceError` for numbers that are all zero or not
    finite, and for columns that are linearly dependent as far as its dtype can tell."""
    basis = array[:, None] if array.ndim == 1 else array
    wide = (basis if basis.shape[0] == width else basis.T).double()
    if not bool(wide.isfinite().all()) or not bool(wide.any()):
        raise SubspaceError(f"{name}: the array is zero or not finite")
    columns = unit(wide)
    exact = torch.float64 if not array.dtype.is_floating_point else array.dtype
    rank = independent(columns, torch.finfo(exact).eps)
    if rank < wide.shape[1]:
        raise SubspaceError(
            f"{name}: only {rank} of its {wide.shape[1]} columns are independent, as far as "
            f"{str(array.dtype).removeprefix('torch.')} can tell"
        )
    gram = wide.T @ wide
    return columns, float((gram - torch.eye(len(gram))).abs().max()) < 1e-4


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
    return Subspace(
        basis=(q * largest.sign()).float(),
        site=site,
        made_with=lens.identity,
        data_sha256=data_sha256,
        fit=fit,
    )
