"""Ctrl-C at every moment of an operation, one after the other."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from subspacelens.core import interrupts


def interrupted_everywhere(
    operation: Callable[[], object], monkeypatch: pytest.MonkeyPatch, every: int = 1
) -> Iterator[bool]:
    """Runs `operation` again and again, with SIGINT at its first, 1 + `every`th, ... call of a
    function or return from one. Yields whether it was interrupted, until it is not reached."""
    monkeypatch.setattr(interrupts, "RETRY", 0.0)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield from _interrupted(operation, every)
    finally:
        signal.signal(signal.SIGINT, handler)


def _interrupted(operation: Callable[[], object], every: int) -> Iterator[bool]:
    moment = 0
    while True:
        left = moment

        def profile(*_) -> None:
            nonlocal left
            left -= 1
            if left == -1:
                signal.raise_signal(signal.SIGINT)

        interrupted = False
        sys.setprofile(profile)
        try:
            operation()
            sys.setprofile(None)
            if left < 0:
                time.sleep(0.5)  # The interrupt was put off beyond the operation's end.
        except KeyboardInterrupt:
            interrupted = True
        finally:
            sys.setprofile(None)
        if left >= 0:
            return
        yield interrupted
        moment += every
