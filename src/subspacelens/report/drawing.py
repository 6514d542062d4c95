"""Maps as small SVG pictures of their own, to be read on white and on black."""

from __future__ import annotations

import html

from .figures import BLUE, GREY, ORANGE, TEXT

TALL = 14
"""Pixels from one layer to the next."""
TOP = 64
"""Where layer 0 begins."""
_FAINT = 0.1


class Drawing:
    """What is drawn so far, in pixels from the upper left."""

    def __init__(self) -> None:
        self._drawn: list[str] = []

    def text(self, x: float, y: float, text: str, more: str = "") -> None:
        self._drawn.append(f'<text x="{x:g}" y="{y:g}" {more}>{html.escape(text)}</text>')

    def layers(self, x: float, count: int) -> None:
        """The number of every fifth layer, left of `x`."""
        for layer in range(0, count, 5):
            self.text(x - 5, TOP + TALL * layer + 10, str(layer), 'text-anchor="end"')

    def tile(
        self, x: float, layer: int, wide: int, fill: str, strength: float, title: str = ""
    ) -> None:
        """A tile of a layer, the fainter the smaller its `strength` (0 to 1) is."""
        told = f"<title>{html.escape(title)}</title>" if title else ""
        self._drawn.append(
            f'<rect x="{x:g}" y="{TOP + TALL * layer}" width="{wide - 1}" height="{TALL - 1}" '
            f'fill="{fill}" fill-opacity="{strength:.3f}">{told}</rect>'
        )

    def effect(
        self, x: float, layer: int, wide: int, value: float, end: float, title: str = ""
    ) -> None:
        """A tile from blue (`end`) to orange (-`end`), grey where next to nothing happens."""
        strength, fill = abs(value) / end, BLUE if value > 0 else ORANGE
        if not strength >= _FAINT:
            strength, fill = _FAINT, GREY
        self.tile(x, layer, wide, fill, strength, title)

    def svg(self, width: float, layers: int) -> str:
        """The picture, as wide as that and as tall as so many layers need."""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" '
            f'height="{TOP + TALL * layers + 8}" font-family="sans-serif" font-size="10" '
            f'fill="{TEXT}">{"".join(self._drawn)}</svg>\n'
        )
