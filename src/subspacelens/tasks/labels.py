"""Labels by a piece of the prompt's text instead of by characters."""

from __future__ import annotations

import re

from ..core.errors import TaskError

_NTH = re.compile(r"(.+)#([1-9]\d*)", re.DOTALL)


def span_of(text: str, wanted: str, where: str) -> tuple[int, int]:
    """Characters [start, end) of `text` where `wanted` stands. It must stand there once, or say
    which one is meant: `Mary#2` is the second Mary. `where` opens every message.

    >>> span_of("Then, Mary and John met. John gave it to", "John#2", "here")
    (25, 29)

    Raises `TaskError` for a piece that is empty, not there, or there more than once.
    """
    piece, places, number = wanted, _places(text, wanted), None
    if not places and (nth := _NTH.fullmatch(wanted)):
        piece, number = nth[1], int(nth[2])
        places = _places(text, piece)
    if not places:
        raise TaskError(f"{where}: {piece!r} is not in {text!r}: give a piece of the prompt's text")
    if number is not None and number > len(places):
        raise TaskError(f"{where}: {piece!r} is there {len(places)} times, and not {number} times")
    if number is None and len(places) > 1:
        shown = ", ".join(map(str, places[:4])) + ", ..." * (len(places) > 4)
        raise TaskError(
            f"{where}: {piece!r} is there {len(places)} times (at characters {shown}): write "
            f"'{piece}#2' for the second, or its span, [{places[1]}, {places[1] + len(piece)}]"
        )
    start = places[(number or 1) - 1]
    return start, start + len(piece)


def _places(text: str, piece: str) -> list[int]:
    return [m.start() for m in re.finditer(f"(?={re.escape(piece)})", text)] if piece else []
