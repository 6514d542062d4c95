"""Captures on disk, so that later fits and audits of the same pairs need no full passes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..core.errors import ModelError, ResultError, SiteError, TaskError
from ..core.files import write_atomically
from ..core.site import Site
from ..model.lens import LensModel
from ..tasks.pairset import PairSet
from .buckets import Bucket, Outcomes, entry_of
from .capture import Capture, capture, check_pairs

FORMAT = "subspacelens.capture/2"


def kept_capture(
    lens: LensModel,
    pairs: PairSet,
    sites: Iterable[Site],
    folder: Path,
    *,
    shifted: bool = False,
) -> Capture:
    """What `capture` gives, read from `folder` if it was made before of the same weights, dtype,
    pairs and sites, else made and kept there. Raises what `capture`, `save_capture` and
    `load_capture` do."""
    sites = tuple(dict.fromkeys(sites))
    for site in sites:
        lens.map.block(site)
        check_pairs(pairs, site, shifted=shifted)
    made_of = (FORMAT, lens.weights_sha256, str(lens.dtype), pairs.sha256, *map(str, sites))
    name = hashlib.sha256("\n".join(made_of).encode()).hexdigest()[:16]
    path = folder / f"capture-{name}.safetensors"
    if path.exists():
        return load_capture(path, lens, pairs)
    found = capture(lens, pairs, sites, shifted=shifted)
    save_capture(found, lens, path)
    return found


def save_capture(captured: Capture, lens: LensModel, path: Path) -> None:
    """Writes a capture that was made with `lens` as safetensors. Raises `ResultError` where it
    cannot be written."""
    tensors = {"clean.logit_diff": captured.clean.logit_diff, "clean.top": captured.clean.top}
    for site in captured.sites:
        tensors |= {f"base.{site}": captured.base[site], f"source.{site}": captured.source[site]}
    for label, buckets in captured.buckets.items():
        for number, bucket in enumerate(buckets):
            tensors |= {f"{label}.{number}.{name}": x for name, x in _parts(bucket).items()}
    metadata = {
        "format": FORMAT,
        "model": lens.id,
        "weights_sha256": lens.weights_sha256,
        "dtype": str(lens.dtype).removeprefix("torch."),
        "data": f"{captured.pairs.name}, {captured.pairs.split}: {len(captured.pairs)} pairs",
        "data_sha256": captured.pairs.sha256,
        "sites": json.dumps([str(site) for site in captured.sites]),
        "buckets": json.dumps({label: len(found) for label, found in captured.buckets.items()}),
    }
    contents = {name: x.detach().cpu().contiguous() for name, x in tensors.items()}
    write_atomically(path, save(contents, metadata=metadata))


def load_capture(path: Path, lens: LensModel, pairs: PairSet) -> Capture:
    """Reads a file written by `save_capture`, to the devices of `lens`.

    Raises `ResultError` for a file that is damaged or no capture, `ModelError` for one made with
    another model or dtype, `TaskError` for one of other pairs; the message names both sides.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ResultError(f"{path} cannot be read as safetensors: {error}") from None
    if metadata.get("format") != FORMAT:
        raise ResultError(f"{path} is not a capture: no '{FORMAT}' mark in it")
    try:
        _check(path, metadata, lens, pairs)
        return _capture(metadata, tensors, lens, pairs)
    except (KeyError, ValueError, SiteError) as error:
        raise ResultError(f"{path} is damaged: {error}") from None


def _check(path: Path, metadata: dict[str, str], lens: LensModel, pairs: PairSet) -> None:
    dtype = str(lens.dtype).removeprefix("torch.")
    if metadata["dtype"] != dtype:
        raise ModelError(f"{path} was made in {metadata['dtype']}, the model is in {dtype}")
    made = metadata["weights_sha256"]
    if made != lens.weights_sha256:
        raise ModelError(
            f"{path} was made with model {metadata['model']} ({made[:12]}), "
            f"not {lens.id} ({lens.weights_sha256[:12]})"
        )
    if metadata["data_sha256"] != pairs.sha256:
        raise TaskError(
            f"{path} was made of {metadata['data']} ({metadata['data_sha256'][:12]}), not of "
            f"{pairs.name}, {pairs.split}: {len(pairs)} pairs ({pairs.sha256[:12]})"
        )


def _capture(
    metadata: dict[str, str], tensors: dict[str, Tensor], lens: LensModel, pairs: PairSet
) -> Capture:
    sites = tuple(Site.parse(text) for text in json.loads(metadata["sites"]))
    entries = {site: entry_of(lens.map, site) for site in sites}
    blocks = lens.map.blocks
    devices = [next(block.module.parameters()).device for block in blocks]

    def bucket(label: str, number: int) -> Bucket:
        wanted = dict.fromkeys(entries[site] for site in sites if site.label == label)
        layers = range(min(layer for _, layer in wanted), len(blocks))

        def part(name: str, layer: int | None = None) -> Tensor:
            found = tensors[f"{label}.{number}.{name}"]
            return found if layer is None else found.to(devices[min(layer, len(blocks) - 1)])

        return Bucket(
            part("pairs"),
            part("padding"),
            part("ends"),
            {(kind, i): part(f"entry.{kind}.{i}", i) for kind, i in wanted},
            {i: part(f"keys.{i}", i) for i in layers},
            {i: part(f"values.{i}", i) for i in layers},
        )

    return Capture(
        pairs,
        sites,
        {site: tensors[f"base.{site}"].to(devices[site.layer]) for site in sites},
        {site: tensors[f"source.{site}"].to(devices[site.layer]) for site in sites},
        Outcomes(tensors["clean.logit_diff"], tensors["clean.top"]),
        {
            label: tuple(bucket(label, number) for number in range(count))
            for label, count in json.loads(metadata["buckets"]).items()
        },
    )


def _parts(bucket: Bucket) -> dict[str, Tensor]:
    named = {"pairs": bucket.pairs, "padding": bucket.padding, "ends": bucket.ends}
    named |= {f"entry.{kind}.{layer}": x for (kind, layer), x in bucket.entries.items()}
    named |= {f"keys.{layer}": x for layer, x in bucket.keys.items()}
    named |= {f"values.{layer}": x for layer, x in bucket.values.items()}
    return named
