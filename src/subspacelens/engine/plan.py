"""What a capture will keep, known before the model runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..core.errors import TaskError
from ..core.format import memory
from ..core.machine import free_memory
from ..core.site import Site
from ..core.stored import StoredRows
from ..model.lens import LensModel
from ..tasks.pairset import PairSet, Prompt
from .batches import replay_groups
from .buckets import Bucket, Entry, entry_of
from .outcomes import Outcomes

_NOWHERE = torch.device("meta")


@dataclass(frozen=True, eq=False)
class Plan:
    """The tensors that a capture of these pairs at these sites fills. `buckets`, by label, and
    `activations`, of the base or the source at each site, (n, dim), have shapes and dtypes and no
    contents yet."""

    lens: LensModel = field(repr=False)
    pairs: PairSet
    sites: tuple[Site, ...]
    buckets: Mapping[str, tuple[Bucket, ...]] = field(repr=False)

    @classmethod
    def of(cls, lens: LensModel, pairs: PairSet, sites: tuple[Site, ...]) -> Plan:
        bases = [pair.reads for pair in pairs]
        labels: dict[str, dict[Entry, None]] = defaultdict(dict)
        for site in sites:
            labels[site.label][entry_of(lens.map, site)] = None
        buckets = {
            label: tuple(_buckets(lens, label, tuple(entries), bases))
            for label, entries in labels.items()
        }
        return cls(lens, pairs, sites, buckets)

    @property
    def activations(self) -> dict[Site, Tensor]:
        n, of = len(self.pairs), self.lens.map.dim
        return {site: _empty(n, of(site), dtype=self.lens.dtype) for site in self.sites}

    def in_memory(self) -> dict[str, tuple[Bucket, ...]]:
        """The buckets in the memory of the devices, to be filled."""

        def made(x: Tensor | StoredRows, layer: int) -> Tensor:
            return torch.zeros(x.shape, dtype=x.dtype, device=self.lens.map.device_at(layer))

        return {
            label: tuple(bucket.holding(made) for bucket in buckets)
            for label, buckets in self.buckets.items()
        }

    @property
    def clean(self) -> Outcomes:
        n = len(self.pairs)
        return Outcomes(_empty(n, dtype=torch.float32), _empty(n, dtype=torch.long))

    @property
    def nbytes(self) -> dict[torch.device, int]:
        """How much that is on each device."""
        sizes: dict[torch.device, int] = defaultdict(int)
        for site, x in self.activations.items():
            sizes[self.lens.map.device_at(site.layer)] += 2 * x.nbytes
        for buckets in self.buckets.values():
            for x, layer in (held for bucket in buckets for held in bucket.held):
                sizes[self.lens.map.device_at(layer)] += x.nbytes
        return dict(sizes)

    def __str__(self) -> str:
        return f"the capture of {len(self.pairs):,} pairs at {', '.join(map(str, self.sites))}"

    def fits(self, room: int | None = None) -> bool:
        """Whether no device has to hold more than `room` bytes, by default half of what is free
        there: a task's splits are set apart by copying them."""
        return all(size <= _room(device, room) for device, size in self.nbytes.items())

    def check_room(self, room: int | None = None) -> None:
        """Raises `TaskError` unless it `fits`."""
        for device, size in self.nbytes.items():
            limit = _room(device, room)
            if size > limit:
                raise TaskError(
                    f"{self} takes {memory(size)} on {device}, where {memory(limit)} may be used "
                    "(half of what is free): take fewer or shorter pairs or a later site, or keep "
                    "it on disk (--captures DIR; in Python capture_task with keep=DIR)"
                )


def _buckets(
    lens: LensModel,
    label: str,
    entries: tuple[Entry, ...],
    bases: list[tuple[Prompt, ...]],
) -> Iterator[Bucket]:
    """The prompts of each base (`Pair.reads`), in buckets that are replayed together."""
    columns = [reads[0].columns[label] for reads in bases]
    suffixes = [
        max(len(prompt.ids) for prompt in reads) - column
        for reads, column in zip(bases, columns, strict=True)
    ]
    layers = range(min(layer for _, layer in entries), len(lens.map.blocks))
    for group in replay_groups(columns, suffixes, lens.map.pads):
        rows = [(i, len(prompt.ids) - columns[i]) for i in group for prompt in bases[i]]
        group, ends = map(list, zip(*rows, strict=True))
        prefixes, lengths = torch.tensor([columns[i] for i in group]), torch.tensor(ends)
        n, widest, longest = len(group), int(prefixes.max()), int(lengths.max())

        def kept(layer: int, which: int, n: int = n, widest: int = widest) -> Tensor:
            heads, width = lens.map.cached[layer][which]
            return _empty(n, heads, widest, width, dtype=lens.dtype)

        stream = _empty(n, longest, lens.map.d_model, dtype=lens.dtype)
        yield Bucket(
            torch.tensor(group),
            widest - prefixes,
            lengths - 1,
            dict.fromkeys(entries, stream),
            {layer: kept(layer, 0) for layer in layers},
            {layer: kept(layer, 1) for layer in layers},
        )


def _room(device: torch.device, room: int | None) -> int:
    return free_memory(device) // 2 if room is None else room


def _empty(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=_NOWHERE)
