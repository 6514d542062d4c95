"""The captured prefix as a cache layer, and attention that leaves it where it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers.cache_utils import DynamicLayer


class KeysAndValues(Exception):
    """Stops a block when its keys and values are known."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.states = keys, values


class Prefix(DynamicLayer):
    """A cache layer that always answers with its fixed prefix followed by what is new, and keeps
    nothing. The prefix (n, heads, P, width) serves `patches` times n rows.

    Its answers are marked with itself (`prefix_of`). With `split` it answers with what is new alone
    and leaves the rest to an attention that knows what to do; `met` is set by that attention.
    """

    interrupts = False
    met = False
    between: tuple[Tensor, Tensor] | None = None

    def __init__(
        self,
        keys: Tensor | None,
        values: Tensor | None,
        length: int,
        patches: int,
        split: bool = False,
    ) -> None:
        super().__init__()
        self._prefix = keys, values
        self.length, self.patches, self.split = length, patches, split
        self.is_initialized = True

    def get_seq_length(self) -> int:
        return self.length

    @contextmanager
    def after(self, keys: Tensor, values: Tensor) -> Iterator[None]:
        """Puts keys and values between the prefix and what is new."""
        self.between = keys, values
        try:
            yield
        finally:
            self.between = None

    def update(self, key_states, value_states, *args, **kwargs):
        if self.interrupts:
            raise KeysAndValues(key_states, value_states)
        if self.between is not None:
            keys, values = self.between
            key_states = torch.cat([keys, key_states], dim=-2)
            value_states = torch.cat([values, value_states], dim=-2)
        if not self.split:
            key_states, value_states = self.joined(key_states, value_states)
        key_states.prefix = value_states.prefix = self  # type: ignore[attr-defined]
        return key_states, value_states

    @property
    def states(self) -> tuple[Tensor, Tensor]:
        """Keys and values of the prefix. Raises `LookupError` where the layer was made without."""
        keys, values = self._prefix
        if keys is None or values is None:
            raise LookupError("this layer of the cache has no prefix")
        return keys, values

    @property
    def columns(self) -> int:
        """P."""
        return self.states[0].shape[2]

    def joined(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """The prefix followed by new keys and values, (m·n, heads, P+C, width) each."""
        return self._joined(self.states[0], keys), self._joined(self.states[1], values)

    def _joined(self, prefix: Tensor, new: Tensor) -> Tensor:
        if self.patches == 1:
            return torch.cat([prefix, new], dim=-2)
        rows = new.unflatten(0, (self.patches, -1))
        wide = prefix.expand(self.patches, *prefix.shape)
        return torch.cat([wide, rows], dim=-2).flatten(0, 1)


def prefix_of(keys: Tensor, values: Tensor) -> Prefix | None:
    """The `Prefix` whose answer these keys and values are, untouched since."""
    found = getattr(keys, "prefix", None)
    return found if found is getattr(values, "prefix", None) else None


def prefix_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    old_key: Tensor,
    old_value: Tensor,
    bias: Tensor | None,
    scaling: float,
) -> Tensor:
    """Softmax attention over a fixed prefix and new columns. Grouped queries stay together, and
    the prefix is not copied, repeated or differentiated.

    `query` (m·n, H, S, w), `key` and `value` (m·n, G, C, w), H a multiple of G; the prefix
    (n, G, P, w) serves m times n rows. `bias` (n or 1, H or 1, S, P+C) is added to the scaled
    products. The prefix may be of lower precision than the rest. The result is (m·n, S, H, w).
    """
    found = _PrefixAttention.apply(query, key, value, old_key, old_value, bias, scaling)
    return found  # type: ignore[return-value]


def widened(x: Tensor) -> Tensor:
    """In float32 what has less."""
    return x.float() if x.dtype.itemsize < 4 else x


@dataclass(frozen=True)
class _Layout:
    """m patches of n prompts with G key heads. Work lies as (n, G, m, ...): the patches of a prompt
    side by side, so that all of them meet its prefix in one product."""

    m: int
    n: int
    groups: int
    width: int
    old: int

    def packed(self, x: Tensor) -> Tensor:
        """(m·n, G·r, S, w) to (n·G·m, r·S, w)."""
        x = x.reshape(self.m, self.n, self.groups, -1, self.width)
        return x.permute(1, 2, 0, 3, 4).reshape(self.n * self.groups * self.m, -1, self.width)

    def unpacked(self, x: Tensor, heads: int) -> Tensor:
        """The inverse of `packed`, to (m·n, heads, S, w)."""
        x = x.view(self.n, self.groups, self.m, -1, self.width).permute(2, 0, 1, 3, 4)
        return x.reshape(self.m * self.n, heads, -1, self.width)

    def products(self, rows: Tensor, old: Tensor, new: Tensor) -> Tensor:
        """(n·G·m, R, w) with (n·G, P, w) and (n·G·m, C, w) to (n·G·m, R, P+C)."""
        before = torch.bmm(rows.view(len(old), self.m * rows.shape[1], self.width), old.mT)
        return torch.cat([before.view(*rows.shape[:2], self.old), torch.bmm(rows, new.mT)], dim=-1)

    def mixed(self, weights: Tensor, old: Tensor, new: Tensor) -> Tensor:
        """(n·G·m, R, P+C) with the same to (n·G·m, R, w)."""
        before = weights[..., : self.old].reshape(len(old), self.m * weights.shape[1], self.old)
        mixed = torch.bmm(before, old).view(*weights.shape[:2], self.width)
        return mixed.baddbmm_(weights[..., self.old :], new)


class _PrefixAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query, key, value, old_key, old_value, bias, scaling) -> Tensor:
        n, groups, old, width = old_key.shape
        total, heads, columns, _ = query.shape
        ctx.scaling, ctx.heads = scaling, heads
        ctx.layout = it = _Layout(total // n, n, groups, width, old)
        q, k, v = it.packed(query), it.packed(key), it.packed(value)
        old_k, old_v = (x.reshape(n * groups, old, width) for x in (old_key, old_value))
        scores = it.products(q, widened(old_k), k).mul_(scaling)
        if bias is not None:
            one = bias.shape[1] == 1
            bias = bias[:, :, None] if one else bias.unflatten(1, (groups, -1))
            scores.view(n, groups, it.m, -1, columns, scores.shape[-1]).add_(bias[:, :, None])
        weights = torch.softmax(scores, -1)
        ctx.save_for_backward(q, k, v, old_k, old_v, weights)
        mixed = it.mixed(weights, widened(old_v), v)
        return it.unpacked(mixed, heads).transpose(1, 2).contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor):  # type: ignore[override]
        q, k, v, old_k, old_v, weights = ctx.saved_tensors
        it: _Layout = ctx.layout
        grad = it.packed(grads[0].transpose(1, 2))
        pulled = it.products(grad, widened(old_v), v)
        pulled = torch.ops.aten._softmax_backward_data(pulled, weights, -1, weights.dtype)
        pulled.mul_(ctx.scaling)
        to_query = it.unpacked(it.mixed(pulled, widened(old_k), k), ctx.heads)
        to_key = it.unpacked(torch.bmm(pulled[..., it.old :].mT, q), it.groups)
        to_value = it.unpacked(torch.bmm(weights[..., it.old :].mT, grad), it.groups)
        return to_query, to_key, to_value, None, None, None, None
