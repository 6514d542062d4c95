"""One block at a time, run alone as the model itself would call it."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from ...core.errors import ModelError
from ..hooks import first_tensor


class _Passing(DynamicCache):
    """A cache that keeps nothing but what it was given last."""

    states: tuple[Tensor, Tensor] | None = None

    def update(self, key_states, value_states, *args, **kwargs):
        self.states = key_states.detach().clone(), value_states.detach().clone()
        return key_states, value_states


@dataclass(frozen=True, eq=False)
class BlockRun:
    """One block alone: what enters it, (1, columns, d_model), to what leaves it."""

    module: nn.Module
    args: tuple
    kwargs: dict[str, Any]
    _cache: _Passing

    def __call__(self, hidden: Tensor) -> Tensor:
        if "hidden_states" in self.kwargs:
            kwargs = self.kwargs | {"hidden_states": hidden}
            return first_tensor(self.module(*self.args, **kwargs))
        return first_tensor(self.module(hidden, *self.args, **self.kwargs))

    @property
    def cached(self) -> tuple[Tensor, Tensor]:
        """Keys and values (1, heads, columns, width) that the last run gave to the cache."""
        if self._cache.states is None:
            raise ModelError("a block that was run alone gave no keys and values to the cache")
        return self._cache.states


class BlockRunner:
    """Runs one block alone, on a given input, with the other arguments the model gives it."""

    def __init__(self, model: PreTrainedModel, modules: list[nn.Module], ids: Tensor) -> None:
        arguments: list[tuple[tuple, dict[str, Any]]] = []
        cache = _Passing()

        def keep(_module, args, kwargs):
            arguments.append((args[1:], dict(kwargs)))

        with ExitStack() as stack:
            for module in modules:
                handle = module.register_forward_pre_hook(keep, with_kwargs=True)
                stack.callback(handle.remove)
            model(input_ids=ids.to(model.device), past_key_values=cache, use_cache=True)
        self._runs = [
            BlockRun(module, *each, cache) for module, each in zip(modules, arguments, strict=True)
        ]

    def of(self, index: int) -> BlockRun:
        """The block of this number, as a function of what enters it."""
        return self._runs[index]
