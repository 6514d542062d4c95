"""Where several patches go at once: `L18.mlp_act@S2+END`, `L18.mlp_act@S2:`, `L18.mlp_act@*`."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum

from .errors import SiteError
from .site import Site


class Span(Enum):
    """Which columns of a prompt: that of a label, those from it on, or all."""

    AT = ""
    ONWARDS = ":"
    ALL = "*"


@dataclass(frozen=True)
class Place:
    """One stream of one block at the column of a label, at all columns from it on (`@S2:`), or at
    all columns (`@*`, where `site` has the label `END`).

    >>> str(Place(Site.parse("L18.mlp_act@S2"), Span.ONWARDS))
    'L18.mlp_act@S2:'
    """

    site: Site
    span: Span = Span.AT

    def __str__(self) -> str:
        if self.span is Span.ALL:
            return str(self.site).partition("@")[0] + "@*"
        return f"{self.site}{self.span.value}"


def parse_places(text: str, labels: Collection[str]) -> tuple[Place, ...]:
    """The places that a text names, in its order: `L18.mlp_act@S2`, several labels of one stream
    joined by `+`, columns from a label on by `:`, all columns by `*`. What is one of `labels` as it
    stands, such as `S+1`, is that label.

    Raises `SiteError` for what is no site.

    >>> [str(place) for place in parse_places("L18.mlp_act@S2+END", ["S2", "END"])]
    ['L18.mlp_act@S2', 'L18.mlp_act@END']
    """
    where, at, positions = text.strip().partition("@")
    if not at:
        Site.parse(text)
    parts = [positions] if positions in labels else positions.split("+")
    return tuple(dict.fromkeys(_place(where, part, labels, text) for part in parts))


def _place(where: str, position: str, labels: Collection[str], text: str) -> Place:
    if position == Span.ALL.value:
        return Place(Site.parse(f"{where}@END"), Span.ALL)
    if position not in labels and len(position) > 1 and position.endswith(Span.ONWARDS.value):
        return Place(Site.parse(f"{where}@{position[:-1]}"), Span.ONWARDS)
    if not position:
        raise SiteError(f"site '{text[:80]}': a label is missing beside +")
    return Place(Site.parse(f"{where}@{position}"))
