"""Figures of the docs from records: shares by layer, with intervals, for white and for black."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

BLUE, ORANGE, PURPLE, GOLD, GREY = "#3a86c8", "#d5692a", "#8d6cc9", "#b8860b", "#868d97"
TEXT = "#7d838c"
WIDE, TALL, LEFT, TOP = 640, 260, 44, 40

Values = Sequence[float | None] | None


def chart(title: str, layers: Sequence[int], lines: dict[str, tuple[str, Sequence[Values]]]) -> str:
    """Estimates `[value, low, high]` at layers, 0 to 1 upward; a line is (colour, estimates)."""
    last = max(layers) or 1
    drawn: list[str] = []

    def x(layer: int) -> float:
        return LEFT + (WIDE - LEFT - 16) * layer / last

    def y(value: float) -> float:
        return TOP + (TALL - TOP - 44) * (1 - min(max(value, 0.0), 1.0))

    def text(at: float, up: float, words: str, more: str = "") -> None:
        drawn.append(f'<text x="{at:.1f}" y="{up:.1f}" {more}>{words}</text>')

    for value in (0.0, 0.5, 1.0):
        drawn.append(
            f'<line x1="{LEFT}" x2="{WIDE - 16}" y1="{y(value):.1f}" y2="{y(value):.1f}" '
            f'stroke="{TEXT}" stroke-opacity=".3"/>'
        )
        text(LEFT - 6, y(value) + 4, f"{value:g}", 'text-anchor="end"')
    for layer in layers:
        text(x(layer), TALL - 28, str(layer), 'text-anchor="middle"')
    text((LEFT + WIDE) / 2, TALL - 10, f"layer; {title}", 'text-anchor="middle"')
    for number, (name, (colour, estimates)) in enumerate(lines.items()):
        left = LEFT + number % 2 * (WIDE - LEFT) / 2
        up = 14 + number // 2 * 16
        drawn.append(f'<rect x="{left:.1f}" y="{up - 9}" width="10" height="10" fill="{colour}"/>')
        text(left + 15, up, name)
        seen = [
            (x(layer), values)
            for layer, values in zip(layers, estimates, strict=True)
            if values and values[0] is not None
        ]
        points = " ".join(f"{at:.1f},{y(values[0] or 0):.1f}" for at, values in seen)
        drawn.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
        )
        for at, (value, *ends) in seen:
            drawn.append(f'<circle cx="{at:.1f}" cy="{y(value or 0):.1f}" r="3" fill="{colour}"/>')
            if len(ends) == 2:
                low, high = (y(end or 0) for end in ends)
                drawn.append(
                    f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{low:.1f}" y2="{high:.1f}" '
                    f'stroke="{colour}"/>'
                )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDE} {TALL}" '
        f'font-family="sans-serif" font-size="11" fill="{TEXT}">{"".join(drawn)}</svg>\n'
    )


def facts(record: dict[str, Any]) -> str:
    rows = record["rows"]
    return chart(
        "share of pairs flipped",
        [row["layer"] for row in rows],
        {
            "direction v": (ORANGE, [row["flips"]["v"] for row in rows]),
            "rank-1 edit from v": (GOLD, [row["flips"]["edit"] for row in rows]),
            "whole MLP": (BLUE, [row["flips"]["full"] for row in rows]),
            "unit row part of v": (PURPLE, [row["flips"]["row"] for row in rows]),
        },
    )


def editing(record: dict[str, Any]) -> str:
    rows = record["rows"]
    return chart(
        "share, or probability",
        [row["layer"] for row in rows],
        {
            "ROME edit, rewrite score": (ORANGE, [row["rome"] for row in rows]),
            "patch along v, flips": (GOLD, [row["patch"] for row in rows]),
            "whole MLP, flips": (BLUE, [row["full"] for row in rows]),
            "tracing effect": (PURPLE, [row["trace"] for row in rows]),
        },
    )


FIGURES: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "facts.svg": ("facts", facts),
    "editing.svg": ("editing", editing),
}
"""By file in docs, the study whose record is drawn, and how."""
