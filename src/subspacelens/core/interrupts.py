"""Ctrl-C never stops a context manager half way in or half way out."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from _thread import start_new_thread
from collections.abc import Callable, Iterator
from types import FrameType

RETRY = 0.005
"""Seconds after which an interrupt that came at a bad moment comes again."""


class _Orderly:
    """A handler of SIGINT that puts off what the handler before it would do."""

    def __init__(self, before: Callable) -> None:
        self.before = before

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        if _entering_or_leaving(frame):
            start_new_thread(_again, (signum,))
        else:
            self.before(signum, frame)


def _again(signum: int) -> None:
    time.sleep(RETRY)
    main = threading.main_thread().ident
    if main is not None and hasattr(signal, "pthread_kill"):
        signal.pthread_kill(main, signum)
    else:
        signal.raise_signal(signum)


def _entering_or_leaving(frame: FrameType | None) -> bool:
    while frame is not None:
        code = frame.f_code
        if code is wait_for.__code__:
            return False
        if code.co_name in ("__enter__", "__exit__"):
            return True
        if frame.f_globals is vars(contextlib) and code.co_name != "inner":
            return True
        frame = frame.f_back
    return False


@contextlib.contextmanager
def orderly_interrupts() -> Iterator[None]:
    """Inside, Ctrl-C waits until no context manager is being entered or left, so that whatever one
    of them changed is put back. Bodies of `with` are interrupted at once, as ever.

    Python may raise `KeyboardInterrupt` in the first line of an `__exit__`, which then does
    nothing. Costs a microsecond; does nothing in other threads, which are never interrupted, or
    where SIGINT is ignored.
    """
    before = signal.getsignal(signal.SIGINT)
    main = threading.get_ident() == threading.main_thread().ident
    if not main or not callable(before) or isinstance(before, _Orderly):
        yield
        return
    signal.signal(signal.SIGINT, _Orderly(before))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def acquire(lock: threading.RLock) -> None:  # type: ignore[valid-type]
    """Takes `lock`, also while a context manager is being entered; Ctrl-C ends the wait."""
    while not lock.acquire(timeout=10 * RETRY):
        wait_for(2 * RETRY)


def wait_for(seconds: float) -> None:
    """Sleeps; an interrupt is let through wherever this is called."""
    time.sleep(seconds)
