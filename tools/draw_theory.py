"""Writes docs/theory.svg: where the best direction lies, and what it does, against the angle.

python tools/draw_theory.py
"""

from __future__ import annotations

import math
from pathlib import Path

import torch

from subspacelens.core.first_order import first_order
from subspacelens.core.illusion_share import illusion_share

TARGET = Path(__file__).parents[1] / "docs/theory.svg"
BLUE, ORANGE, PURPLE, GREY, TEXT = "#3a86c8", "#d5692a", "#8d6cc9", "#868d97", "#7d838c"
PANEL, ARROW = 190, 130
ANGLES = {"a feature": 0, "a mixture": 55, "an illusion": 90}


def solved(degrees: float) -> tuple[torch.Tensor, float, float, float]:
    """The best direction (2,), what it and the whole component do, and the share of illusion, for
    two pairs of unit Δ and unit g at this angle, turned either way."""
    angle = math.radians(degrees)
    signs = torch.tensor([[1.0], [-1.0]]).double()
    difference = signs * torch.tensor([1.0, 0.0])
    slope = -signs * torch.tensor([math.cos(angle), math.sin(angle)])
    found = first_order(difference, slope)
    best = found.basis(1)
    direction = best[:, 0] * best[:, 0].sum().sign()
    return direction, found.effect(1), found.whole, illusion_share(difference, slope, best)


def arrow(x: float, y: float, dx: float, dy: float, colour: str, dash: str = "") -> str:
    """A line from (x, y) with a head; dy counts upward."""
    length = math.hypot(dx, dy)
    ux, uy = dx / length, -dy / length
    ex, ey = x + dx, y - dy
    head = " ".join(
        f"{ex - 8 * ux + side * 4 * uy:.1f},{ey - 8 * uy - side * 4 * ux:.1f}" for side in (1, -1)
    )
    style = f'stroke-dasharray="{dash}" ' if dash else ""
    return (
        f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{ex:.1f}" y2="{ey:.1f}" stroke="{colour}" '
        f'stroke-width="2" {style}/><polygon points="{ex:.1f},{ey:.1f} {head}" fill="{colour}"/>'
    )


def text(x: float, y: float, words: str, colour: str = TEXT, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" {more}>{words}</text>'


def vectors(left: float, name: str, degrees: float) -> list[str]:
    """Δ, g and the best direction, which halves the angle between them."""
    x, y = left + 12, 190.0
    direction, effect, whole, share = solved(degrees)
    angle = math.radians(degrees)
    vx, vy = (float(each) for each in direction)
    read = vx
    drawn = [
        arrow(x, y, ARROW, 0, BLUE),
        arrow(x, y - (3 if degrees == 0 else 0), ARROW * math.cos(angle), ARROW * math.sin(angle),
              ORANGE),
        arrow(x, y, ARROW * read * vx, ARROW * read * vy, PURPLE, "5 3"),
        text(x + ARROW + 4, y + 6, "Δ", BLUE),
        text(x + ARROW * math.cos(angle) + 6, y - ARROW * math.sin(angle) - 4, "g", ORANGE),
        text(x + ARROW * read * vx - 34, y - ARROW * read * vy - 12, "patch", PURPLE),
        text(left, 22, name, TEXT, 'font-weight="bold"'),
        text(left, 212, f"cosine {math.cos(angle):.2f}: whole {whole:.2f},"),
        text(left, 228, f"best direction {effect:.2f}, illusion {100 * share:.0f} %"),
    ]  # fmt: skip
    return drawn


def curves(left: float) -> list[str]:
    """What either does, in units of ‖Δ‖‖g‖, and the share of illusion, against the cosine."""
    wide, tall, zero = 220.0, 130.0, 190.0
    cosines = [k / 50 for k in range(51)]
    solutions = [solved(math.degrees(math.acos(c))) for c in cosines]
    lines = {
        "whole component": (BLUE, "", [whole for _, _, whole, _ in solutions]),
        "best direction": (PURPLE, "", [effect for _, effect, _, _ in solutions]),
        "share of illusion": (ORANGE, "5 3", [share for *_, share in solutions]),
    }
    drawn = [
        text(left, 22, "against the cosine", TEXT, 'font-weight="bold"'),
        f'<path d="M{left} {zero - tall}V{zero}H{left + wide}" stroke="{GREY}" fill="none"/>',
        text(left - 12, zero + 4, "0"), text(left - 12, zero - tall + 4, "1"),
        text(left - 3, zero + 16, "0"), text(left + wide - 3, zero + 16, "1"),
        text(left + wide / 2, zero + 16, "cosine of Δ and g", TEXT, 'text-anchor="middle"'),
    ]  # fmt: skip
    for number, (name, (colour, dash, values)) in enumerate(lines.items()):
        points = " ".join(
            f"{left + wide * c:.1f},{zero - tall * v:.1f}"
            for c, v in zip(cosines, values, strict=True)
        )
        style = f' stroke-dasharray="{dash}"' if dash else ""
        drawn += [
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"{style}/>',
            text(left + (0, 103, 188)[number] - 12, zero + 38, name, colour),
        ]
    return drawn


def main() -> None:
    drawn = [
        line
        for number, (name, degrees) in enumerate(ANGLES.items())
        for line in vectors(10 + PANEL * number, name, degrees)
    ]
    drawn += curves(10 + PANEL * len(ANGLES) + 20)
    TARGET.write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 860 240" width="860" height="240" '
        f'font-family="sans-serif" font-size="11">{"".join(drawn)}</svg>\n'
    )


if __name__ == "__main__":
    main()
