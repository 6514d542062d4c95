"""Captures on disk, so that later fits and audits of the same pairs need no full passes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from ..core.errors import ResultError, SiteError, TaskError
from ..core.progress import note
from ..core.site import Site
from ..core.tensorfile import TensorFile
from ..model.lens import LensModel
from ..tasks.pairset import PairSet
from .buckets import Bucket, entry_of
from .capture import Capture, capture, check_pairs
from .outcomes import Outcomes

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

    Under a hook that is not ours nothing is read or kept: what such a hook does cannot be told from
    what it did before. Raises what `capture`, `save_capture` and `load_capture` do.
    """
    parsed = (Site.parse(site) if isinstance(site, str) else site for site in sites)
    places = tuple(dict.fromkeys(parsed))
    for site in places:
        lens.map.block(site)
        check_pairs(pairs, site, shifted=shifted)
    identity = lens.identity
    if not identity.lasting:
        note("captures are neither read nor kept: the model has hooks whose effect cannot be named")
        return capture(lens, pairs, places, shifted=shifted, memory=memory)
    made_of = (FORMAT, identity.key, pairs.sha256, *map(str, places))
    name = hashlib.sha256("\n".join(made_of).encode()).hexdigest()[:16]
    path = folder / f"capture-{name}.safetensors"
    if path.exists():
        return replace(load_capture(path, lens, pairs), memory=memory)
    captured = capture(lens, pairs, places, shifted=shifted, memory=memory)
    save_capture(captured, path)
    return captured


def save_capture(captured: Capture, path: Path) -> None:
    """Writes a capture, and whose it is, as safetensors. Raises `ResultError` where it cannot be
    written."""
    tensors = {"clean.logit_diff": captured.clean.logit_diff, "clean.top": captured.clean.top}
    for site in captured.sites:
        tensors |= {f"base.{site}": captured.base[site], f"source.{site}": captured.source[site]}
    for label, buckets in captured.buckets.items():
        for number, bucket in enumerate(buckets):
            tensors |= {f"{label}.{number}.{name}": x for name, x in _parts(bucket).items()}
    counts = {label: len(buckets) for label, buckets in captured.buckets.items()}
    facts = {
        "data": f"{captured.pairs.name}, {captured.pairs.split}: {len(captured.pairs)} pairs",
        "data_sha256": captured.pairs.sha256,
        "sites": json.dumps([str(site) for site in captured.sites]),
        "buckets": json.dumps(counts),
    }
    TensorFile(format=FORMAT, made_with=captured.made_with, tensors=tensors, facts=facts).save(path)


def load_capture(path: Path, lens: LensModel, pairs: PairSet) -> Capture:
    """Reads a file written by `save_capture`, to the devices of `lens`.

    Raises `ResultError` for a file that is damaged or no capture, `ModelError` for one made with
    another model, or the same with other settings, device or library versions, `TaskError` for one
    of other pairs; the message names both sides.
    """
    file = TensorFile.load(path, FORMAT, "a capture")
    file.made_with.require(lens.identity, str(path))
    try:
        if file.facts["data_sha256"] != pairs.sha256:
            raise TaskError(
                f"{path} was made of {file.facts['data']} ({file.facts['data_sha256'][:12]}), not "
                f"of {pairs.name}, {pairs.split}: {len(pairs)} pairs ({pairs.sha256[:12]})"
            )
        return _capture(file.facts, file.tensors, lens, pairs)
    except (KeyError, ValueError, SiteError) as error:
        raise ResultError(f"{path} is damaged: {error}") from None


def _capture(
    facts: Mapping[str, str], tensors: Mapping[str, Tensor], lens: LensModel, pairs: PairSet
) -> Capture:
    sites = tuple(Site.parse(text) for text in json.loads(facts["sites"]))
    entries = {site: entry_of(lens.map, site) for site in sites}
    blocks = lens.map.blocks
    devices = [next(block.module.parameters()).device for block in blocks]

    def bucket(label: str, number: int) -> Bucket:
        wanted = dict.fromkeys(entries[site] for site in sites if site.label == label)
        layers = range(min(layer for _, layer in wanted), len(blocks))

        def part(name: str, layer: int | None = None) -> Tensor:
            tensor = tensors[f"{label}.{number}.{name}"]
            return tensor if layer is None else tensor.to(devices[min(layer, len(blocks) - 1)])

        return Bucket(
            part("pairs"),
            part("padding"),
            part("ends"),
            {(kind, i): part(f"entry.{kind}.{i}", i) for kind, i in wanted},
            {i: part(f"keys.{i}", i) for i in layers},
            {i: part(f"values.{i}", i) for i in layers},
        )

    return Capture(
        lens=lens,
        made_with=lens.identity,
        pairs=pairs,
        sites=sites,
        base={site: tensors[f"base.{site}"].to(devices[site.layer]) for site in sites},
        source={site: tensors[f"source.{site}"].to(devices[site.layer]) for site in sites},
        clean=Outcomes(tensors["clean.logit_diff"], tensors["clean.top"]),
        buckets={
            label: tuple(bucket(label, number) for number in range(count))
            for label, count in json.loads(facts["buckets"]).items()
        },
    )


def _parts(bucket: Bucket) -> dict[str, Tensor]:
    named = {"pairs": bucket.pairs, "padding": bucket.padding, "ends": bucket.ends}
    named |= {f"entry.{kind}.{layer}": x for (kind, layer), x in bucket.entries.items()}
    named |= {f"keys.{layer}": x for layer, x in bucket.keys.items()}
    named |= {f"values.{layer}": x for layer, x in bucket.values.items()}
    return named
