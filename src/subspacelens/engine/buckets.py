"""What a replay starts from: the residual stream where a patch enters, and what came before."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from ..core.site import EXPERT, Site
from ..core.stored import StoredRows, taken
from ..model.hooks import Place, on_input, on_output
from ..model.mapping.values import ModelMap

Entry = tuple[str, int]
"""A place in the residual stream: `("pre", l)` before block l, `("mid", l)` inside it."""


def entry_of(model_map: ModelMap, site: Site) -> Entry:
    """Where the replay of a patch at `site` starts. Raises `SiteError` if the site is not there."""
    return model_map.block(site).entries[site.stream].start(site.layer)


@dataclass(frozen=True)
class Bucket:
    """Pairs whose base prompts are replayed together.

    `pairs` (n,) are positions in the pair set; a pair that is read in several rows (`Pair.reads`)
    has them one after the other. `padding` (n,) counts unused columns on the left of
    the prefix. `ends` (n,) is where the last column is among the S from the label's on; what
    follows it is padding, which no earlier column sees. `entries[e]` (n, S, d) is the residual
    stream at a place. `keys[l]` and `values[l]` (n, heads, P, width) belong to the columns before
    the label's. These three are in memory, or in a file and read by rows.
    """

    pairs: Tensor
    padding: Tensor
    ends: Tensor
    entries: Mapping[Entry, Tensor | StoredRows]
    keys: Mapping[int, Tensor | StoredRows]
    values: Mapping[int, Tensor | StoredRows]

    def select(self, indices: Tensor) -> Bucket | None:
        """Those of the pairs at `indices` (m,), each as often as it is there, renamed to its place
        in `indices`; None if there are none. Rows keep their order, but those of one pair stay
        together."""
        rows, pairs = (self.pairs[:, None] == indices).nonzero(as_tuple=True)
        if len(rows) == 0:
            return None
        if self.count < len(self.pairs):
            order = pairs.argsort(stable=True)
            rows, pairs = rows[order], pairs[order]

        def of(tensors: Mapping) -> dict:
            return {name: taken(x, rows) for name, x in tensors.items()}

        return Bucket(
            pairs,
            self.padding[rows],
            self.ends[rows],
            of(self.entries),
            of(self.keys),
            of(self.values),
        )

    def holding(self, hold: Callable[[Tensor | StoredRows, int], Tensor | StoredRows]) -> Bucket:
        """The same with `hold(x, layer)` in place of each entry, keys and values x."""
        return replace(
            self,
            entries={(kind, i): hold(x, i) for (kind, i), x in self.entries.items()},
            keys={i: hold(x, i) for i, x in self.keys.items()},
            values={i: hold(x, i) for i, x in self.values.items()},
        )

    @property
    def held(self) -> list[tuple[Tensor | StoredRows, int]]:
        """Entries, keys and values, each with its layer."""
        entries = [(x, layer) for (_, layer), x in self.entries.items()]
        return entries + [(x, i) for each in (self.keys, self.values) for i, x in each.items()]

    @cached_property
    def first_rows(self) -> Tensor:
        """Where the rows of each pair begin, and where all end, (pairs + 1,)."""
        _, counts = self.pairs.unique_consecutive(return_counts=True)
        return torch.nn.functional.pad(counts.cumsum(0), (1, 0))

    @property
    def count(self) -> int:
        """How many pairs it has."""
        return len(self.first_rows) - 1

    @property
    def stored(self) -> bool:
        """Whether they are in a file."""
        return isinstance(next(iter(self.entries.values())), StoredRows)

    @property
    def suffix(self) -> int:
        return next(iter(self.entries.values())).shape[1]

    @property
    def even(self) -> bool:
        """No prompt has fewer columns than another from the label's on."""
        return bool((self.ends == self.suffix - 1).all())

    @property
    def prefix(self) -> int:
        return int(next(iter(self.keys.values())).shape[2]) if self.keys else 0


def place_of(model_map: ModelMap, site: Site) -> tuple[Place, nn.Module]:
    """The hook (`on_input`, `on_output`, or that of an expert) and the module that see a site's
    activation."""
    block = model_map.block(site)
    if site.stream == EXPERT and site.head is not None:
        return block.routed.place(site.head), block.routed.module
    if site.stream == "resid_pre":
        return on_input, block.module
    if site.stream == "resid_mid":
        return on_input, block.middle
    if site.stream == "resid_post":
        return on_output, block.module
    reads = site.stream in ("mlp_act", "head_z")
    return (on_input if reads else on_output), block.projection(site.stream)


def selected(buckets: Iterable[Bucket], indices: Tensor) -> tuple[Bucket, ...]:
    """`Bucket.select` of each, without those of which nothing is left."""
    return tuple(part for bucket in buckets if (part := bucket.select(indices)) is not None)
