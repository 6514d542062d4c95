"""Replays only what a patch can change: later blocks, later columns, the last column's logits.

The Hugging Face blocks themselves run, one after the other, against the captured prefix, with the
masks and position codes that the model itself makes for such a suffix. `Replay` of no patch equals
the full forward pass; of a patch, the full pass with a plain hook at the same place, gradients
included.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from ..core.errors import SiteError
from ..core.progress import note
from ..core.site import Site
from ..model.hooks import check_ready, dry_run, first_tensor, muted, replaced_forward
from ..model.lens import LensModel
from ..tasks.pairset import PairSet
from .buckets import Bucket, Outcomes, answers_of, entry_of, outcomes_of, place_of
from .capture import Capture
from .fused import kernels_of
from .prefix import KeysAndValues, Prefix


@dataclass(frozen=True)
class Unit:
    """A piece of work that fits the memory budget: some patches of some pairs of one bucket.
    `pairs` (n,) are positions in the pair set."""

    bucket: int
    patches: slice
    rows: slice
    pairs: Tensor


class Replay:
    """Patches of one site over one capture.

    `memory` is the budget in bytes for activations of one unit of work, by default a quarter of
    what is free. Raises `SiteError` if the site was not captured.
    """

    def __init__(
        self, lens: LensModel, captured: Capture, site: Site, *, memory: int | None = None
    ) -> None:
        if site not in captured.base:
            raise SiteError(
                f"site {site} is not in the capture of {', '.join(map(str, captured.sites))}"
            )
        self.lens, self.captured, self.site = lens, captured, site
        self.memory = memory or psutil.virtual_memory().available // 4
        self.entry = entry_of(lens.map, site)
        self.kind = lens.map.block(site).entries[site.stream]
        self.writer = lens.map.writer(site) if self.kind in ("post", "mid") else None
        self.buckets = captured.buckets[site.label]
        self.answers = answers_of(captured.pairs)
        self.kernels = kernels_of(lens)
        self._arguments: dict[tuple[int, int, int, int], tuple] = {}

    def subset(self, indices: Tensor) -> Replay:
        """The same for the pairs at `indices` only, in that order."""
        pairs = self.captured.pairs
        chosen = PairSet(pairs.name, pairs.split, tuple(pairs.pairs[i] for i in indices.tolist()))
        captured = self.captured.select(chosen, indices)
        return Replay(self.lens, captured, self.site, memory=self.memory)

    def outcomes(self, delta: Tensor) -> Outcomes:
        """Outcomes of adding `delta` (m, n, dim) or (n, dim) to the base activations: m patches of
        all n pairs. Results are (m, n) or (n,), float32, without gradients."""
        stacked = delta if delta.ndim == 3 else delta[None]
        shape = stacked.shape[:2]
        logit_diff = torch.empty(shape)
        top = torch.empty(shape, dtype=torch.long)
        with torch.no_grad():
            for unit in self.units(shape[0], gradients=False):
                hidden = self.hidden(unit, stacked[unit.patches][:, unit.pairs.to(delta.device)])
                logits = self.lens.map.tail.logits(hidden).float()
                found = outcomes_of(logits, self.answers[unit.pairs].to(logits.device))
                logit_diff[unit.patches, unit.pairs] = found.logit_diff.cpu()
                top[unit.patches, unit.pairs] = found.top.cpu()
        if delta.ndim == 2:
            return Outcomes(logit_diff[0], top[0])
        return Outcomes(logit_diff, top)

    def logit_diff(self, unit: Unit, delta: Tensor) -> Tensor:
        """logit(answer) - logit(target) in nats, (m, n), of one unit, differentiable in `delta`
        (m, n, dim); only the two rows of the unembedding are used."""
        logits = self.lens.map.tail.logits_of(self.hidden(unit, delta), self.answers[unit.pairs])
        return logits[..., 0] - logits[..., 1]

    def logits(self, unit: Unit, delta: Tensor) -> Tensor:
        """Logits of the whole vocabulary at the last column, (m, n, vocabulary)."""
        return self.lens.map.tail.logits(self.hidden(unit, delta))

    def units(self, patches: int = 1, *, gradients: bool = True) -> list[Unit]:
        """Splits `patches` x pairs into units under the memory budget, in a fixed order."""
        units = []
        for index, bucket in enumerate(self.buckets):
            count = len(bucket.pairs)
            fit = max(1, self.memory // self._bytes_per_row(bucket, gradients))
            rows = min(count, fit)
            together = max(1, fit // count) if rows == count else 1
            for start in range(0, count, rows):
                piece = slice(start, min(start + rows, count))
                for first in range(0, patches, together):
                    which = slice(first, min(first + together, patches))
                    units.append(Unit(index, which, piece, bucket.pairs[piece]))
        if len(units) > len(self.buckets):
            note(
                f"{self.site}: {patches} x {len(self.captured.pairs)} replays in {len(units)} "
                f"pieces, to stay under {self.memory / 2**20:,.0f} MiB"
            )
        return units

    def _bytes_per_row(self, bucket: Bucket, gradients: bool) -> int:
        """Upper estimate of what one replayed row needs: about 1.5 times what was measured."""
        model_map = self.lens.map
        block, length = model_map.blocks[-1], bucket.suffix + bucket.prefix
        if block.down_proj is None:
            inner = 4 * max(max(p.shape[-2:]) for p in block.module.parameters())
        else:
            inner = block.down_proj.weight.shape[1]
        column = 10 * model_map.d_model + 5 * inner + 4 * block.n_heads * length
        copied = 0 if self.kernels.split else 4 * bucket.prefix * model_map.d_model
        layers = len(model_map.blocks) - self.entry[1] if gradients else 1
        size = torch.finfo(self.lens.dtype).bits // 8
        vocabulary = model_map.tail.head.weight.shape[0]
        return size * max(1, layers) * (bucket.suffix * column + copied) + (size + 4) * vocabulary

    def hidden(self, unit: Unit, delta: Tensor) -> Tensor:
        """The last block's output at the last column, (m, n, d_model), when `delta` (m, n, dim) is
        added to the base activations of the unit's pairs; differentiable in `delta`."""
        check_ready(self.lens.model)
        bucket, model_map = self.buckets[unit.bucket], self.lens.map
        patches = len(delta)
        entry = bucket.entries[self.entry][unit.rows]
        entry = entry.expand(patches, *entry.shape).flatten(0, 1)
        start = self.entry[1]
        flat = delta.to(entry).flatten(0, 1)
        if self.kind == "hook":
            hidden = entry
        else:
            write = flat if self.writer is None else flat @ self.writer.T.to(flat)
            hidden = torch.cat([entry[:, :1] + write[:, None], entry[:, 1:]], dim=1)
        if start == len(model_map.blocks):
            return _at_ends(hidden, bucket, unit, patches)
        whole, others, last = self._block_arguments(unit, patches, bucket)
        final = len(model_map.blocks) - 1
        with self.kernels.used():
            for layer in range(start, final + 1):
                block = model_map.blocks[layer].module
                if layer == final and others is not None:
                    hidden = _last_column(block, hidden, others, last)
                    break
                args, kwargs = whole[layer - start]
                with self._around(layer, flat):
                    hidden = first_tensor(block(hidden, *args, **kwargs))
        return _at_ends(hidden, bucket, unit, patches)

    def _around(self, layer: int, flat: Tensor) -> AbstractContextManager[None]:
        """How a patch enters the first replayed block, where it is not in the block's input."""
        if layer > self.entry[1] or self.kind in ("pre", "post"):
            return nullcontext()
        if self.kind == "mid":
            return muted(self.lens.map.blocks[layer].out_proj.module)
        return self._adding(flat)

    def _adding(self, flat: Tensor):
        """Adds (rows, dim) at the site's first suffix column, inside its block."""
        place, module = place_of(self.lens.map, self.site)
        columns = self.lens.map.head_slice(self.site)

        def add(x: Tensor) -> Tensor:
            rows = x.reshape(len(flat), -1, x.shape[-1])
            change = torch.zeros_like(rows)
            change[:, 0, columns] = flat
            return (rows + change).reshape(x.shape)

        return place(module, add)

    def _block_arguments(self, unit: Unit, patches: int, bucket: Bucket) -> tuple:
        """What the model itself hands to each block for this suffix: masks, position codes, and a
        cache that answers with the captured prefix. Asked for once per unit shape.

        Of the last block only the last column's output is needed; so for longer suffixes of one
        length there are also its arguments for the columns before the last, and for it alone.
        """
        key = (unit.bucket, patches, unit.rows.start, unit.rows.stop)
        if key not in self._arguments:
            final, suffix = len(self.lens.map.blocks) - 1, bucket.suffix
            with torch.no_grad():
                whole = self._ask(unit, patches, bucket, 0, suffix, self.entry[1])
                others = last = None
                if (
                    suffix > 1
                    and bucket.even
                    and (final > self.entry[1] or self.kind in ("pre", "post"))
                ):
                    (others,) = self._ask(unit, patches, bucket, 0, suffix - 1, final)
                    (last,) = self._ask(unit, patches, bucket, suffix - 1, suffix, final)
            self._arguments[key] = (whole, others, last)
        return self._arguments[key]

    def _ask(
        self, unit: Unit, patches: int, bucket: Bucket, begin: int, end: int, start: int
    ) -> list:
        """Arguments of the blocks from `start` on for the suffix columns from `begin` to `end`."""
        model_map = self.lens.map
        count, suffix = len(unit.pairs), end - begin
        prefix = {
            layer: (keys[unit.rows], bucket.values[layer][unit.rows])
            for layer, keys in bucket.keys.items()
        }
        length = bucket.prefix + begin
        cache = Cache(
            layers=[
                Prefix(*prefix.get(layer, (None, None)), length, patches, self.kernels.split)
                for layer in range(len(model_map.blocks))
            ]
        )
        padding = bucket.padding[unit.rows].repeat(patches)
        columns = torch.arange(length + suffix)
        mask = (columns >= padding[:, None]).long().to(self.lens.device)
        found: list = []

        def skip(layer: int) -> Callable:
            def forward(hidden_states, *args, **kwargs):
                if layer >= start:
                    found.append((args, kwargs))
                return hidden_states if returns_tensor else (hidden_states, None)

            return forward

        returns_tensor = self.lens.map.blocks_return_tensor
        embeds = torch.zeros(count * patches, suffix, model_map.d_model, dtype=self.lens.dtype)
        arguments = dict(
            inputs_embeds=embeds.to(self.lens.device),
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
        )
        if model_map.accepts_positions:
            last = (length - padding + bucket.ends[unit.rows].repeat(patches) - begin)[:, None]
            positions = (columns[length:] - padding[:, None]).minimum(last)
            arguments["position_ids"] = positions.to(self.lens.device)
        blocks = [block.module for block in model_map.blocks]
        with dry_run(self.lens.model), replaced_forward(blocks, skip):
            model_map.inner(**arguments)
        return found


