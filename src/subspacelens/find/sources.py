"""Who writes a subspace of the residual stream, and who reads it.

The stream behind block L at a token is what entered block 0 plus what the attentions and MLPs of
blocks 0 to L have added to it. So the change V Vᵀ Δ of a patch is a sum over these writers, and
each can be patched alone. What is added is taken from the stream itself, before and after, so that
norms behind a component are in it; an attention is told apart into heads where these add up to it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..core.errors import SiteError
from ..core.site import Site
from ..engine.capture import Capture, capture
from ..engine.replay import Replay
from ..fit.subspace import Subspace
from ..measure.effects import drops_of
from ..measure.readers import attribute_readers
from ..model.lens import LensModel
from ..tasks.pairset import PairSet
from .record import ReaderOf, Writer

EXACT = 1e-3
"""Sums agree to this share of their size."""
LISTED = 12


@dataclass(frozen=True, eq=False)
class Part:
    """What one component adds to the change Δ of the stream, (n, d_model)."""

    name: str
    layer: int | None
    head: int | None
    change: Tensor = field(repr=False)


def parts_of(captured: Capture, site: Site) -> list[Part]:
    """The components whose changes add up to Δ at a `resid_post` site, from a capture of
    `needed(lens, site)`. Raises `SiteError` where they do not, as where something is added between
    blocks."""
    lens, label = captured.lens, site.label

    def change(layer: int, stream: str) -> Tensor:
        return captured.difference(Site(layer, stream, label))

    parts = [Part("embedding", None, None, change(0, "resid_pre"))]
    for layer in range(site.layer + 1):
        before, after = change(layer, "resid_pre"), change(layer, "resid_post")
        if "resid_mid" in lens.map.blocks[layer].missing:
            parts += _side_by_side(captured, layer, label, after - before)
            continue
        middle = change(layer, "resid_mid")
        parts += _attention(captured, layer, label, middle - before)
        parts.append(Part(f"L{layer}.mlp", layer, None, after - middle))
    total = torch.stack([part.change for part in parts]).sum(0)
    if not _alike(total, captured.difference(site)):
        raise SiteError(f"site {site}: what its writers add is not what is there")
    return parts


def needed(lens: LensModel, site: Site) -> list[Site]:
    """The sites that `parts_of` and the patches of the parts need."""
    wanted = [
        Site(layer, stream, site.label)
        for layer in range(site.layer + 1)
        for stream in ("resid_pre", "resid_mid", "resid_post", "head_z", "attn_out", "mlp_out")
        if stream not in lens.map.blocks[layer].missing
    ]
    return [*wanted, site]


def _side_by_side(captured: Capture, layer: int, label: str, added: Tensor) -> list[Part]:
    """Attention and MLP that read the same stream, where they can be told apart."""
    missing = captured.lens.map.blocks[layer].missing
    if {"attn_out", "mlp_out"} & missing.keys():
        return [Part(f"L{layer}.block", layer, None, added)]
    attention, mlp = (
        captured.difference(Site(layer, stream, label)) for stream in ("attn_out", "mlp_out")
    )
    if not _alike(attention + mlp, added):
        return [Part(f"L{layer}.block", layer, None, added)]
    heads = _attention(captured, layer, label, attention)
    return [*heads, Part(f"L{layer}.mlp", layer, None, mlp)]


def _attention(captured: Capture, layer: int, label: str, added: Tensor) -> list[Part]:
    """The heads of an attention, or all together where these do not add up to what it adds."""
    whole = [Part(f"L{layer}.attention", layer, None, added)]
    site = Site(layer, "head_z", label)
    if "head_z" in captured.lens.map.blocks[layer].missing:
        return whole
    change, of_map = captured.difference(site), captured.lens.map
    heads = []
    for head in range(of_map.block(site).n_heads):
        one = replace(site, head=head)
        written = change[:, of_map.head_slice(one)] @ of_map.linear_writer(one).T.to(change)
        heads.append(Part(f"L{layer}.head {head}", layer, head, written))
    return heads if _alike(torch.stack([h.change for h in heads]).sum(0), added) else whole


def _alike(ours: Tensor, theirs: Tensor) -> bool:
    """Whether two sums of changes are equal but for rounding; what does not change at all is."""
    return bool((ours - theirs).norm() <= EXACT * theirs.norm().clamp(min=1e-6))


def sources(
    lens: LensModel, pairs: PairSet, subspace: Subspace, *, shifted: bool, memory: int | None
) -> tuple[list[Writer], list[ReaderOf]]:
    """The strongest writers of a subspace, at a `resid_post` site, and its strongest readers."""
    site, stream = subspace.site, subspace.site.stream == "resid_post"
    wanted = needed(lens, site) if stream else [site]
    captured = capture(lens, pairs, wanted, shifted=shifted, memory=memory)
    replay, basis = captured.at(site), subspace.basis
    whole = float(drops_of(replay, _along(replay.difference, basis)[None]).mean())
    writers = _writers(parts_of(captured, site), replay, basis, whole) if stream else []
    return writers, _readers(replay, basis, whole)


def _along(change: Tensor, basis: Tensor) -> Tensor:
    basis = basis.to(change)
    return (change @ basis) @ basis.T


def _writers(parts: list[Part], replay: Replay, basis: Tensor, whole: float) -> list[Writer]:
    along = _along(replay.difference, basis)
    size = float(along.square().sum())
    linear = {part.name: float((_along(part.change, basis) * along).sum()) / size for part in parts}
    strongest = sorted(parts, key=lambda part: -abs(linear[part.name]))[:LISTED]
    deltas = torch.stack([_along(part.change, basis) for part in strongest])
    drops = drops_of(replay, deltas).mean(axis=1)
    found = [
        Writer(
            name=part.name, layer=part.layer, head=part.head, effect=float(drop) / whole,
            linear=linear[part.name],
        )
        for part, drop in zip(strongest, drops, strict=True)
    ]  # fmt: skip
    return sorted(found, key=lambda writer: -abs(writer.effect))


def _readers(replay: Replay, basis: Tensor, whole: float) -> list[ReaderOf]:
    shares = attribute_readers(replay, _along(replay.difference, basis))
    return [
        ReaderOf(name=each.name, layer=each.layer, share=each.attribution / whole)
        for each in shares[:LISTED]
    ]
