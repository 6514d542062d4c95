"""Captures on disk, so that later fits and audits of the same pairs need no full passes, and so
that what memory does not hold can be replayed from there."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..core.errors import ResultError, SiteError, TaskError
from ..core.format import memory as written
from ..core.progress import note
from ..core.site import Site
from ..core.stored import StoredRows, chunks, in_memory
from ..core.tensorfile import StoredFile, writing
from ..model.lens import LensModel
from ..tasks.pairset import PairSet
from .buckets import Bucket, entry_of
from .capture import Capture, capture, filled, planned
from .outcomes import Outcomes
from .plan import Plan

FORMAT = "subspacelens.capture/3"


def kept_capture(
    lens: LensModel,
    pairs: PairSet,
    sites: Iterable[Site | str],
    folder: Path,
    *,
    shifted: bool = False,
    memory: int | None = None,
) -> Capture:
    """What `capture` gives, read from `folder` if it was made before of the same model as it is
    now, pairs and sites, else made and kept there.

    Where more than `memory` bytes would be kept on a device, by default half of what is free there,
    residual streams, keys and values stay in the file, and replays read the rows that they need.

    Under a hook that is not ours nothing is read or kept: what such a hook does cannot be told from
    what it did before. Raises what `capture`, `save_capture` and `load_capture` do, and
    `ResultError` before the model runs if the folder's disk lacks the room.
    """
    plan, identity = planned(lens, pairs, sites, shifted=shifted), lens.identity
    if not identity.lasting:
        note("captures are neither read nor kept: the model has hooks whose effect cannot be named")
        return capture(lens, pairs, plan.sites, shifted=shifted, memory=memory)
    made_of = (FORMAT, identity.key, pairs.sha256, *map(str, plan.sites))
    name = hashlib.sha256("\n".join(made_of).encode()).hexdigest()[:16]
    path = folder / f"capture-{name}.safetensors"
    if path.exists():
        return load_capture(path, lens, pairs, memory=memory)
    _check_disk(folder, plan)
    if plan.fits(memory):
        captured = filled(plan, plan.in_memory(), memory)
        save_capture(captured, path)
        return captured
    size = written(sum(plan.nbytes.values()))
    note(f"{plan} takes {size}: it is kept in {folder} and replayed from there")
    like = _named(plan.activations, plan.activations, plan.clean, plan.buckets)
    said = _said(pairs, plan.sites, plan.buckets)
    with writing(path, like, **said, made_with=identity) as file:
        _write({name: x for name, x in like.items() if x.device.type != "meta"}, file)
        counts = {label: len(parts) for label, parts in plan.buckets.items()}
        captured = filled(plan, _buckets(counts, file, lens, plan.sites), memory)
        _write(_named(captured.base, captured.source, captured.clean, {}), file)
    return load_capture(path, lens, pairs, memory=memory)


def save_capture(captured: Capture, path: Path) -> None:
    """Writes a capture, and whose it is, as safetensors. Raises `ResultError` where it cannot be
    written."""
    tensors = _named(captured.base, captured.source, captured.clean, captured.buckets)
    said = _said(captured.pairs, captured.sites, captured.buckets)
    with writing(path, tensors, **said, made_with=captured.made_with) as file:
        _write(tensors, file)


def load_capture(
    path: Path, lens: LensModel, pairs: PairSet, *, memory: int | None = None
) -> Capture:
    """Opens a file written by `save_capture`. What is kept of it in memory, and where, is as for
    `kept_capture`; `memory` is also the budget of replays.

    Raises `ResultError` for a file that is damaged or no capture, `ModelError` for one made with
    another model, or the same with other settings, device or library versions, `TaskError` for one
    of other pairs; the message names both sides.
    """
    file = StoredFile.open(path, FORMAT, "a capture")
    file.made_with.require(lens.identity, str(path))
    try:
        if file.facts["data_sha256"] != pairs.sha256:
            raise TaskError(
                f"{path} was made of {file.facts['data']} ({file.facts['data_sha256'][:12]}), not "
                f"of {pairs.name}, {pairs.split}: {len(pairs)} pairs ({pairs.sha256[:12]})"
            )
        return _capture(file, lens, pairs, memory)
    except (KeyError, ValueError, SiteError) as error:
        raise ResultError(f"{path} is damaged: {error}") from None


def _write(tensors: Mapping[str, Tensor | StoredRows], file: Mapping[str, StoredRows]) -> None:
    for name, x in tensors.items():
        start = 0
        for chunk in chunks(x):
            file[name][start : start + len(chunk)] = chunk
            start += len(chunk)


def _check_disk(folder: Path, plan: Plan) -> None:
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    size, free = sum(plan.nbytes.values()), shutil.disk_usage(there).free
    if size > free:
        raise ResultError(
            f"{plan} takes {written(size)}, and {written(free)} are free in {folder}: take fewer "
            "or shorter pairs, a later site or another folder"
        )


def _capture(file: StoredFile, lens: LensModel, pairs: PairSet, memory: int | None) -> Capture:
    sites = tuple(Site.parse(text) for text in json.loads(file.facts["sites"]))
    tensors = file.tensors

    def activations(role: str) -> dict[Site, Tensor]:
        devices = {site: lens.map.device_at(site.layer) for site in sites}
        return {site: in_memory(tensors[f"{role}.{site}"].to(devices[site])) for site in sites}

    buckets = _buckets(json.loads(file.facts["buckets"]), tensors, lens, sites)
    if Plan(lens, pairs, sites, buckets).fits(memory):
        buckets = {
            label: tuple(bucket.holding(lambda x, _: in_memory(x)) for bucket in parts)
            for label, parts in buckets.items()
        }
    return Capture(
        lens=lens,
        made_with=lens.identity,
        pairs=pairs,
        sites=sites,
        base=activations("base"),
        source=activations("source"),
        clean=Outcomes(in_memory(tensors["clean.logit_diff"]), in_memory(tensors["clean.top"])),
        buckets=buckets,
        memory=memory,
    )


def _said(
    pairs: PairSet, sites: tuple[Site, ...], buckets: Mapping[str, tuple[Bucket, ...]]
) -> dict[str, Any]:
    """What a file says of itself."""
    facts = {
        "data": f"{pairs.name}, {pairs.split}: {len(pairs)} pairs",
        "data_sha256": pairs.sha256,
        "sites": json.dumps([str(site) for site in sites]),
        "buckets": json.dumps({label: len(parts) for label, parts in buckets.items()}),
    }
    return {"format": FORMAT, "facts": facts}


def _named(
    base: Mapping[Site, Tensor],
    source: Mapping[Site, Tensor],
    clean: Outcomes,
    buckets: Mapping[str, tuple[Bucket, ...]],
) -> dict[str, Tensor | StoredRows]:
    """All tensors of a capture, by their names in a file."""
    named: dict[str, Tensor | StoredRows] = {
        "clean.logit_diff": clean.logit_diff, "clean.top": clean.top
    }  # fmt: skip
    for site in base:
        named |= {f"base.{site}": base[site], f"source.{site}": source[site]}
    for label, parts in buckets.items():
        for number, bucket in enumerate(parts):
            first = f"{label}.{number}"
            named |= {f"{first}.pairs": bucket.pairs, f"{first}.padding": bucket.padding}
            named |= {f"{first}.ends": bucket.ends}
            for (kind, layer), x in bucket.entries.items():
                named[f"{first}.entry.{kind}.{layer}"] = x
            for layer, x in bucket.keys.items():
                named[f"{first}.keys.{layer}"] = x
                named[f"{first}.values.{layer}"] = bucket.values[layer]
    return named


def _buckets(
    counts: Mapping[str, int],
    tensors: Mapping[str, StoredRows],
    lens: LensModel,
    sites: tuple[Site, ...],
) -> dict[str, tuple[Bucket, ...]]:
    """So many buckets for each label, of what a file has under the names of `_named`."""

    def bucket(label: str, number: int) -> Bucket:
        wanted = dict.fromkeys(entry_of(lens.map, site) for site in sites if site.label == label)
        layers = range(min(layer for _, layer in wanted), len(lens.map.blocks))

        def small(name: str) -> Tensor:
            return in_memory(tensors[f"{label}.{number}.{name}"])

        def part(name: str, layer: int) -> StoredRows:
            return tensors[f"{label}.{number}.{name}"].to(lens.map.device_at(layer))

        return Bucket(
            small("pairs"),
            small("padding"),
            small("ends"),
            {(kind, i): part(f"entry.{kind}.{i}", i) for kind, i in wanted},
            {i: part(f"keys.{i}", i) for i in layers},
            {i: part(f"values.{i}", i) for i in layers},
        )

    return {
        label: tuple(bucket(label, number) for number in range(count))
        for label, count in counts.items()
    }
