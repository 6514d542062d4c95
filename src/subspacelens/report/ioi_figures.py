"""Pictures of the IOI study: curves over layers, effects with intervals, what an MLP writes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from ..core.records import Estimate
from ..measure.maps import PatchingMap
from ..studies.ioi import Generalisation
from ..studies.ioi.data import FRESH
from ..studies.ioi.table import Row
from .figures import BLUE, GREY, ORANGE, PURPLE, TEXT, blank, safe

_STREAMS = (
    ("resid_post", "whole residual stream", PURPLE, "solid"),
    ("attn_out", "attention of the layer", BLUE, "dash"),
    ("mlp_act", "MLP of the layer", ORANGE, "dot"),
)
_PARTS = (
    ("whole component", ("full",), GREY, "square"),
    ("direction found by DAS", ("v_MLP", "v_resid"), PURPLE, "diamond"),
    ("its part that is read", ("v_MLP row", "v_resid along readers"), BLUE, "circle"),
    ("its part that is not", ("v_MLP null", "v_resid null"), ORANGE, "triangle-up"),
)


def curves(map: PatchingMap, label: str) -> go.Figure:
    """Effect of the full patch against the layer, a line for each stream."""
    figure = blank(height=330)
    for stream, name, colour, dash in _STREAMS:
        values = getattr(map.effects[label, stream], map.measure)[:, 0]
        figure.add_scatter(
            x=list(range(len(values))),
            y=[None if np.isnan(v) else v for v in values.tolist()],
            name=name,
            mode="lines+markers",
            line={"color": colour, "width": 2, "dash": dash},
            marker={"size": 5},
            hovertemplate="layer %{x}: %{y:.2f}",
        )
    figure.update_xaxes(title_text="layer", dtick=5)
    figure.update_yaxes(title_text=map.measure.upper().replace("NATS", "nats"))
    return figure


def effects(rows: Sequence[Row]) -> go.Figure:
    """FLDD of the whole component, the direction and its parts at each site, with intervals."""
    sites = list(dict.fromkeys(row.site for row in rows))
    figure = blank(height=150 + 62 * len(sites))
    for position, (name, patches, colour, symbol) in enumerate(_PARTS):
        chosen = [row for row in rows if row.patch in patches]
        y = [sites.index(row.site) + 0.18 * (position - 1.5) for row in chosen]
        _dots(figure, [row.fldd for row in chosen], y, name, colour, symbol)
    figure.update_xaxes(title_text="FLDD: 0 = no change, 1 = difference gone, 2 = reversed")
    _sites_axis(figure, sites)
    return figure


def generalisation(kinds: Sequence[tuple[str, Sequence[Row]]]) -> go.Figure:
    """FLDD of the DAS directions on each kind of pairs, with intervals."""
    sites = list(dict.fromkeys(row.site for row in kinds[0][1]))
    colours = (PURPLE, BLUE, ORANGE, GREY)
    symbols = ("diamond", "circle", "square", "triangle-up")
    figure = blank(height=170 + 62 * len(kinds))
    for position, site in enumerate(sites):
        estimates, y = [], []
        for number, (_, rows) in enumerate(kinds):
            for row in rows:
                if row.site == site and row.patch in ("v_MLP", "v_resid"):
                    estimates.append(row.fldd)
                    y.append(number + 0.18 * (position - (len(sites) - 1) / 2))
        _dots(figure, estimates, y, site, colours[position % 4], symbols[position % 4])
    figure.update_xaxes(title_text="FLDD")
    _sites_axis(figure, [kind for kind, _ in kinds])
    return figure


def kinds_of(fresh: Sequence[Row], others: Sequence[Generalisation], label: str):
    """(kind, rows at the label), the fresh pairs first."""

    def here(rows: Sequence[Row]) -> list[Row]:
        return [row for row in rows if row.site.endswith(f"@{label}")]

    return [(FRESH, here(fresh)), *((other.kind, here(other.rows)) for other in others)]


def _dots(
    figure: go.Figure,
    estimates: Sequence[Estimate],
    y: Sequence[float],
    name: str,
    colour: str,
    symbol: str,
) -> None:
    def gap(estimate: Estimate, end: float | None) -> float:
        return 0.0 if estimate.value is None or end is None else abs(end - estimate.value)

    figure.add_scatter(
        x=[estimate.value for estimate in estimates],
        y=list(y),
        name=safe(name),
        mode="markers",
        marker={"color": colour, "symbol": symbol, "size": 10},
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [gap(e, e.high) for e in estimates],
            "arrayminus": [gap(e, e.low) for e in estimates],
            "color": TEXT,
            "thickness": 1.3,
            "width": 4,
        },
        hovertemplate="%{x:.3f}",
    )


def _sites_axis(figure: go.Figure, names: Sequence[str]) -> None:
    figure.update_yaxes(
        tickvals=list(range(len(names))),
        ticktext=[safe(name) for name in names],
        autorange="reversed",
        zeroline=False,
    )
    figure.update_layout(hovermode="closest")
