"""One forward pass, recorded: every module call in order, and the linear maps among them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from ...core.errors import ModelError
from .values import Linear


@dataclass(eq=False)
class Call:
    """One call of a module: its first input tensor `x`, its first output tensor, the modules around
    it, outermost first, and whether keys and values were written to the cache meanwhile. `plain`:
    it returned a tensor and not a tuple."""

    module: nn.Module
    parents: tuple[nn.Module, ...]
    x: Tensor
    output: Tensor | None = None
    wrote_cache: bool = False
    plain: bool = True

    @property
    def y(self) -> Tensor:
        """The output. Raises `ModelError` for a module that gives no tensor."""
        if self.output is None:
            raise ModelError(f"a {type(self.module).__name__} gives no tensor")
        return self.output


@dataclass(frozen=True, eq=False)
class Recording:
    """All module calls of one forward pass, in order of entry, its logits, and the (heads, width)
    of the keys and the values that each layer of the cache was given."""

    calls: tuple[Call, ...]
    logits: Tensor
    cached: Mapping[int, tuple[tuple[int, int], tuple[int, int]]]
    names: Mapping[int, str]

    @classmethod
    def of(cls, model: PreTrainedModel, ids: Tensor) -> Recording:
        """Runs `model` on token ids (1, columns)."""
        calls: list[Call] = []
        around: list[Call] = []
        cached: dict[int, tuple[tuple[int, int], tuple[int, int]]] = {}

        class Spy(DynamicCache):
            def update(self, key_states, value_states, layer_idx, *args, **kwargs):
                for call in around:
                    call.wrote_cache = True
                (_, *keys), (_, *values) = key_states.shape, value_states.shape
                cached[layer_idx] = (keys[0], keys[-1]), (values[0], values[-1])
                return super().update(key_states, value_states, layer_idx, *args, **kwargs)

        with torch.no_grad(), ExitStack() as stack:
            for module in model.modules():
                stack.enter_context(_recorded(module, calls, around))
            output = model(input_ids=ids, past_key_values=Spy(), use_cache=True)
        names = {id(module): name for name, module in model.named_modules()}
        return cls(tuple(calls), output.logits.detach(), cached, names)

    @cached_property
    def last_calls(self) -> dict[int, Call]:
        """The last call of each module, by its id."""
        return {id(call.module): call for call in self.calls}

    def inside(self, module: nn.Module) -> tuple[Call, ...]:
        """Calls made while `module` ran."""
        return tuple(call for call in self.calls if any(p is module for p in call.parents))

    def place(self, call: Call) -> int:
        """When a call was made, counted from 0."""
        return next(number for number, other in enumerate(self.calls) if other is call)

    def linear(self, call: Call) -> Linear | None:
        """The call as a proven linear map, or None."""
        weight = getattr(call.module, "weight", None)
        if weight is None or weight.ndim != 2 or call.output is None or call.x.ndim < 2:
            return None
        if not weight.is_floating_point():
            return None
        bias = getattr(call.module, "bias", None)
        y = call.output if bias is None else call.output - bias.detach()
        for transposed in (False, True):
            matrix = weight.detach() if transposed else weight.detach().T
            fits = (call.x.shape[-1], y.shape[-1]) == matrix.shape
            if fits and same(call.x.to(matrix.dtype) @ matrix, y.to(matrix.dtype), 2e-2):
                return Linear(self.names[id(call.module)], call.module, transposed)
        return None


@contextmanager
def _recorded(module: nn.Module, calls: list[Call], around: list[Call]) -> Iterator[None]:
    def enter(module, args, kwargs):
        tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
        x = tensors[0] if tensors else torch.empty(0)
        call = Call(module, tuple(call.module for call in around), x.detach().clone())
        calls.append(call)
        around.append(call)

    def leave(_module, _args, output):
        call = around.pop()
        call.plain = isinstance(output, Tensor)
        value = output if call.plain or not output else output[0]
        call.output = value.detach().clone() if isinstance(value, Tensor) else None

    with ExitStack() as stack:
        stack.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
        stack.callback(module.register_forward_hook(leave).remove)
        yield


def find_blocks(model: nn.Module, recording: Recording) -> list[nn.Module]:
    """The first list of modules of which each ran once and wrote keys and values."""
    of_module: dict[int, list[Call]] = {}
    for call in recording.calls:
        of_module.setdefault(id(call.module), []).append(call)
    for container in model.modules():
        if not isinstance(container, nn.ModuleList) or len(container) == 0:
            continue
        runs = [of_module.get(id(child), []) for child in container]
        if all(len(run) == 1 and run[0].wrote_cache and run[0].output is not None for run in runs):
            return list(container)
    return []


def same(a: Tensor | None, b: Tensor | None, tolerance: float = 1e-4) -> bool:
    """Whether two tensors differ by at most `tolerance`, relative to their norms."""
    if a is None or b is None or a.shape != b.shape:
        return False
    a, b = a.to(torch.float64), b.to(device=a.device, dtype=torch.float64)
    return bool((a - b).norm() <= tolerance * (a.norm() + b.norm()) / 2)
