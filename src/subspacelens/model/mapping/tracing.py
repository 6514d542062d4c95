"""One forward pass, watched: every module call in order, and the linear maps among them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from .values import Linear


@dataclass(eq=False)
class Call:
    module: nn.Module
    parents: tuple[nn.Module, ...]
    x: Tensor
    y: Tensor | None = None
    wrote_cache: bool = False
    plain: bool = True


class Trace:
    """Records every module call of one forward pass, in order of entry."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.calls: list[Call] = []
        self.stack: list[Call] = []

    def run(self, ids: Tensor) -> Tensor:
        trace = self

        class Spy(DynamicCache):
            def update(self, key_states, value_states, layer_idx, *args, **kwargs):
                for call in trace.stack:
                    call.wrote_cache = True
                return super().update(key_states, value_states, layer_idx, *args, **kwargs)

        def enter(module, args, kwargs):
            tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
            x = tensors[0] if tensors else torch.empty(0)
            parents = tuple(call.module for call in self.stack)
            call = Call(module, parents, x.detach().clone())
            self.calls.append(call)
            self.stack.append(call)

        def leave(_module, _args, output):
            call = self.stack.pop()
            call.plain = isinstance(output, Tensor)
            value = output if call.plain or not output else output[0]
            call.y = value.detach().clone() if isinstance(value, Tensor) else None

        handles = []
        try:
            for module in self.model.modules():
                handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
                handles.append(module.register_forward_hook(leave))
            with torch.no_grad():
                output = self.model(input_ids=ids, past_key_values=Spy(), use_cache=True)
        finally:
            for handle in handles:
                handle.remove()
        return output.logits.detach()

    def inside(self, module: nn.Module) -> list[Call]:
        return [call for call in self.calls if any(parent is module for parent in call.parents)]


def find_blocks(model: nn.Module, trace: Trace) -> list[nn.Module]:
    called = {}
    for call in trace.calls:
        called.setdefault(id(call.module), []).append(call)
    for container in model.modules():
        if not isinstance(container, nn.ModuleList) or len(container) == 0:
            continue
        runs = [called.get(id(child), []) for child in container]
        if all(len(run) == 1 and run[0].wrote_cache and run[0].y is not None for run in runs):
            return list(container)
    return []


def same(a: Tensor | None, b: Tensor | None, tolerance: float = 1e-4) -> bool:
    if a is None or b is None or a.shape != b.shape:
        return False
    a, b = a.to(torch.float64), b.to(device=a.device, dtype=torch.float64)
    return bool((a - b).norm() <= tolerance * (a.norm() + b.norm()) / 2)


def as_linear(call: Call, name: str) -> Linear | None:
    """The call as a proven linear map, or None."""
    weight = getattr(call.module, "weight", None)
    if weight is None or weight.ndim != 2 or call.y is None or call.x.ndim < 2:
        return None
    bias = getattr(call.module, "bias", None)
    y = call.y if bias is None else call.y - bias.detach()
    for transposed in (False, True):
        matrix = weight.detach() if transposed else weight.detach().T
        fits = (call.x.shape[-1], call.y.shape[-1]) == matrix.shape
        if fits and same(call.x.to(matrix.dtype) @ matrix, y.to(matrix.dtype), 2e-2):
            return Linear(name, call.module, transposed)
    return None
