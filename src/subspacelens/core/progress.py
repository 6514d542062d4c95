"""Progress bars, shown only inside `showing_progress()`: the library itself prints nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")

_shown: ContextVar[Progress | None] = ContextVar("shown", default=None)
_noted: ContextVar[frozenset[str]] = ContextVar("noted", default=frozenset())


@contextmanager
def showing_progress() -> Iterator[None]:
    """Draws the bars of everything that runs inside, on standard error.

    >>> with showing_progress():
    ...     captures = capture_task(lens, task, [site])
    """
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        token = _shown.set(progress)
        try:
            yield
        finally:
            _shown.reset(token)


@contextmanager
def hiding_progress() -> Iterator[None]:
    """Draws no bars for what runs inside: steps too small to be of interest."""
    token = _shown.set(None)
    try:
        yield
    finally:
        _shown.reset(token)


def note(text: str) -> None:
    """Prints a line above the bars, where bars are shown; the same line once."""
    progress = _shown.get()
    if progress is not None and text not in _noted.get():
        _noted.set(_noted.get() | {text})
        progress.console.print(text, style="dim", markup=False, highlight=False)


def track(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yields `items`, moving a bar called `what` where bars are shown."""
    progress = _shown.get()
    if progress is None:
        yield from items
        return
    total = len(items) if total is None and hasattr(items, "__len__") else total  # type: ignore[arg-type]
    bar = progress.add_task(what, total=total)
    try:
        for item in items:
            yield item
            progress.advance(bar)
    finally:
        progress.stop_task(bar)


@contextmanager
def bar(what: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """A bar that is set by hand: the call takes how much is done and what to write before it."""
    progress = _shown.get()
    if progress is None:
        yield lambda done, text: None
        return
    task = progress.add_task(what, total=total)
    try:
        yield lambda done, text: progress.update(task, completed=done, description=text)
    finally:
        progress.stop_task(task)
