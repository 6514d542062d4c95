"""What a replay starts from: the residual stream where a patch enters, and what came before."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from ..core.site import Site
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

    `pairs` (n,) are positions in the pair set. `padding` (n,) counts unused columns on the left of
    the prefix. `ends` (n,) is where the last column is among the S from the label's on; what
    follows it is padding, which no earlier column sees. `entries[e]` (n, S, d) is the residual
    stream at a place. `keys[l]` and `values[l]` (n, heads, P, width) belong to the columns before
    the label's.
    """

    pairs: Tensor
    padding: Tensor
    ends: Tensor
    entries: dict[Entry, Tensor]
    keys: dict[int, Tensor]
    values: dict[int, Tensor]

    def select(self, indices: Tensor) -> Bucket | None:
        """Those of the pairs at `indices` (m,), each as often as it is there, renamed to its place
        in `indices`; None if there are none. Rows keep their order."""
        rows, pairs = (self.pairs[:, None] == indices).nonzero(as_tuple=True)
        if len(rows) == 0:
            return None

        def of(tensors: dict) -> dict:
            return {name: x[rows.to(x.device)] for name, x in tensors.items()}

        return Bucket(
            pairs,
            self.padding[rows],
            self.ends[rows],
            of(self.entries),
            of(self.keys),
            of(self.values),
        )

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
    """The hook (`on_input` or `on_output`) and the module that see a site's activation."""
    block = model_map.block(site)
    if site.stream == "resid_pre":
        return on_input, block.module
    if site.stream == "resid_mid":
        return on_input, block.middle
    if site.stream == "resid_post":
        return on_output, block.module
    reads = site.stream in ("mlp_act", "head_z")
    return (on_input if reads else on_output), block.linear(site.stream).module


def selected(buckets: Iterable[Bucket], indices: Tensor) -> tuple[Bucket, ...]:
    """`Bucket.select` of each, without those of which nothing is left."""
    return tuple(part for bucket in buckets if (part := bucket.select(indices)) is not None)
