"""Pictures: how an engine step's cost grows, how well the audit tells illusions, and how well the
instant map predicts."""

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
    """Receiver operating characteristic on the cases of `bench_audit`, by kind of site: share of
    illusory cases above a cut against share of faithful ones, for the score and for the single
    tests that exist there."""
    from plotly.subplots import make_subplots
    from sklearn.metrics import roc_curve

    cases = [c for c in result["cases"] if c["kind"] in ("faithful", "illusory") and c["tests"]]
    kinds = list(dict.fromkeys(case["where"] for case in cases))
    tests = {
        "whole component alone": ("full_component", -1),
        "row/null split alone": ("row_effect", -1),
        "covariation alone": ("covariation", -1),
        "what senses alone": ("read_source", 1),
        "natural part alone": ("natural", -1),
        "part beyond nature alone": ("beyond", 1),
        "comovement alone": ("comovement", -1),
    }
    colours = (
        "#3a86c8", "#d5692a", "#8d6cc9", "#b8922a", "#4a9d6f", "#868d97", "#c44e72", "#2f9e9e",
    )  # fmt: skip
    figure = make_subplots(rows=1, cols=max(1, len(kinds)), subplot_titles=kinds)
    for col, where in enumerate(kinds, 1):
        there = [case for case in cases if case["where"] == where]
        curves = {"audit score": [(case["kind"], case["score"]) for case in there]}
        for name, (test, sign) in tests.items():
            values = [(case["kind"], case["tests"].get(test)) for case in there]
            curves[name] = [(kind, sign * v) for kind, v in values if v is not None]
        for (name, points), colour in zip(curves.items(), colours, strict=True):
            truth = [kind == "illusory" for kind, _ in points]
            if 0 < sum(truth) < len(truth):
                false, true, _ = roc_curve(truth, [value for _, value in points])
                figure.add_scatter(
                    x=false, y=true, mode="lines", name=name, line_shape="hv", legendgroup=name,
                    line=dict(color=colour, width=3 if name == "audit score" else 1.5),
                    showlegend=col == 1, row=1, col=col,
                )  # fmt: skip
        figure.update_xaxes(title_text="share of faithful cases", range=[-0.02, 1], col=col)
    figure.update_yaxes(range=[0, 1.02])
    figure.update_yaxes(title_text="share of illusory cases", col=1)
    figure.update_layout(
        template="plotly_white", width=1000, height=440, legend=dict(orientation="h", y=-0.25)
    )
    return figure


def calibration_figure(result: dict) -> Figure:
    """Seen against predicted, from the result of `bench_instant`: whole component, DAS and share of
    illusion, of first order above and refined below; on the line the prediction is right."""
    from plotly.subplots import make_subplots

    from .instant import MODES, QUANTITIES, points

    names = {"whole": "whole component, FLDD", "das": "DAS, FLDD", "illusion": "share of illusion"}
    modes = {"first": "first order", "refined": "refined"}
    figure = make_subplots(
        rows=2, cols=3, horizontal_spacing=0.08, vertical_spacing=0.14,
        subplot_titles=[f"{names[q]}: {modes[m]}" for m in MODES for q in QUANTITIES],
    )  # fmt: skip
    tasks = list(dict.fromkeys(row["task"] for row in result["rows"]))
    colours = dict(zip(tasks, ("#3a86c8", "#d5692a", "#8d6cc9", "#b8922a"), strict=False))
    for row, mode in enumerate(MODES, 1):
        for col, quantity in enumerate(QUANTITIES, 1):
            _, *both = points(result["rows"], mode, quantity)
            ends = [
                min([0.0, *map(min, filter(len, both))]),
                max([1.0, *map(max, filter(len, both))]),
            ]
            figure.add_scatter(
                x=ends, y=ends, mode="lines", line=dict(color="#888888", dash="dot"),
                showlegend=False, row=row, col=col,
            )  # fmt: skip
            for task in tasks:
                there, predicted, seen = points(
                    [r for r in result["rows"] if r["task"] == task], mode, quantity
                )
                figure.add_scatter(
                    x=predicted, y=seen, mode="markers", name=task, legendgroup=task,
                    showlegend=row == col == 1, text=[r["site"] for r in there],
                    marker=dict(color=colours.get(task, "#868d97"), size=6, opacity=0.75),
                    row=row, col=col,
                )  # fmt: skip
            figure.update_xaxes(title_text="predicted", row=row, col=col)
    for row in (1, 2):
        figure.update_yaxes(title_text="seen", row=row, col=1)
    figure.update_annotations(font_size=12)
    figure.update_layout(template="plotly_white", width=1000, height=680, legend_orientation="h")
    return figure
