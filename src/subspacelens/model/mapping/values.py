"""Where everything is in a model: its blocks, its projections, the way to its logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ...core.errors import SiteError
from ...core.site import EXPERT, Site
from .ways import Way

if TYPE_CHECKING:
    from .experts import Experts


@dataclass(frozen=True)
class Linear:
    """A linear map of the model: `module` computes W x + b; `weight` is W, shape (out, in)."""

    name: str
    module: nn.Module
    transposed: bool

    @property
    def weight(self) -> Tensor:
        weight = self.module.get_parameter("weight").detach()
        return weight.T if self.transposed else weight


@dataclass(frozen=True)
class Reader:
    """A linear map that reads the residual stream at its own column: `linear` after `norm` (None
    where it reads the raw stream), before (`mid` False) or after (`mid` True) the attention of its
    block. `attention`: it makes queries, keys or values; else it belongs to the MLP."""

    linear: Linear
    norm: nn.Module | None
    mid: bool
    attention: bool


@dataclass(frozen=True)
class Heads:
    """Where the queries, keys or values of a block are: head h is in `width` numbers from
    `starts[h]` on of what `linear` puts out. `mixed` says why single heads cannot be told apart,
    None where they can."""

    linear: Linear
    starts: tuple[int, ...]
    width: int
    mixed: str | None = None

    def part(self, head: int | None = None) -> slice | Tensor:
        """One head, or all of them, head by head, in the output."""
        starts = self.starts if head is None else self.starts[head : head + 1]
        first, width = starts[0], self.width * len(starts)
        if starts == tuple(range(first, first + width, self.width)):
            return slice(first, first + width)
        return torch.cat([torch.arange(start, start + self.width) for start in starts])


@dataclass(frozen=True, kw_only=True)
class Block:
    """One transformer block: the output projections of its attention and of its MLP, the module
    that reads the residual stream between them, and every linear map that reads the stream. Where
    there is no single down-projection, `mixture` is the module that adds its output to the stream
    in place of one, such as a mixture of experts; else None. `experts` are those of it, where
    what each computes was proven.
    `projected` has the heads of `attn_q`, `attn_k` and `attn_v`. `entries` maps each stream that
    was proven to the way in which a change of it enters a replay; `missing` maps the others to the
    reason."""

    module: nn.Module
    out_proj: Linear
    down_proj: Linear | None
    mixture: nn.Module | None
    experts: Experts | None
    mid_reader: nn.Module | None
    readers: tuple[Reader, ...]
    n_heads: int
    projected: dict[str, Heads]
    entries: dict[str, Way]
    missing: dict[str, str]

    @property
    def down(self) -> Linear:
        """`down_proj`. Raises `SiteError` for a block that has no single one."""
        if self.down_proj is None:
            raise SiteError(self.missing["mlp_act"])
        return self.down_proj

    @property
    def routed(self) -> Experts:
        """`experts`. Raises `SiteError` for a block in which none were proven."""
        if self.experts is None:
            raise SiteError(self.missing.get(EXPERT, "the block has no experts"))
        return self.experts

    @property
    def middle(self) -> nn.Module:
        """`mid_reader`. Raises `SiteError` for a block without a stream after its attention."""
        if self.mid_reader is None:
            raise SiteError(self.missing["resid_mid"])
        return self.mid_reader

    def linear(self, stream: str) -> Linear:
        """The projection that reads `head_z` or `mlp_act` and writes `attn_out` or `mlp_out`, or
        that makes queries, keys or values."""
        if stream in self.projected:
            return self.projected[stream].linear
        return self.down if stream.startswith("mlp") else self.out_proj

    def projection(self, stream: str) -> nn.Module:
        """The module of `linear`, or for `mlp_out` a mixture of experts."""
        if stream == "mlp_out" and self.mixture is not None:
            return self.mixture
        return self.linear(stream).module

    def heads(self, stream: str) -> int:
        """How many heads there are in a stream of `HEADED`, or experts."""
        if stream == EXPERT:
            return self.routed.count
        return self.n_heads if stream == "head_z" else len(self.projected[stream].starts)


@dataclass(frozen=True)
class Tail:
    """From the last block's output to the logits: `norms` in order, the unembedding, and the
    elementwise `finish` (identity, a scale or a soft cap) that the model applies to its logits."""

    norms: tuple[nn.Module, ...]
    head: Linear
    finish: Callable[[Tensor], Tensor]

    def normed(self, hidden: Tensor) -> Tensor:
        """(..., d) last block output to (..., d) what the unembedding reads."""
        for norm in self.norms:
            hidden = norm(hidden)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., d) to (..., vocabulary), in nats."""
        return self.finish(self.head.module(self.normed(hidden)))

    def logits_of(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Logits of few tokens only: hidden (..., n, d), tokens (n, m) ids, result (..., n, m)."""
        normed = self.normed(hidden)
        rows = self.head.weight[tokens.to(self.head.weight.device)]
        logits = torch.einsum("...nd,nmd->...nm", normed, rows.to(normed.device))
        bias = getattr(self.head.module, "bias", None)
        if bias is not None:
            logits = logits + bias.detach()[tokens]
        return self.finish(logits)


@dataclass(frozen=True, kw_only=True)
class ModelMap:
    """Where everything is. `inner` is the module that holds the blocks and is called with
    `inputs_embeds`; `accepts_positions` says whether it takes `position_ids`. `pads` says whether
    padding on the left was proven to change nothing; where it was not, only prompts of equal length
    share a batch. `cached` has by block the (heads, width) of the keys and of the values that it
    keeps of a column."""

    inner: nn.Module
    blocks: tuple[Block, ...]
    tail: Tail
    d_model: int
    accepts_positions: bool
    blocks_return_tensor: bool
    pads: bool
    cached: tuple[tuple[tuple[int, int], tuple[int, int]], ...]
    names: dict[str, str] = field(repr=False)

    def block(self, site: Site) -> Block:
        """The block of a site. Raises `SiteError` for a layer or a stream that is not there."""
        if not 0 <= site.layer < len(self.blocks):
            raise SiteError(
                f"site {site}: the model has layers 0 to {len(self.blocks) - 1}, not {site.layer}"
            )
        block = self.blocks[site.layer]
        if site.stream not in block.entries:
            reason = block.missing.get(site.stream, f"block {site.layer} has no experts")
            raise SiteError(f"site {site}: {reason}")
        if site.head is not None:
            _check_head(block, site, site.head)
        return block

    def device_at(self, layer: int) -> torch.device:
        """Where the weights of a block are; behind the last block, those of the last."""
        block = self.blocks[min(layer, len(self.blocks) - 1)]
        return next(block.module.parameters()).device

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """Where the weights of the blocks and of the unembedding are, each device once."""
        blocks = (self.device_at(layer) for layer in range(len(self.blocks)))
        return tuple(dict.fromkeys((*blocks, self.tail.head.weight.device)))

    def dim(self, site: Site) -> int:
        """Width of the activation at a site."""
        block = self.block(site)
        if site.stream == "mlp_act":
            return block.down.weight.shape[1]
        if site.stream == "head_z":
            width = block.out_proj.weight.shape[1]
            return width if site.head is None else width // block.n_heads
        if site.stream == EXPERT:
            return block.routed.width
        if site.stream in block.projected:
            heads = block.projected[site.stream]
            return heads.width * (len(heads.starts) if site.head is None else 1)
        return self.d_model

    def writer(self, site: Site) -> Tensor | None:
        """The matrix W (d_model, dim) by which the site writes to the residual stream, or None
        where the site is the residual stream or its write is not linear (a norm follows). What an
        expert writes by it counts times the token's weight of that expert."""
        block = self.block(site)
        if site.stream == "mlp_act":
            return block.down.weight
        if site.stream == "head_z":
            weight = block.out_proj.weight
            return weight if site.head is None else weight[:, self.head_slice(site)]
        if site.stream == EXPERT and site.head is not None:
            return block.routed.writer(site.head)
        return None

    def linear_writer(self, site: Site) -> Tensor:
        """`writer` of a site that must have one. Raises `SiteError` for a site that does not write
        to the residual stream by one linear map of its own."""
        writer = self.writer(site)
        if writer is None:
            raise SiteError(
                f"site {site} does not write to the residual stream by one linear map: "
                "take an mlp_act or head_z site"
            )
        return writer

    def head_slice(self, site: Site) -> slice:
        """Columns of `head_z` that belong to the site."""
        if site.head is None:
            return slice(None)
        width = self.dim(site)
        return slice(site.head * width, (site.head + 1) * width)

    def part(self, site: Site) -> slice | Tensor:
        """Where the site is in the tensor that its hook sees (see `place_of`)."""
        if site.stream == EXPERT:
            return slice(None)
        heads = self.block(site).projected.get(site.stream)
        return self.head_slice(site) if heads is None else heads.part(site.head)

    @cached_property
    def streams(self) -> dict[str, str]:
        """Every stream, with `yes` or the reason why block 0 lacks it."""
        return {name: "yes" for name in self.blocks[0].entries} | self.blocks[0].missing

    def __repr__(self) -> str:
        streams = " ".join(self.blocks[0].entries)
        return f"ModelMap({len(self.blocks)} blocks, d_model {self.d_model}: {streams})"


def _check_head(block: Block, site: Site, head: int) -> None:
    """Raises `SiteError` for a head that is not there, or that is not one of its own."""
    count, name = block.heads(site.stream), site.stream
    if name == EXPERT and head >= count:
        raise SiteError(f"site {site}: the block has experts 0 to {count - 1}, not {head}")
    kind = {"attn_q": "query ", "attn_k": "key ", "attn_v": "value "}.get(name, "")
    if head >= count:
        shared = block.n_heads // count
        each = f", each for {shared} query heads" if shared > 1 else ""
        raise SiteError(
            f"site {site}: the block has {kind}heads 0 to {count - 1}{each}, not {head}"
        )
    if name in block.projected and block.projected[name].mixed is not None:
        raise SiteError(f"site {site}: {block.projected[name].mixed}")
