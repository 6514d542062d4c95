"""The model's own blocks on a few columns, with what the model itself would hand to them there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from ..model.hooks import dry_run, first_tensor, replaced_forward
from ..model.lens import LensModel
from .buckets import Bucket
from .prefix import KeysAndValues, Prefix
from .reading import Reading

Arguments = tuple[tuple, dict]
"""What a block is called with beside its hidden states."""


@dataclass(frozen=True)
class Suffix:
    """The columns from the label's on of the prompts `rows` of a bucket, each `patches` times: m·n
    rows of S columns, in the blocks from `start` on. `split` leaves the prefix to an attention that
    knows it (see `Prefix`)."""

    lens: LensModel
    bucket: Bucket
    rows: slice
    patches: int
    start: int
    split: bool

    @cached_property
    def prefix(self) -> dict[int, tuple[Tensor, Tensor]]:
        """Keys and values by block, those of the blocks from `start` on."""
        keys, values, rows = self.bucket.keys, self.bucket.values, self.rows
        return {i: (keys[i][rows], values[i][rows]) for i in keys if i >= self.start}

    @torch.no_grad()
    def arguments(self, begin: int, end: int, start: int) -> list[Arguments]:
        """Of the blocks from `start` on for the columns from `begin` to `end`: masks, position
        codes, and a cache that answers with the captured prefix."""
        model_map, bucket, rows = self.lens.map, self.bucket, self.rows
        length = bucket.prefix + begin
        cache = Cache(
            layers=[
                Prefix(*self.prefix.get(layer, (None, None)), length, self.patches, self.split)
                for layer in range(len(model_map.blocks))
            ]
        )
        padding = bucket.padding[rows].repeat(self.patches)
        columns = torch.arange(bucket.prefix + end)
        mask = (columns >= padding[:, None]).long()
        handed: list[Arguments] = []

        def skip(layer: int) -> Callable:
            def forward(hidden_states, *args, **kwargs):
                if layer >= start:
                    handed.append((args, kwargs))
                return hidden_states if model_map.blocks_return_tensor else (hidden_states, None)

            return forward

        embeds = torch.zeros(len(padding), end - begin, model_map.d_model, dtype=self.lens.dtype)
        arguments = dict(
            inputs_embeds=embeds.to(self.lens.device),
            attention_mask=mask.to(self.lens.device),
            past_key_values=cache,
            use_cache=True,
        )
        if model_map.accepts_positions:
            last = (bucket.prefix - padding + bucket.ends[rows].repeat(self.patches))[:, None]
            positions = (columns[length:] - padding[:, None]).minimum(last)
            arguments["position_ids"] = positions.to(self.lens.device)
        blocks = [block.module for block in model_map.blocks]
        with dry_run(self.lens.model), replaced_forward(blocks, skip):
            model_map.inner(**arguments)
        return handed

    def at_ends(self, hidden: Tensor, reading: Reading | None = None) -> Tensor:
        """Every prompt's last column, (m, n, d_model), of (m·n, S, d_model), or the places where it
        is read, (m, q, d_model)."""
        if reading is not None:
            columns = self.bucket.ends[self.rows][reading.row] - reading.back
            return hidden.unflatten(0, (self.patches, -1))[:, reading.row, columns]
        if self.bucket.even:
            last = hidden[:, -1]
        else:
            ends = self.bucket.ends[self.rows].repeat(self.patches).to(hidden.device)
            last = hidden[torch.arange(len(ends), device=hidden.device), ends]
        return last.unflatten(0, (self.patches, -1))


def last_column(block: nn.Module, hidden: Tensor, others: Arguments, last: Arguments) -> Tensor:
    """The last column's output of the last block: of the columns before it only keys and values
    are computed."""
    args, kwargs = others
    keeper = _last_prefix(args, kwargs)
    keeper.interrupts = True
    try:
        block(hidden[:, :-1], *args, **kwargs)
    except KeysAndValues as stopped:
        args, kwargs = last
        with _last_prefix(args, kwargs).after(*stopped.states):
            return first_tensor(block(hidden[:, -1:], *args, **kwargs))
    finally:
        keeper.interrupts = False
    raise AssertionError("the last block did not write its keys and values to the cache")


def _last_prefix(args: tuple, kwargs: dict) -> Prefix:
    """The last layer of the cache among a block's arguments."""
    cache = next(value for value in (*args, *kwargs.values()) if isinstance(value, Cache))
    return cast(Prefix, cache.layers[-1])
