"""Faster forms of two small parts of a block, used only while replaying and only where proven.

A replayed suffix is short, so that norms and attention cost as much as memory traffic and dispatch
make them cost. `RMSNorm` does in few passes what Transformers writes as many small operations;
`packed_attention` keeps grouped queries together instead of repeating keys and values, and does
not copy the captured prefix for every replay (`prefix_attention`). Both are swapped in by
`Fused.used()` and gone afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, DynamicCache
from transformers.cache_utils import Cache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from ..core.progress import note
from ..model.hooks import first_tensor, replaced_forward
from ..model.lens import LensModel
from .prefix import Prefix, prefix_attention, prefix_of, widened

ATTENTION = "subspacelens_packed"
LARGEST_SCORES = 2**16
"""Columns times keys beyond which the scores are not written out."""


class RMSNorm(torch.autograd.Function):
    """x gain / sqrt(mean(x²) + eps) over the last dimension; differentiable in x alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        mean = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        scale = mean.add_(eps).rsqrt_()
        ctx.save_for_backward(x, gain, scale)
        return (x * scale).mul_(gain)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        x, gain, scale = ctx.saved_tensors
        pulled = grads[0] * gain
        along = torch.linalg.vecdot(pulled, x)[..., None].mul_(scale.pow(3)).div_(-x.shape[-1])
        return pulled.mul_(scale).addcmul_(x, along), None, None


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of queries (n, H, S, w) over keys and values (n, G, T, w), H a multiple of G, as
    Transformers' attention interface asks for it; what a split `Prefix` left out is found there.
    Low precision is computed in float32, as PyTorch's own does inside: scores that are rounded to
    8 bits are wrong by tenths of a nat.
    Falls back on Transformers' own function for whatever it does not know."""
    prefix = prefix_of(key, value)
    if prefix is not None:
        prefix.met = True
        prefix = prefix if prefix.split else None
    unknown = any(kwargs.get(name) is not None for name in ("position_bias", "softcap", "s_aux"))
    count, heads, columns, width = query.shape
    groups, keys = key.shape[1], key.shape[2] + (prefix.columns if prefix else 0)
    large = columns * keys > LARGEST_SCORES
    if unknown or large or dropout or heads % groups or value.shape[-1] != width:
        if prefix is not None:
            key, value = prefix.joined(key, value)
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **kwargs
        )  # type: ignore[return-value]
    scale = width**-0.5 if scaling is None else scaling
    dtype = query.dtype
    query, key, value = widened(query), widened(key), widened(value)
    bias = _bias(attention_mask, columns, keys, query)
    if prefix is not None:
        bias = None if bias is None else bias[: count // prefix.patches]
        found = prefix_attention(query, key, value, *prefix.states, bias, scale)
        return found.to(dtype), None
    packed = (query * scale).reshape(count * groups, -1, width)
    scores = torch.bmm(packed, key.reshape(count * groups, keys, width).mT)
    if bias is not None:
        bias = bias[:, :, None] if bias.shape[1] == 1 else bias.unflatten(1, (groups, -1))
        scores = (scores.view(count, groups, -1, columns, keys) + bias).view(scores.shape)
    weights = torch.softmax(scores, dim=-1)
    mixed = torch.bmm(weights, value.reshape(count * groups, keys, width))
    mixed = mixed.view(count, heads, columns, width).to(dtype)
    return mixed.transpose(1, 2).contiguous(), None


def _bias(mask: Tensor | None, columns: int, keys: int, like: Tensor) -> Tensor | None:
    """An additive mask (n or 1, heads or 1, S, T), or None where every column sees every key. It is
    made once and kept with the mask."""
    if mask is None:
        if columns == 1:
            return None
        mask = torch.ones(columns, keys, dtype=torch.bool, device=like.device).tril(keys - columns)
        mask = mask[None, None]
    if mask.dtype != torch.bool:
        return mask
    bias = getattr(mask, "bias", None)
    if bias is None or bias.dtype != like.dtype:
        lowest = torch.finfo(like.dtype).min
        bias = torch.zeros(mask.shape, dtype=like.dtype, device=like.device)
        mask.bias = bias.masked_fill_(~mask, lowest)  # type: ignore[attr-defined]
    return bias


AttentionInterface.register(ATTENTION, packed_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


@dataclass(frozen=True)
class Fused:
    """What of a model can be replaced while replaying. `split` says whether its attention may be
    given a split `Prefix`."""

    norms: tuple[tuple[nn.Module, Callable[[Tensor], Tensor]], ...]
    configs: tuple[Any, ...]
    split: bool = False

    @contextmanager
    def used(self) -> Iterator[None]:
        """The faster forms, for as long as the context lasts."""
        with ExitStack() as stack:
            modules = [module for module, _ in self.norms]
            stack.enter_context(replaced_forward(modules, lambda i: self.norms[i][1]))
            for config in self.configs:
                before = config._attn_implementation_internal
                stack.callback(setattr, config, "_attn_implementation_internal", before)
                config._attn_implementation_internal = ATTENTION
            yield


_known: WeakKeyDictionary[nn.Module, dict[tuple[int, ...], Fused]] = WeakKeyDictionary()


def fused_parts(lens: LensModel) -> Fused:
    """What was proven on this model; the proof is made once for the same modules."""
    blocks = [block.module for block in lens.map.blocks]
    proved = _known.setdefault(lens.model, {})
    modules = tuple(id(module) for block in blocks for module in block.modules())
    if modules not in proved:
        norms = [m for block in blocks for m in block.modules() if _is_leaf_with_gain(m)]
        norms += [m for m in lens.map.tail.norms if _is_leaf_with_gain(m)]
        proven = ((m, _fused(m)) for m in dict.fromkeys(norms))
        fast = Fused((), tuple(_attention_configs(blocks)))
        same = _changes_nothing(lens, fast)
        if fast.configs and not same:
            note(f"replays use the attention of {lens.id} as it is: ours was not proven to be it")
        proved[modules] = Fused(
            tuple((m, fused) for m, fused in proven if fused is not None),
            fast.configs if same else (),
            same and _may_split(lens, fast),
        )
    return proved[modules]


def _changes_nothing(lens: LensModel, parts: Fused) -> bool:
    """Whether a full pass, of a prompt alone and of two that share a padded batch, is the same
    with the faster forms as without: not every model that names `sdpa` asks the attention
    interface."""
    size = lens.map.tail.head.weight.shape[0]
    ids = torch.randint(0, size, (2, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :2] = 0

    def logits() -> Tensor:
        arguments = dict(input_ids=ids.to(lens.device), use_cache=False)
        alone = lens.model(**arguments).logits[:, -1]
        padded = lens.model(**arguments, attention_mask=mask.to(lens.device)).logits[:, -1]
        return torch.cat([alone, padded]).double()

    with torch.no_grad():
        before = logits()
        with parts.used():
            after = logits()
    return bool((before - after).norm() <= _tolerance(lens) * before.norm())


def _tolerance(lens: LensModel) -> float:
    """By how much two right attentions may differ after all blocks, relative to the norm. In low
    precision the rounding of each block's stream adds up as their root: on random models of twenty
    architectures it is half of this, as much as the model itself differs from float64, and an
    attention that is scaled wrongly by a fifth differs by more."""
    known = {torch.float64: 1e-6, torch.float32: 1e-3}
    if lens.dtype in known:
        return known[lens.dtype]
    return 2 * torch.finfo(lens.dtype).eps * len(lens.map.blocks) ** 0.5


def _may_split(lens: LensModel, parts: Fused) -> bool:
    """Whether every block hands to its attention what the cache answered, and a padded batch of
    two, replayed from its fourth column on, is the same with a split `Prefix` as with a joined."""
    size, cache = lens.map.tail.head.weight.shape[0], DynamicCache()
    ids = torch.randint(0, size, (2, 7), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)

    def run(columns: slice, cache: Cache) -> Tensor:
        arguments = dict(input_ids=ids[:, columns], attention_mask=mask[:, : columns.stop])
        if lens.map.accepts_positions:
            arguments["position_ids"] = positions[:, columns]
        arguments = {name: x.to(lens.device) for name, x in arguments.items()}
        return first_tensor(lens.map.inner(**arguments, past_key_values=cache, use_cache=True))

    with torch.no_grad(), parts.used():
        run(slice(0, 3), cache)
        layers = [Prefix(layer.keys, layer.values, 3, 1) for layer in cache.layers]  # type: ignore[attr-defined]
        joined = run(slice(3, 7), Cache(layers=list(layers)))
        if not all(layer.met for layer in layers):
            return False
        for layer in layers:
            layer.split = True
        split = run(slice(3, 7), Cache(layers=list(layers)))
    return bool((split - joined).norm() <= _tolerance(lens) * joined.norm())


def _is_leaf_with_gain(module: nn.Module) -> bool:
    parameters = list(module.parameters())
    return (
        not list(module.children())
        and len(parameters) == 1
        and parameters[0].ndim == 1
        and parameters[0].dtype in (torch.float32, torch.float64)
        and "forward" not in module.__dict__
    )


def _fused(norm: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """`RMSNorm` with the gain and the eps for which it equals `norm`, in value and gradient, on
    random inputs of ordinary and of tiny size; None if there are none such."""
    ((name, weight),) = norm.named_parameters()
    eps = next(
        (
            float(value)
            for name, value in vars(norm).items()
            if "eps" in name and isinstance(value, float)
        ),
        None,
    )
    if eps is None:
        return None
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 3, len(weight), generator=generator)
    x = (noise[0] * torch.tensor([1.0, 30.0, eps**0.5])[:, None]).to(weight)
    pull = noise[1].to(weight)
    for offset in (0, 1):

        def fused(hidden: Tensor, offset: int = offset) -> Tensor:
            gain = getattr(norm, name).detach()
            return RMSNorm.apply(hidden, gain + offset if offset else gain, eps)  # type: ignore[return-value]

        if _same(fused, norm, x, pull):
            return fused
    return None


def _same(ours: Callable, theirs: Callable, x: Tensor, pull: Tensor) -> bool:
    found = []
    with torch.enable_grad():
        for function in (ours, theirs):
            leaf = x.clone().requires_grad_(True)
            try:
                value = function(leaf)
                found.append((value.detach(), *torch.autograd.grad(value, leaf, pull)))
            except (RuntimeError, TypeError):
                return False
    return all(
        a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))
        for a, b in zip(*found, strict=True)
    )


def _attention_configs(blocks: list[nn.Module]) -> Iterator[Any]:
    """Configurations that the blocks' modules read their attention function from, where it is
    Transformers' `sdpa`."""
    seen: set[int] = set()
    for block in blocks:
        for module in block.modules():
            config = getattr(module, "config", None)
            if config is None or id(config) in seen:
                continue
            seen.add(id(config))
            if getattr(config, "_attn_implementation_internal", None) == "sdpa":
                yield config
