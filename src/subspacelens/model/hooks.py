"""Everything that ever touches the user's model: context managers that leave it as found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from ..core.errors import ModelError


def first_tensor(value: Any) -> Tensor:
    """The hidden states in what a module takes or returns: a tensor, or the first of a tuple."""
    return value if isinstance(value, Tensor) else value[0]


def with_first(value: Any, tensor: Tensor) -> Any:
    """`value` with its first tensor replaced."""
    return tensor if isinstance(value, Tensor) else (tensor, *value[1:])


@contextmanager
def on_input(module: nn.Module, change: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Calls `change` on the module's input; what it returns, unless None, is used instead."""

    def hook(_module, args, kwargs):
        if args:
            new = change(args[0])
            return None if new is None else ((new, *args[1:]), kwargs)
        name = "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs))
        new = change(kwargs[name])
        return None if new is None else (args, kwargs | {name: new})

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def on_output(module: nn.Module, change: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Calls `change` on the module's output; what it returns, unless None, is used instead."""

    def hook(_module, _args, output):
        new = change(first_tensor(output))
        return None if new is None else with_first(output, new)

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def muted(*modules: nn.Module) -> Iterator[None]:
    """The modules' outputs, biases included, are zero."""
    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(on_output(module, torch.zeros_like))
        yield


_dry: WeakSet[nn.Module] = WeakSet()


@contextmanager
def dry_run(model: nn.Module) -> Iterator[None]:
    """Marks a pass in which blocks compute nothing, so that nobody measures in the middle of it."""
    _dry.add(model)
    try:
        yield
    finally:
        _dry.discard(model)


def check_ready(model: nn.Module) -> None:
    """Raises `ModelError` for a model in training mode or inside a dry run."""
    if model.training:
        raise ModelError("the model is in training mode: call model.eval() first")
    if model in _dry:
        raise ModelError(
            "capture or replay was called from a hook inside a pass of the same model in which its "
            "blocks compute nothing; call it outside of the model's own passes"
        )


@contextmanager
def replaced_forward(modules: Sequence[nn.Module], make: Callable[[int], Callable]) -> Iterator:
    """`modules[i].forward` is `make(i)` for as long as the context lasts."""
    kept = [module.__dict__.get("forward") for module in modules]
    try:
        for index, module in enumerate(modules):
            module.forward = make(index)
        yield
    finally:
        for module, forward in zip(modules, kept, strict=True):
            if forward is None:
                module.__dict__.pop("forward", None)
            else:
                module.forward = forward
