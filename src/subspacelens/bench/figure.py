"""Pictures: how an engine step's cost grows, and how well the audit tells illusions."""

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


def roc_figure(result: dict) -> Figure:
    """Receiver operating characteristic on the held-out cases of `bench_audit`, all tiers: share of
    illusory cases above a cut against share of faithful ones, for the score and single tests."""
    import plotly.graph_objects as go
    from sklearn.metrics import roc_curve

    cases = [
        case
        for case in result["cases"]
        if case["half"] == "held_out" and case["kind"] in ("faithful", "illusory")
    ]
    tests = {
        "row/null split alone": "row_effect",
        "whole component alone": "full_component",
        "covariation alone": "covariation",
        "natural support alone": "support",
    }
    curves = {"audit score": [(case["kind"], case["score"]) for case in cases]}
    for name, test in tests.items():
        values = [(case["kind"], case["tests"][test]) for case in cases]
        curves[name] = [(kind, -value) for kind, value in values if value is not None]
    figure = go.Figure()
    for name, points in curves.items():
        truth = [kind == "illusory" for kind, _ in points]
        if 0 < sum(truth) < len(truth):
            false, true, _ = roc_curve(truth, [value for _, value in points])
            figure.add_scatter(x=false, y=true, mode="lines", name=name, line_shape="hv")
    figure.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", name="chance", line=dict(color="#888888", dash="dot")
    )
    figure.update_xaxes(title_text="share of faithful cases", range=[-0.02, 1])
    figure.update_yaxes(title_text="share of illusory cases", range=[0, 1.02])
    figure.update_layout(template="plotly_white", width=640, height=400, margin_t=20)
    return figure
