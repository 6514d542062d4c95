"""Patching maps: what happens when one component of one layer takes the source's value.

The first look at a model and a task: for every layer and stream, and for every single head, the
effect of the full-component patch (`patches.Full`). All sites come from one capture, each is one
replay, and the heads of a block are many patches of one replay.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from itertools import product

import numpy as np
from torch import Tensor

from ...certify import require_streams
from ...core.errors import SiteError, TaskError
from ...core.machine import quarter_free
from ...core.progress import track
from ...core.records import ModelRecord
from ...core.site import STREAMS, Site
from ...engine.capture import Capture, capture, check_pairs
from ...engine.effect import fldd_of
from ...engine.patches import Full
from ...model.lens import LensModel
from ...tasks.pairset import PairSet
from ..groups import capture_groups
from .value import PatchingMap, StreamEffects

DEFAULT_PAIRS = 32


def patching_map(
    lens: LensModel,
    pairs: PairSet,
    streams: Iterable[str],
    labels: Iterable[str],
    *,
    layers: Collection[int] | None = None,
    shifted: bool = False,
    memory: int | None = None,
    limit: int | None = DEFAULT_PAIRS,
) -> PatchingMap:
    """The effect of the full-component patch at every layer of `streams` at `labels`, of the single
    heads for `head_z`, on the first `limit` pairs (None: all of them). Where
    `layers` are given, the others have no value.

    `memory` is the budget in bytes for what one capture keeps and for one replay, by default a
    quarter of what is free; where one capture of everything would pass it, there are several, each
    of fewer labels and layers. `shifted` allows a label in different columns of base and source.
    Each stream must pass its certificate at a middle layer.

    Raises `SiteError` for a stream that no layer has or that fails a proof and for no layer,
    `TaskError` for a label that the pairs lack.

    >>> patching_map(lens, task.test, ["resid_post", "mlp_act"], ["S2", "END"]).best(3)
    """
    started = time.perf_counter()
    streams, labels = tuple(dict.fromkeys(streams)), tuple(dict.fromkeys(labels))
    if limit is not None and limit < 1:
        raise TaskError(f"limit={limit}: a map needs at least one pair")
    pairs = pairs[:limit]
    every = sites_of(lens, pairs, streams, labels)
    sites = [site for site in every if layers is None or site.layer in layers]
    if not sites:
        raise SiteError(f"no layer to map: the model has {len(lens.map.blocks)}, from 0")
    for label in labels:
        check_pairs(pairs, Site(0, streams[0], label), shifted=shifted)
    require_streams(lens, [site for site in sites if site.label == labels[0]])
    memory = memory or quarter_free(lens.map.devices)
    effects = {
        (label, stream): StreamEffects.empty(len(lens.map.blocks), heads_of(lens, stream))
        for label, stream in product(labels, streams)
    }
    groups = capture_groups(lens, pairs, sites, memory)
    clean = []
    for captured, site in track(_captured(lens, pairs, groups, shifted, memory), "map", len(sites)):
        clean.append(captured.clean)
        unpatched = captured.clean.logit_diff.double().numpy()
        outcomes = captured.at(site).delta_outcomes(_deltas(lens, captured, site), decided=True)
        drops = unpatched - outcomes.logit_diff.double().numpy()
        of_stream, here = effects[site.label, site.stream], np.s_[site.layer, : len(drops)]
        of_stream.nats[here] = drops.mean(axis=1)
        of_stream.fldd[here] = fldd_of(drops, unpatched)
        of_stream.iia[here] = outcomes.says("target", pairs).double().mean(1).numpy()
    return PatchingMap(
        model=ModelRecord(
            id=lens.id,
            weights_sha256=lens.weights_sha256,
            dtype=str(lens.dtype).removeprefix("torch."),
        ),
        task=pairs.name,
        split=pairs.split,
        pairs=len(pairs),
        pairs_sha256=pairs.sha256,
        shifted=shifted,
        clean_logit_diff=clean[-1].logit_diff.double().mean().item(),
        clean_top_answer=clean[-1].says("answer", pairs).double().mean().item(),
        labels=labels,
        streams=streams,
        layers=len(lens.map.blocks),
        effects=effects,
        captures=len(groups),
        seconds=time.perf_counter() - started,
    )


def sites_of(
    lens: LensModel, pairs: PairSet, streams: tuple[str, ...], labels: tuple[str, ...]
) -> list[Site]:
    """Label by label all layers that have each stream, lowest layer first, whole `head_z` for its
    heads. Raises `SiteError` for no stream and for one that no layer has, `TaskError` for no label.
    """
    if not streams:
        raise SiteError(f"no stream to map: give some of {', '.join(STREAMS)}")
    if not labels:
        raise TaskError(f"no label to map: task {pairs.name} has {', '.join(pairs.labels)}")
    blocks = lens.map.blocks
    for stream, label in product(streams, labels):
        first = Site(0, stream, label)
        if all(stream in block.missing for block in blocks):
            lens.map.block(first)
    return [
        Site(layer, stream, label)
        for label in labels
        for layer, block in enumerate(blocks)
        for stream in streams
        if stream not in block.missing
    ]


def heads_of(lens: LensModel, stream: str) -> int:
    """How many sites a layer has at most in a stream."""
    return max(block.n_heads for block in lens.map.blocks) if stream == "head_z" else 1


def _deltas(lens: LensModel, captured: Capture, site: Site) -> Tensor:
    """(heads, n, dim): the full patch of the site, or of each of its heads alone."""
    delta = Full().delta(captured.base[site], captured.source[site])
    if site.stream != "head_z":
        return delta[None]
    mask = delta.new_zeros(lens.map.block(site).n_heads, 1, delta.shape[-1])
    for head in range(len(mask)):
        mask[head, :, lens.map.head_slice(replace(site, head=head))] = 1
    return mask * delta


def _captured(
    lens: LensModel, pairs: PairSet, groups: list[list[Site]], shifted: bool, memory: int
) -> Iterator[tuple[Capture, Site]]:
    for group in groups:
        captured = capture(lens, pairs, group, shifted=shifted, memory=memory)
        for site in group:
            yield captured, site
