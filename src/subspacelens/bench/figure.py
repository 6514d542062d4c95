"""The picture of how an engine step's cost grows."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_AXES = {
    "pairs": "pairs, one column",
    "directions": "directions × 64 pairs, one column",
    "columns": "suffix columns",
    "prefix": "prefix columns, one suffix column",
}


def growth_figure(result: dict) -> Figure:
    """Seconds a step against pairs, directions, suffix and prefix columns, from the result of
    `bench_engine`; the dotted line through the first point grows in proportion."""
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=2, cols=2, y_title="seconds a step")
    for place, (name, title) in enumerate(_AXES.items()):
        numbers, seconds = zip(*result["growth"][name], strict=True)
        row, col = place // 2 + 1, place % 2 + 1
        figure.add_scatter(
            x=numbers, y=seconds, mode="lines+markers", name="measured", row=row, col=col,
            line_color="#1f77b4", showlegend=place == 0, legendgroup="measured",
        )  # fmt: skip
        if name != "prefix":
            line = [seconds[0] * n / numbers[0] for n in numbers]
            figure.add_scatter(
                x=numbers, y=line, mode="lines", name="in proportion", row=row, col=col,
                line_color="#888888", line_dash="dot", showlegend=place == 0,
                legendgroup="line",
            )  # fmt: skip
        figure.update_xaxes(title_text=title, rangemode="tozero", row=row, col=col)
        figure.update_yaxes(rangemode="tozero", row=row, col=col)
    figure.update_layout(template="plotly_white", legend_orientation="h")
    return figure
