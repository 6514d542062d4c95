"""Everything that ever touches the user's model: context managers that leave it as found.

Each acts in the thread that entered it alone: another thread's passes of the same model are those
of the untouched model. What must not happen twice at a time is done inside `exclusive`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from threading import Lock, RLock, get_ident
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn

from ..core.errors import ModelError
from ..core.interrupts import acquire, orderly_interrupts

_locks: WeakKeyDictionary[nn.Module, RLock] = WeakKeyDictionary()  # type: ignore[valid-type]
_making_a_lock = Lock()


@contextmanager
def exclusive(model: nn.Module) -> Iterator[None]:
    """The model is this thread's alone, and is left as it was found.

    Enter it before anything that hooks, replaces or edits a part of the model: other threads wait
    (the same thread may enter again); Ctrl-C does not stop a context manager half way in or half
    way out (`orderly_interrupts`); gradients are on or off afterwards as before. Costs a few
    microseconds.
    """
    gradients = torch.is_grad_enabled()
    with orderly_interrupts():
        lock = _lock_of(model)
        acquire(lock)
        try:
            yield
        finally:
            torch.set_grad_enabled(gradients)
            lock.release()


def _lock_of(model: nn.Module) -> RLock:  # type: ignore[valid-type]
    lock = _locks.get(model)
    if lock is None:
        with _making_a_lock:
            lock = _locks.setdefault(model, RLock())
    return lock


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module is in evaluation mode, and afterwards in the mode in which it was."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


def first_tensor(value: Any) -> Tensor:
    """The hidden states in what a module takes or returns: a tensor, or the first of a tuple."""
    return value if isinstance(value, Tensor) else value[0]


def with_first(value: Any, tensor: Tensor) -> Any:
    """`value` with its first tensor replaced."""
    return tensor if isinstance(value, Tensor) else (tensor, *value[1:])


@contextmanager
def on_input(module: nn.Module, change: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Calls `change` on the module's input; what it returns, unless None, is used instead."""
    thread = get_ident()

    def hook(_module, args, kwargs):
        if get_ident() != thread:
            return None
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
    thread = get_ident()

    def hook(_module, _args, output):
        if get_ident() != thread:
            return None
        new = change(first_tensor(output))
        return None if new is None else with_first(output, new)

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def on_call(
    module: nn.Module, change: Callable[[Sequence[Any], Tensor], Tensor | None]
) -> Iterator[None]:
    """Calls `change` on what the module takes and what it puts out; what it returns, unless None,
    is put out instead."""
    thread = get_ident()

    def hook(_module, args, kwargs, output):
        if get_ident() != thread:
            return None
        new = change((*args, *kwargs.values()), first_tensor(output))
        return None if new is None else with_first(output, new)

    handle = module.register_forward_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


Place = Callable[[nn.Module, Callable[[Tensor], Tensor | None]], AbstractContextManager[None]]
"""`on_input` or `on_output`."""


@contextmanager
def at_columns(
    place: Place,
    module: nn.Module,
    columns: Tensor,
    change: Callable[[Tensor], Tensor | None],
    *,
    part: slice | Tensor = slice(None),
) -> Iterator[None]:
    """Reads or writes at one column a row.

    `change` gets what `place` sees of the module at column `columns[r]` of row r, in the
    dimensions `part`, a slice or indices: (rows, width). What it returns, unless None, is written
    there, the rest of the tensor stays; gradients flow through both. `columns` is (rows,).
    """
    rows = torch.arange(len(columns))
    where = (rows, columns, part)
    if isinstance(part, Tensor):
        where = (rows[:, None], columns[:, None], part)

    def at(x: Tensor) -> Tensor | None:
        every = x.reshape(len(columns), -1, x.shape[-1])
        new = change(every[rows, columns][:, part])
        if new is None:
            return None
        every = every.clone()
        every[where] = new.to(every)
        return every.reshape(x.shape)

    with place(module, at):
        yield


def first_call(change: Callable[[Tensor], Tensor | None]) -> Callable[[Tensor], Tensor | None]:
    """`change` on the first call only; later ones see and change nothing. A replay may run a
    module twice a pass: what was patched is in the first call."""
    calls = iter([change])
    return lambda x: next(calls, lambda _: None)(x)


class _Stop(Exception):
    pass


@dataclass(eq=False)
class Ending:
    """Where a pass was stopped."""

    _output: Tensor | None = None

    @property
    def output(self) -> Tensor:
        """What the module gave. Raises `ModelError` if the pass did not come to it."""
        if self._output is None:
            raise ModelError("a pass ended before the block at which it was to stop")
        return self._output


@contextmanager
def stopping_after(module: nn.Module) -> Iterator[Ending]:
    """Stops the pass inside as soon as `module` has run and gives its output:

    >>> with stopping_after(lens.map.blocks[3].module) as ending:
    ...     lens.map.inner(input_ids=ids, use_cache=False)
    >>> ending.output  # (rows, columns, d_model)
    """
    ending, stop = Ending(), _Stop()

    def end(output: Tensor) -> None:
        ending._output = output
        raise stop

    try:
        with on_output(module, end):
            yield ending
    except _Stop as raised:
        if raised is not stop:
            raise


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
    """`modules[i].forward` is `make(i)` for as long as the context lasts, in this thread."""
    thread = get_ident()

    def here_only(new: Callable, old: Callable) -> Callable:
        def forward(*args, **kwargs):
            return (new if get_ident() == thread else old)(*args, **kwargs)

        forward.__module__ = new.__module__
        return forward

    kept = [(module, module.__dict__.get("forward")) for module in modules]
    try:
        for index, module in enumerate(modules):
            module.forward = here_only(make(index), module.forward)
        yield
    finally:
        for module, forward in reversed(kept):
            if forward is None:
                module.__dict__.pop("forward", None)
            else:
                module.forward = forward
