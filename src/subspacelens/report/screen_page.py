"""The page of a screen: many directions of one site, sorted by how surely they do something."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import plotly.graph_objects as go

from ..audit.screening import Screen
from ..audit.verdict import CHANCE
from ..core.files import write_atomically
from ..core.format import fixed, interval, number
from .document import Plot, document
from .figures import LOOKS, TEXT, blank, safe

_ORDER = ("faithful", "partial", "mixed", "illusory", "undetermined")


def write_screen(screen: Screen, directory: Path | str) -> Path:
    """Writes `directory`/screen.json and screen.html, and returns the path of the page. Raises
    `ResultError` where one cannot be written.

    >>> write_screen(sl.screen(lens, captures, site, decoder[:64]), "runs/latents")
    """
    directory = Path(directory)
    screen.save(directory / "screen.json")
    page = document(
        "screen.html.j2",
        title=f"{len(screen.rows)} directions at {screen.site}",
        screen=screen,
        lead=summary(screen),
        rows=sorted(screen.rows, key=lambda each: (each.q, -each.size)),
        plot=Plot.of(figure(screen), f"FLDD of each of {len(screen.rows)} rows. {summary(screen)}"),
        beyond=CHANCE,
    )
    target = directory / "screen.html"
    write_atomically(target, page.encode())
    return target


def summary(screen: Screen) -> str:
    """One sentence: how many do more than chance, and what they are."""
    beyond = set(screen.beyond_chance)
    do = "does" if len(beyond) == 1 else "do"
    count = f"{len(beyond)} of {len(screen.rows)} directions at {screen.site} {do} more than chance"
    told = Counter(each.label for each in screen.rows if each.row in beyond)
    verdicts = ", ".join(f"{told[label]} {label}" for label in _ORDER if told[label])
    return f"{count} at a false discovery rate of {CHANCE:.0%}{f': {verdicts}' * bool(told)}."


def figure(screen: Screen) -> go.Figure:
    """A mark a row at its FLDD, by its verdict; faint where it does no more than chance."""
    drawn, beyond = blank(height=360), set(screen.beyond_chance)
    for label in _ORDER:
        colour, symbol = LOOKS[label]
        rows = [each for each in screen.rows if each.label == label]
        if rows:
            drawn.add_scatter(
                x=[each.row for each in rows],
                y=[each.effect.fldd.value for each in rows],
                mode="markers",
                name=label,
                marker={
                    "symbol": symbol,
                    "size": 10,
                    "color": colour,
                    "opacity": [1.0 if each.row in beyond else 0.4 for each in rows],
                    "line": {"width": 1.5, "color": colour},
                },
                customdata=[
                    f"<b>row {each.row}: {each.label}</b><br>"
                    f"FLDD {fixed(each.effect.fldd.value)} {interval(each.effect.fldd)}<br>"
                    f"q = {number(each.q)}<br>{_broken(each.reason)}"
                    for each in rows
                ],
                hovertemplate="%{customdata}<extra></extra>",
            )
    whole = screen.whole.fldd.value
    if whole is not None:
        drawn.add_hline(
            y=whole, line={"color": TEXT, "width": 1.3, "dash": "dot"},
            annotation={"text": f"whole component {fixed(whole)}", "xanchor": "right"},
            annotation_position="top right",
        )  # fmt: skip
    drawn.update_xaxes(title_text="row")
    drawn.update_yaxes(title_text="FLDD", rangemode="tozero")
    return drawn.update_layout(hoverlabel_align="left", hovermode="closest")


def _broken(text: str) -> str:
    """Over several lines of a label that plotly shows."""
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) > 60:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "<br>".join(map(safe, lines))
