"""Sizes of memory as people write them."""

from __future__ import annotations

import re

from .errors import LensError

LARGEST = 2**60
_FORM = re.compile(r"[0-9]{1,19}(\.[0-9]{1,19})? ?[A-Za-z]*")


def parse_size(text: str) -> int:
    """Reads a size such as `512MB`, `1.5 GiB` or `2g` and returns bytes, 1 to 2**60.

    MB, GB and so on are powers of 1,000; MiB, GiB and so on are powers of 1,024; a bare number is
    bytes. Raises `LensError` for anything else.

    >>> parse_size("1.5GiB")
    1610612736
    """
    from pydantic import ByteSize, TypeAdapter, ValidationError

    whole = text.strip()
    try:
        size = int(TypeAdapter(ByteSize).validate_python(whole)) if _FORM.fullmatch(whole) else 0
    except ValidationError:
        size = 0
    if not 1 <= size <= LARGEST:
        shown = text if len(text) <= 40 else f"{text[:40]}…"
        raise LensError(f"'{shown}' is not a size of at most 1EiB: write it as 512MB or 2GiB")
    return size
