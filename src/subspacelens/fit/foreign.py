"""A subspace that another tool made, from what a reader of `interop` found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.errors import SiteError, SubspaceError
from ..core.files import content_sha256
from ..core.geometry import independent, unit
from ..core.progress import note
from ..core.site import Site
from ..interop import Foreign, Part
from ..interop.names import MIDDLE, Spot, centred_elsewhere, site_named, spot_of
from ..model.lens import LensModel
from ..tasks.pairset import PairSet
from .subspace import Subspace, made_by

STREAMS_OF_THE_RESIDUAL = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
_SINGLE = torch.finfo(torch.float32).eps


def from_foreign(
    lens: LensModel,
    found: Foreign,
    site: Site | str | None = None,
    *,
    key: str | None = None,
    rows: Sequence[int] = (),
    centred: bool = False,
) -> Subspace:
    """The subspace that a part of `found` is, at the place that it says or at `site`.

    `site` is a whole one, in our spelling or another tool's, or `@LABEL` for a token at the file's
    own place. `key` names a part where there are several, `rows` the latents of a dictionary.
    `centred` says that it was found in a residual stream with its mean taken out (TransformerLens'
    compatibility mode): then, and where the file says so, it is centred here too. What the tool
    does with it is kept as `fit["operation"]`: the audit interchanges, whatever that is.

    Raises `SubspaceError` for a part that is none or does not fit, `SiteError` where neither says
    where or for which token, and where the two contradict each other.

    >>> found = sl.read_foreign("sae/blocks.8.hook_resid_pre")
    >>> from_foreign(lens, found, "@END", rows=[7]).site
    Site(layer=8, stream='resid_pre', label='END', head=None)
    """
    key, part, where = part_at(lens, found, site, key)
    columns = _columns(found, key, part, rows)
    basis = unit(columns)
    kept = None
    if (centred or part.centred) and _is_centred(lens, where):
        basis, kept = _without_mean(basis, f"{found.origin}: {key}")
    rank = independent(basis, _SINGLE)
    if rank < basis.shape[1]:
        raise SubspaceError(
            f"{found.origin}: only {rank} of the {basis.shape[1]} columns of {key} are independent"
        )
    gram = columns.T @ columns
    already = kept is None and float((gram - torch.eye(len(gram))).abs().max()) < 1e-4
    norms = columns.norm(dim=0)
    middle = (MIDDLE,) if where.stream == "resid_mid" and part.place else ()
    record: dict[str, Any] = dict(
        method="given", tool=found.tool, kind=found.kind, operation=part.operation, key=key,
        row=rows[0] if len(rows) == 1 else ",".join(map(str, rows)) or None,
        place=None if part.place is None else str(part.place), model=found.model, bos=found.bos,
        norm=float(norms[0]) if len(norms) == 1 else None, kept_by_centring=kept,
        notes="; ".join((*found.notes, *part.notes, *middle, *_other_model(lens, found))) or None,
        orthonormalised=not already,
    )  # fmt: skip
    if found.path is not None:
        record |= dict(file=found.path.name, file_sha256=content_sha256(found.path))
    return made_by(lens, where, basis, "", record)


def part_at(
    lens: LensModel, found: Foreign, site: Site | str | None, key: str | None
) -> tuple[str, Part, Site]:
    """The part that is meant, its name, and its place; arguments and errors as in
    `from_foreign`."""
    key, part = found.part(_matching(lens, found, site) if key is None else key)
    where = _place(lens, found, part, site)
    width = lens.map.dim(where)
    if part.width != width:
        raise SubspaceError(
            f"{found.origin}: {key} is {part.width} wide, but {where} is {width} wide"
        )
    for text in _other_model(lens, found):
        note(f"{found.origin}: {text}")
    return key, part, where


def _other_model(lens: LensModel, found: Foreign) -> tuple[str, ...]:
    """That the file names another model than this. It is no error: tools call one model by many
    names, and an architecture by that of its family."""
    said = (found.model or "").rstrip("/").rpartition("/")[2].lower()
    ours = lens.id.rstrip("/").rpartition("/")[2].lower()
    family = str(getattr(getattr(lens.model, "config", None), "model_type", ours))
    if not said or said in (ours, family):
        return ()
    return (f"it says that it is of {found.model}, and this is {lens.id} ({family})",)


def foreign_rows(
    lens: LensModel,
    found: Foreign,
    site: Site,
    rows: Sequence[int],
    *,
    key: str | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    """Rows (m, d) of a part of `found` as they are, no shorter or longer, and where they are from;
    without `rows` all vectors of a part that is no dictionary. Raises `SubspaceError` and
    `SiteError` as `from_foreign` does."""
    key, part, _ = part_at(lens, found, site, key)
    if part.latents is None:
        every = _columns(found, key, part, ()).T
        beyond = [row for row in rows if row >= len(every)]
        if beyond:
            raise SubspaceError(f"{found.origin}: {key} has rows 0 to {len(every) - 1}")
        directions = every[list(rows)] if rows else every
    else:
        directions = _columns(found, key, part, rows).T
    origin: dict[str, Any] = dict(
        tool=found.tool, kind=found.kind, operation=part.operation, key=key
    )
    if found.path is not None:
        origin |= dict(file=found.path.name, file_sha256=content_sha256(found.path))
    return directions, origin


def check_bos(subspace: Subspace, lens: LensModel, pairs: PairSet) -> None:
    """Raises `SubspaceError` where the file that a subspace comes from says that prompts begin with
    a BOS token and those of `pairs` do not, or the other way round."""
    said, token = subspace.fit.get("bos"), getattr(lens.tokenizer, "bos_token_id", None)
    if not isinstance(said, bool) or token is None:
        return
    begin = {prompt.ids[0] == token for pair in pairs for prompt in (pair.base, pair.source)}
    if begin == {said}:
        return
    raise SubspaceError(
        f"{subspace.fit.get('tool')}: it was made on prompts that {'' if said else 'do not '}begin "
        f"with a BOS token, and {'not all' if said else 'some'} of {pairs.name} do: change the "
        "prompts, or save the direction as a plain array"
    )


def _matching(lens: LensModel, found: Foreign, site: Site | str | None) -> str | None:
    """Of several parts the one that belongs at the site, if it is one."""
    if found.default is not None or len(found.parts) == 1 or site is None:
        return None
    if isinstance(site, str) and site.startswith("@"):
        return None
    wanted = site if isinstance(site, Site) else site_named(site, lens)
    fitting = [
        name
        for name, part in found.parts.items()
        if part.refused is None and part.place is not None and _same(lens, part, wanted)
    ]
    return fitting[0] if len(fitting) == 1 else None


def _same(lens: LensModel, part: Part, site: Site) -> bool:
    try:
        spot = spot_of(part.place, lens) if part.place else None
    except SiteError:
        return False
    return spot is not None and _agree(spot, site)


def _agree(spot: Spot, site: Site) -> bool:
    heads = spot.head is None or spot.head == site.head
    return (spot.layer, spot.stream) == (site.layer, site.stream) and heads


def _place(lens: LensModel, found: Foreign, part: Part, site: Site | str | None) -> Site:
    spot = None
    if part.place is not None:
        try:
            spot = spot_of(part.place, lens)
        except SiteError as error:
            raise SiteError(f"{found.origin}: {error}") from None
    if isinstance(site, str) and site.startswith("@"):
        if spot is None:
            raise SiteError(f"{found.origin} does not say where it belongs: name a whole --site")
        return spot.at(site[1:])
    if site is None:
        if spot is None:
            raise SiteError(f"{found.origin} does not say where it belongs: name its --site")
        raise SiteError(f"{found.origin} belongs at {spot} and says no token: add one, --site @END")
    wanted = site if isinstance(site, Site) else site_named(site, lens)
    if spot is not None and not _agree(spot, wanted):
        raise SiteError(
            f"{found.origin} says that it belongs at {spot} ({part.place}), not {wanted}: "
            f"--site @{wanted.label} takes it there"
        )
    return wanted


def _columns(found: Foreign, key: str, part: Part, rows: Sequence[int]) -> Tensor:
    if part.latents is None:
        if rows:
            raise SubspaceError(f"{found.origin}: {key} has no rows to choose from")
    elif not rows:
        raise SubspaceError(
            f"{found.origin}: {key} has {part.latents} latents: choose with --row, such as --row 0"
        )
    elif not all(0 <= row < part.latents for row in rows):
        raise SubspaceError(f"{found.origin}: {key} has latents 0 to {part.latents - 1}")
    columns = part.columns(rows).detach().cpu().double()
    if not bool(columns.isfinite().all()) or not bool(columns.any(dim=0).all()):
        raise SubspaceError(f"{found.origin}: {key} is zero or not finite")
    return columns


def _is_centred(lens: LensModel, site: Site) -> bool:
    return site.stream in STREAMS_OF_THE_RESIDUAL and centred_elsewhere(lens)


def _without_mean(basis: Tensor, what: str) -> tuple[Tensor, float]:
    """Unit columns with their mean taken out, and the least share of a column that stays."""
    centred = basis - basis.mean(dim=0)
    kept = float(centred.square().sum(dim=0).min())
    if kept < 1e-6:
        raise SubspaceError(f"{what} is constant over the dimensions: a centred stream has no such")
    return unit(centred), kept
