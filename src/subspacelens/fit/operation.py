"""What another tool does with what it saved, as a patch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ..core.errors import SubspaceError
from ..core.site import Site
from ..engine.patches import Add, Erase, Patch, SubspacePatch
from ..interop import Foreign, Part
from ..model.lens import LensModel
from .foreign import foreign_rows, from_foreign, part_at


def own_patch(
    lens: LensModel,
    found: Foreign,
    site: Site | str,
    *,
    key: str | None = None,
    rows: Sequence[int] = (),
    alpha: float | None = None,
    value: float | None = None,
) -> Patch:
    """The patch that does what the tool does: it takes the source's value in a subspace, adds a
    vector (`alpha` times, by default once), erases obliquely, sets a latent of a dictionary to
    `value`, or to the source's where that is None, with the error term kept, or edits as LoReFT
    learned to.

    `site`, `key` and `rows` are those of `from_foreign`, as is what is raised; and `SubspaceError`
    for a file that does not say what is done, for a latent that depends on others or of which it is
    not said how it is computed, and for an `alpha` or `value` where there is nothing to be so.

    >>> sae = sl.read_foreign("sae/blocks.8.hook_resid_pre")
    >>> patch = sl.own_patch(lens, sae, "@END", rows=[7], value=5.0)
    >>> sl.patch(lens, task, "L8.resid_pre@END", patch).fldd
    """
    if key is None and all(part.operation == "erase" for part in found.parts.values()):
        key = next(iter(found.parts))  # Both sides belong to one eraser.
    key, part, where = part_at(lens, found, site, key)
    for name, number, operation in (("alpha", alpha, "add"), ("value", value, "latent")):
        if number is not None and part.operation != operation:
            raise SubspaceError(f"{found.origin}: {key}: {part.operation} takes no {name}")
    match part.operation:
        case "interchange":
            return SubspacePatch(from_foreign(lens, found, where, key=key, rows=rows).basis)
        case "add":
            vectors, _ = foreign_rows(lens, found, where, rows, key=key)
            if len(vectors) > 1:
                raise SubspaceError(f"{found.origin}: {key} holds {len(vectors)} vectors: name one")
            return Add(vectors[0], 1.0 if alpha is None else alpha)
        case "erase":
            numbers = {name: read() for name, read in part.numbers.items()}
            return Erase(numbers["proj_left"], numbers["proj_right"], numbers.get("bias"))
        case "latent":
            return _latent(found, key, part, rows, value)
        case "reft":
            return _reft(found, part)
    raise SubspaceError(f"{found.origin}: {key}: it does not say what is done with it")


def _latent(
    found: Foreign, key: str, part: Part, rows: Sequence[int], value: float | None
) -> Patch:
    if part.latent is None:
        raise SubspaceError(
            f"{found.origin}: {found.kind}: a latent is not set alone: it depends on others, or it "
            "is not said how it is computed"
        )
    if len(rows) != 1 or not 0 <= rows[0] < (part.latents or 0):
        raise SubspaceError(f"{found.origin}: {key}: one latent is set, of 0 to {part.latents}")
    return replace(part.latent(rows[0]), value=value)


def _reft(found: Foreign, part: Part) -> Patch:
    """h + R (W h + b - Rᵀ h) is an oblique projection off a point that it leaves as it is."""
    w, b, r = (part.numbers[name]().double() for name in ("weight", "bias", "rotate_layer"))
    right = r.T - w
    fixed = torch.linalg.lstsq(right, b[:, None]).solution[:, 0]
    if not torch.allclose(right @ fixed, b, atol=1e-6):
        raise SubspaceError(f"{found.origin}: this LoReFT edit has no point that it leaves alone")
    return Erase(r, right, fixed)
