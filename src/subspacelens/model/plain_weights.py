"""Models whose linear maps are not matrices in memory: adapters beside them, quantised weights.

A subspace is split by the matrix W that its site writes by. Where the model computes something
else than W x, the split would be that of another model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from ..core.errors import ModelError
from .mapping import build_map
from .mapping.values import Block, ModelMap

_PACKED = ("qweight", "weight_packed")
"""Where other tools keep a quantised weight that is no `weight`."""


def mapped(model: Any) -> ModelMap:
    """The map of a model, once it is known that its weights are all there is to its linear maps.

    Of a quantised model those streams are mapped whose projection is still a matrix; the others say
    that theirs is quantised. Raises `ModelError` for adapters that are not merged, and where the
    output projections of the attention are quantised.
    """
    refuse_adapters(model)
    quantised = dict(_quantised(model))
    if not quantised:
        return build_map(model)
    first = next(iter(quantised))
    count = f"{len(quantised)} of its weights are quantised, such as {first}"
    advice = (
        "load it without quantisation (dtype=torch.bfloat16), or turn it back with "
        "model.dequantize()"
    )
    try:
        found = build_map(model)
    except ModelError as error:
        raise ModelError(f"{count}, and {error}: {advice}") from None
    inside = [any(part in quantised.values() for part in b.module.modules()) for b in found.blocks]
    blocks = tuple(
        _explained(block, f"{count}: {advice}") if here else block
        for block, here in zip(found.blocks, inside, strict=True)
    )
    return replace(found, blocks=blocks)


def refuse_adapters(model: Any) -> None:
    """Raises `ModelError` for a model with adapters of PEFT in or around it."""
    layers = [name for name, module in model.named_modules() if _is_adapter(module)]
    if layers:
        raise ModelError(
            f"it has adapters of PEFT beside its weights ({len(layers)} layers, such as "
            f"{layers[0]}), and the weights alone are not what it computes: merge them, "
            "model = model.merge_and_unload(), and take that"
        )
    if hasattr(model, "peft_config"):
        raise ModelError(
            "it is wrapped by PEFT (prompt tuning puts tokens of its own before every prompt): "
            "take the model inside, model.get_base_model()"
        )


def _is_adapter(module: nn.Module) -> bool:
    """A layer of PEFT: the model's own layer is a child of it."""
    children = module._modules
    return ("base_layer" in children and hasattr(module, "merged_adapters")) or (
        "original_module" in children and "modules_to_save" in children
    )


def _quantised(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        whole = isinstance(weight, Tensor) and not weight.is_floating_point()
        if whole or any(hasattr(module, other) for other in _PACKED):
            yield name, module


def _explained(block: Block, reason: str) -> Block:
    missing = {
        stream: f"{why} ({reason})" if stream in ("mlp_act", "mlp_out") else why
        for stream, why in block.missing.items()
    }
    return replace(block, missing=missing)
