"""The picture of a map: a tile for every layer and stream, or layer and head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from ..core.format import short
from .figures import BLUE, ORANGE, blank

SCALE = [[0, ORANGE], [0.5, "#c9ccd1"], [1, BLUE]]
"""From what moves the answer away, over nothing, to what moves it towards the source's."""
_MOST_NUMBERED = 12
"""A picture of more columns has no numbers in its tiles: they would not fit on a phone."""


def tiles(
    values: np.ndarray,
    columns: Sequence[str],
    hover: Mapping[tuple[int, int], str],
    unit: str,
    ends: tuple[float, float],
    *,
    heads: bool = False,
    turned: bool = False,
    numbered: bool = True,
) -> go.Figure:
    """`values` (layers, columns), NaN where there is none, from orange to blue between `ends`, or
    `turned`, from blue to orange; what stands in small print over a tile is in `hover`, by layer
    and column. Where they have room and are to be `numbered`, tiles show their values."""
    layers, count = values.shape
    tall = max(9, min(19, 1200 // layers))
    numbered = numbered and count <= _MOST_NUMBERED and tall >= 14
    least = 0.03 * max(map(abs, ends))
    figure = blank(height=tall * layers + 130)
    figure.add_heatmap(
        z=[[None if np.isnan(x) else x for x in row] for row in values.tolist()],
        x=list(columns),
        y=list(range(layers)),
        customdata=[
            [hover.get((layer, column), "") for column in range(count)] for layer in range(layers)
        ],
        text=[
            [short(x) if numbered and abs(x) > least else "" for x in row]
            for row in values.tolist()
        ],
        texttemplate="%{text}",
        textfont={"size": 10},
        hovertemplate="%{customdata}<extra></extra>",
        hoverongaps=False,
        xgap=1,
        ygap=1,
        zmin=ends[0],
        zmax=ends[1],
        colorscale=SCALE,
        reversescale=turned,
        colorbar=colorbar(unit),
    )
    title = "attention head (head_z)" if heads else None
    figure.update_xaxes(
        type="category", showgrid=False, zeroline=False, tickangle=0, title_text=title
    )
    figure.update_yaxes(autorange="reversed", showgrid=False, zeroline=False, title_text="layer")
    return figure


def colorbar(unit: str) -> dict[str, object]:
    """A scale over the picture, as wide as it."""
    return {
        "orientation": "h",
        "x": 0.5,
        "y": 1,
        "yanchor": "bottom",
        "thickness": 8,
        "len": 1,
        "outlinewidth": 0,
        "nticks": 5,
        "title": {"text": unit, "side": "top"},
        "tickfont": {"size": 11},
    }
