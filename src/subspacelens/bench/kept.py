"""What the rows of a long benchmark depend on: they are kept as long as that is the same."""

from __future__ import annotations

from ..sweep.plan import ROOMS, code_sha256

COMPUTING = (*(room for room in ROOMS if "/" not in room), "bench")
"""The rooms that every benchmark against truth computes with: pages and commands are not among
them."""


def source_sha256(*above: str) -> str:
    """Of the code of these rooms, and of those `above` them that a benchmark computes with too: a
    rate is that of one version of it."""
    return code_sha256((*COMPUTING, *above))
