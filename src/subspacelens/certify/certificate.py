"""Certificates: made once, kept until the model changes."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..core.errors import ModelError, SiteError
from ..core.progress import hiding_progress, track
from ..core.site import STREAMS, Site
from ..model.hooks import exclusive
from ..model.lens import LensModel, unchanged
from ..tasks.pairset import PairSet
from .examination import Examination, Proof
from .plain_hooks import is_centred, last_logits
from .state import state_of


@dataclass(frozen=True)
class Certificate:
    """The proofs of one site, in the order in which they were made: where a hook fires, the kernel
    of the writer matrix, what hooks do, whose heads they change, replay, batches. Nothing is tried
    past a failure, but that the model is left as it was found."""

    site: Site
    proofs: tuple[Proof, ...] = field(repr=False)

    @property
    def passed(self) -> bool:
        return all(proof.passed for proof in self.proofs)

    @property
    def failures(self) -> tuple[Proof, ...]:
        return tuple(proof for proof in self.proofs if not proof.passed)

    def __repr__(self) -> str:
        if self.passed:
            return f"Certificate({self.site}: all {len(self.proofs)} proofs passed)"
        failed = ", ".join(proof.name for proof in self.failures)
        return f"Certificate({self.site}: FAILED {failed})"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{'✓' if proof.passed else '✗'}</td><th>{html.escape(proof.name)}</th>"
            f"<td>{proof.error:.1e}</td><td>≤ {proof.tolerance:.0e}</td>"
            f"<td>{html.escape(proof.text)}</td></tr>"
            for proof in self.proofs
        )
        return f"<b>{html.escape(repr(self))}</b><table>{rows}</table>"


@dataclass(frozen=True)
class DoctorRow:
    """A site and its certificate, or the reason why the model has no such site."""

    site: Site
    certificate: Certificate | None
    reason: str = ""

    @property
    def passed(self) -> bool:
        return self.certificate is not None and self.certificate.passed


def certify(lens: LensModel, site: Site | str, *, pairs: PairSet | None = None) -> Certificate:
    """The certificate of a site: from two short prompts of random tokens, with an inner label and
    END, for whatever label is asked; or from the shortest and the longest base prompt of `pairs`,
    at the site's label and at END. Made once per model, layer, stream and head.

    Raises `SiteError` for a site that the architecture lacks, `ModelError` for a model in training
    mode. A failed proof does not raise: see `require`.

    >>> certify(lens, "L18.mlp_act@S2").passed
    True
    """
    site = Site.of(site)
    lens.map.block(site)
    if lens.model.training:
        raise ModelError("the model is in training mode: call model.eval() first")
    asked = None if pairs is None else (pairs.sha256, site.label)
    key = (site.layer, site.stream, site.head, asked)
    with unchanged(lens):
        kept = _kept(lens)
        if key not in kept:
            with (
                exclusive(lens.model),
                torch.inference_mode(False),
                torch.enable_grad(),
                hiding_progress(),
            ):
                known = partial(_centred, lens, kept), partial(_clean, lens, kept)
                examination = Examination(lens, site, pairs, *known)
                kept[key] = Certificate(site, tuple(examination.proofs()))
    return replace(kept[key], site=site)


def require(lens: LensModel, site: Site | str, *, pairs: PairSet | None = None) -> Certificate:
    """The certificate of a site that passed every proof. Raises `SiteError`, in one line that names
    the first proof that failed and by how much, for any other."""
    certificate = certify(lens, site, pairs=pairs)
    if not certificate.passed:
        proof = certificate.failures[0]
        raise SiteError(
            f"site {site} failed the proof '{proof.name}': {proof.text} "
            f"(error {proof.error:.2g}, at most {proof.tolerance:.2g} allowed)"
        )
    return certificate


def require_streams(lens: LensModel, sites: Iterable[Site]) -> None:
    """`require` for one site of every stream and label among `sites`, that of the middle layer: for
    work over many layers of an architecture whose blocks are alike."""
    grouped: dict[tuple[str, str], list[Site]] = {}
    for site in sites:
        grouped.setdefault((site.stream, site.label), []).append(site)
    for group in grouped.values():
        require(lens, sorted(group)[len(group) // 2])


def centred(lens: LensModel) -> bool:
    """Whether the model reads its residual stream only after subtracting the mean over dimensions,
    as LayerNorm does; then what W writes counts as (I - 11ᵀ/d) W (arXiv 2311.17030).

    Proven on the running model: c·1 added to what enters the first block changes no logit, at an
    inner and at the last column, where a random vector of that length does.
    """
    return _centred(lens, _kept(lens))


def _centred(lens: LensModel, kept: dict) -> bool:
    if "centred" not in kept:
        with exclusive(lens.model), torch.inference_mode(False), torch.no_grad():
            kept["centred"] = is_centred(lens)
    return kept["centred"]


def _clean(lens: LensModel, kept: dict, pairs: PairSet) -> Tensor:
    """Logits (n, vocabulary) of the base prompts, no hook anywhere, on the CPU."""
    if ("clean", pairs.sha256) not in kept:
        with torch.no_grad():
            logits = [last_logits(lens, pair.base.ids) for pair in pairs]
        kept["clean", pairs.sha256] = torch.cat(logits)
    return kept["clean", pairs.sha256]


def doctor_rows(lens: LensModel, sites: Sequence[Site | str] | None = None) -> list[DoctorRow]:
    """Certificates of `sites`, or else of every stream of the first, a middle and the last layer.
    Streams that the architecture lacks have a reason instead.

    >>> [row.site for row in doctor_rows(lens) if not row.passed]
    """
    blocks = lens.map.blocks
    if sites is None:
        layers = sorted({0, len(blocks) // 2, len(blocks) - 1})
        sites = [Site(layer, stream, "END") for layer in layers for stream in STREAMS]
    rows = []
    with unchanged(lens):
        for site in track(list(map(Site.of, sites)), "certificates"):
            try:
                lens.map.block(site)
            except SiteError as error:
                missing = blocks[site.layer].missing if site.layer < len(blocks) else {}
                rows.append(DoctorRow(site, None, missing.get(site.stream) or str(error)))
            else:
                rows.append(DoctorRow(site, certify(lens, site)))
    return rows


_certificates: WeakKeyDictionary[LensModel, tuple[tuple, dict]] = WeakKeyDictionary()


def _kept(lens: LensModel) -> dict:
    """What was proven of the model; nothing, once a weight, a buffer, a setting, a hook or a
    forward was changed."""
    state = (lens.identity.key, *state_of(lens.model))
    known = _certificates.get(lens)
    if known is None or known[0] != state:
        known = (state, {})
        _certificates[lens] = known
    return known[1]