def _at_ends(hidden: Tensor, bucket: Bucket, unit: Unit, patches: int) -> Tensor:
    """Every prompt's last column, (m, n, d_model), of (m n, S, d_model)."""
    if bucket.even:
        found = hidden[:, -1]
    else:
        ends = bucket.ends[unit.rows].repeat(patches).to(hidden.device)
        found = hidden[torch.arange(len(ends), device=hidden.device), ends]
    return found.unflatten(0, (patches, len(unit.pairs)))


def _last_column(block: nn.Module, hidden: Tensor, others: tuple, last: tuple) -> Tensor:
    """The last column's output of the last block: of the columns before it only keys and values
    are computed."""
    args, kwargs = others
    keeper = _last_prefix(args, kwargs)
    keeper.interrupts = True
    try:
        block(hidden[:, :-1], *args, **kwargs)
    except KeysAndValues as found:
        args, kwargs = last
        with _last_prefix(args, kwargs).after(*found.states):
            return first_tensor(block(hidden[:, -1:], *args, **kwargs))
    finally:
        keeper.interrupts = False
    raise AssertionError("the last block did not write its keys and values to the cache")


def _last_prefix(args: tuple, kwargs: dict) -> Prefix:
    """The last layer of the cache among a block's arguments."""
    cache = next(value for value in (*args, *kwargs.values()) if isinstance(value, Cache))
    layer = cache.layers[-1]
    assert isinstance(layer, Prefix)
    return layer
