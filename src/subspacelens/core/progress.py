"""Progress, shown only inside `showing_progress()`: the library itself prints nothing.

In a terminal it is bars; elsewhere, in a pipe or a log, it is a line every few seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Event, Thread
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

EVERY = 5.0
"""Seconds between two lines where there is no terminal."""

_shown: ContextVar[Progress | None] = ContextVar("shown", default=None)
_noted: ContextVar[frozenset[str]] = ContextVar("noted", default=frozenset())


@contextmanager
def showing_progress() -> Iterator[None]:
    """Shows on standard error how far everything that runs inside has come.

    >>> with showing_progress():
    ...     captures = capture_task(lens, task, [site])
    """
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        shown, noted = _shown.set(progress), _noted.set(frozenset())
        try:
            with _lines(progress):
                yield
        finally:
            _shown.reset(shown)
            _noted.reset(noted)


@contextmanager
def _lines(progress: Progress) -> Iterator[None]:
    """Where there is no terminal, a line every few seconds of what is under way."""
    if progress.console.is_terminal:
        yield
        return
    ended = Event()

    def tell() -> None:
        while not ended.wait(EVERY):
            if line := _line(progress):
                progress.console.print(line, markup=False, highlight=False, soft_wrap=True)

    thread = Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _line(progress: Progress) -> str:
    """`capture: 12 of 80, 15 s`, of the work that began last of all that is under way."""
    under_way = [task for task in progress.tasks if task.stop_time is None and not task.finished]
    if not under_way:
        return ""
    task = under_way[-1]
    total = "" if task.total is None else f" of {task.total:.0f}"
    return f"{task.description}: {task.completed:.0f}{total}, {task.elapsed or 0:.0f} s"


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
        progress.console.print(text, style="dim", markup=False, highlight=False, soft_wrap=True)


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
