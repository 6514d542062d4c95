"""The report's pictures: an `AuditRecord` in, a plotly figure out, nothing else touched.

Every colour is a mid-tone that reads on white and on black, so a figure stands alone on either;
the page's script then sets text and grid to its own theme. Blue is what is connected or naturally
varies, orange what is not; purple (solid) and gold (dashed) are the two classes of the feature.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..audit.record import PATCHES, AuditRecord, Scatter, Written
from ..core.format import fixed
from ..core.records import Estimate

Metric = Literal["nats", "fldd", "iia", "iia_pair"]
Part = Literal["subspace", "row", "null"]

BLUE, ORANGE, PURPLE, GOLD, GREY, TEXT = (
    "#3a86c8", "#d5692a", "#8d6cc9", "#b8922a", "#868d97", "#7d838c",
)  # fmt: skip

PATCH_NAMES = {
    "full": "full component",
    "subspace": "subspace V",
    "row": "unit row part",
    "null": "unit null part",
    "read_row": "read row → write V",
    "read_null": "read null → write V",
    "random": "random direction",
    "reversed": "reversed pairs",
}
_PATCH_COLOURS = {"subspace": PURPLE, "row": BLUE, "read_row": BLUE, "null": ORANGE} | {
    "read_null": ORANGE
}
_MARK_SYMBOLS: dict[str, str] = dict(
    zip(
        PATCHES,
        ("star", "diamond", "square", "circle", "triangle-up", "triangle-down", "x", "cross"),
        strict=True,
    )
)

_METRIC_TITLES: dict[Metric, str] = {
    "nats": "change of the logit difference, nats",
    "fldd": "FLDD: 0 = no change,<br>1 = difference gone, 2 = reversed",
    "iia": "IIA: share of pairs whose top token<br>becomes the source's answer",
    "iia_pair": "IIA: share of pairs that prefer<br>the source's answer of the two",
}
_CLASSES = (("z0", "z = 0", PURPLE, "solid"), ("z1", "z = 1", GOLD, "dash"))


def effects(record: AuditRecord, metric: Metric = "fldd") -> go.Figure:
    """Bars of one metric for every patch, with 95 % intervals and the no-op as a dotted line.

    A patch that has no value keeps its row and says so in place of a bar.
    """
    names = patch_order(record)
    estimates = [getattr(record.effect(name), metric) for name in names]
    labels = [safe(PATCH_NAMES.get(name, name)) for name in names]
    figure = blank(height=max(360, 140 + 30 * len(names)))
    figure.add_bar(
        x=[estimate.value for estimate in estimates],
        y=labels,
        orientation="h",
        marker={
            "color": [_faint(_PATCH_COLOURS.get(name, GREY), 0.45) for name in names],
            "line": {"color": [_PATCH_COLOURS.get(name, GREY) for name in names], "width": 1},
        },
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [_gap(e.value, e.high) for e in estimates],
            "arrayminus": [_gap(e.value, e.low) for e in estimates],
            "color": TEXT,
            "thickness": 1.3,
            "width": 4,
        },
        hovertemplate="%{y}: %{x:.3f}<extra></extra>",
        showlegend=False,
    )
    ends = [x for e in estimates for x in (e.value, e.low, e.high) if x is not None]
    low, high = min([0.0, *ends]), max([0.0 if metric == "nats" else 1.0, *ends])
    room = 0.04 * (high - low or 1.0)
    for label, estimate in zip(labels, estimates, strict=True):
        if estimate.value is None:
            figure.add_annotation(
                x=0, y=label, text="not available here", showarrow=False, xanchor="left", xshift=6
            )
    no_op = getattr(record.no_op, metric).value
    if no_op is not None:
        figure.add_vline(
            x=no_op,
            line={"color": TEXT, "width": 1.3, "dash": "dot"},
            layer="below",
            annotation={"text": f"no-op {fixed(no_op)}", "xanchor": "left", "xshift": -4},
            annotation_position="top",
        )
    if metric == "fldd":
        line = {"color": TEXT, "width": 1, "dash": "dash"}
        figure.add_vline(x=1, line=line, opacity=0.6, layer="below")
    figure.update_xaxes(
        title_text=_METRIC_TITLES[metric], range=[low - (room if low else 0), high + room]
    )
    figure.update_yaxes(autorange="reversed", showgrid=False, zeroline=False, ticks="")
    return figure.update_layout(bargap=0.38, margin_t=34)


def projection(record: AuditRecord, part: Part = "subspace") -> go.Figure | None:
    """Histograms, one a class, of natural activations projected on the subspace, or on its row or
    null part; None where that part does not exist."""
    scatter = scatters(record)[part]
    if scatter is None:
        return None
    figure = blank(height=300)
    edges = _edges([*scatter.z0, *scatter.z1])
    for trace in _histograms(scatter, edges):
        figure.add_trace(trace)
    what = {"subspace": "the subspace", "row": "its row part", "null": "its null part"}[part]
    figure.update_xaxes(title_text=f"projection on {what},<br>activation units")
    figure.update_yaxes(title_text="share of prompts", rangemode="tozero", nticks=5)
    return figure


def dose_response(record: AuditRecord) -> go.Figure:
    """Effect (nats) against dose (multiples of what the subspace patch writes), with a mark on the
    curve at the dose of every named patch."""
    curve = record.figures.dose_response
    order = np.argsort(curve.dose, kind="stable")
    dose = [curve.dose[i] for i in order]
    effect = [curve.effect[i] for i in order]
    figure = blank(height=400)
    figure.add_scatter(
        x=dose,
        y=effect,
        mode="lines+markers",
        line={"color": GREY, "width": 2},
        marker={"size": 4},
        hovertemplate="dose %{x:.2f}: %{y:.2f} nats<extra></extra>",
        showlegend=False,
    )
    for name, x in sorted(curve.marks.items(), key=lambda mark: mark[1]):
        figure.add_scatter(
            x=[x],
            y=[float(np.interp(x, dose, effect)) if dose else None],
            mode="markers",
            name=f"{safe(PATCH_NAMES.get(name, name))} ({fixed(x)})",
            marker={
                "symbol": _MARK_SYMBOLS.get(name, "hexagon"),
                "size": 12,
                "color": _PATCH_COLOURS.get(name, GREY),
                "line": {"width": 1, "color": TEXT},
            },
            hovertemplate="dose %{x:.2f}: %{y:.2f} nats<extra></extra>",
        )
    figure.update_xaxes(title_text="dose, multiples of what the patch writes")
    figure.update_yaxes(title_text="effect on the logit difference, nats")
    return figure


def written(record: AuditRecord) -> go.Figure:
    """What the site writes along the direction that the subspace writes."""
    return natural_and_patched(record.figures.written, "the written direction")


def natural_and_patched(values: Written, along: str) -> go.Figure:
    """Natural values above, patched ones below; the band is the central 99 % of the natural ones.
    `along` names what was projected on."""
    natural, patched = values.natural, values.patched
    everything = [*natural.z0, *natural.z1]
    edges = _edges([*everything, *patched.z0, *patched.z1])
    figure = make_subplots(
        rows=2,
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.12,
        figure=blank(height=400),
    )
    for row, scatter in ((1, natural), (2, patched)):
        for trace in _histograms(scatter, edges):
            figure.add_trace(trace.update(showlegend=row == 1), row=row, col=1)
    if everything:
        low, high = np.quantile(everything, [0.005, 0.995]).tolist()
        band = {"fillcolor": GREY, "opacity": 0.2, "line_width": 0, "layer": "below"}
        figure.add_shape(type="rect", x0=low, x1=high, xref="x", yref="paper", y0=0, y1=1, **band)
        figure.add_scatter(
            x=[None],
            y=[None],
            mode="markers",
            marker={"symbol": "square", "size": 13, "color": GREY, "opacity": 0.35},
            name="natural 99 %",
        )
    figure.update_xaxes(zeroline=False)
    figure.update_xaxes(title_text=f"along {along}, activation units", row=2)
    figure.update_yaxes(rangemode="tozero", nticks=4)
    figure.update_yaxes(title_text="natural,<br>share", row=1)
    figure.update_yaxes(title_text="patched,<br>share", row=2)
    return _hide_inner_ticks(figure)


def support(record: AuditRecord) -> go.Figure:
    """FLDD of the on- and off-support part (above) and share of the subspace on the support
    (below) against the share of natural variance that the support explains."""
    curve = record.figures.support
    places = list(range(len(curve.explained)))
    ticks = [f"{100 * x:.4g} %" for x in curve.explained]
    figure = make_subplots(
        rows=2,
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.1,
        row_heights=[0.6, 0.4],
        figure=blank(height=430),
    )
    lines = (
        (curve.on, "on-support part", BLUE, "circle", "solid", 1),
        (curve.off, "off-support part", ORANGE, "square", "dash", 1),
        (curve.share, "share of V on support", PURPLE, "diamond", "solid", 2),
    )
    for values, name, colour, symbol, dash, row in lines:
        figure.add_scatter(
            x=places,
            y=values,
            name=name,
            mode="lines+markers",
            line={"color": colour, "width": 2, "dash": dash},
            marker={"symbol": symbol, "size": 8},
            cliponaxis=False,
            customdata=list(zip(ticks, curve.components, strict=True)),
            hovertemplate="%{y:.2f} at %{customdata[0]}, %{customdata[1]} components",
            row=row,
            col=1,
        )
    figure.update_xaxes(tickvals=places, ticktext=ticks, zeroline=False, showgrid=False)
    figure.update_xaxes(title_text="natural variance that the support explains", row=2)
    figure.update_yaxes(title_text="FLDD", rangemode="tozero", row=1)
    figure.update_yaxes(title_text="share of ‖V‖²", range=[-0.04, 1.04], nticks=4, row=2)
    return _hide_inner_ticks(figure)


LOOKS = {
    "faithful": (BLUE, "circle"),
    "partial": (BLUE, "circle-open"),
    "mixed": (PURPLE, "diamond"),
    "undetermined": (GREY, "x-thin-open"),
    "illusory": (ORANGE, "square"),
}
"""Colour and mark of every verdict."""


def controls(record: AuditRecord) -> go.Figure | None:
    """Every planted subspace at its FLDD, in the row of its truth, marked by what the audit said;
    None where none was planted."""
    if record.controls is None or not record.controls.spikes:
        return None
    figure = blank(height=260)
    truths = ["faithful", "mixed", "illusory"]
    for label, (colour, symbol) in LOOKS.items():
        rows = [row for row in record.controls.spikes if row.label == label]
        if rows:
            figure.add_scatter(
                x=[row.fldd for row in rows],
                y=[truths.index(row.kind) + (row.model % 5 - 2) * 0.09 for row in rows],
                mode="markers",
                name=f"called {label}",
                marker={
                    "symbol": symbol,
                    "size": 10,
                    "color": colour,
                    "line": {"width": 1.5, "color": colour},
                },
                hovertemplate="FLDD %{x:.2f}<extra></extra>",
            )
    own = record.effect("subspace").fldd.value
    if own is not None:
        figure.add_vline(
            x=own, line={"color": TEXT, "width": 1.3, "dash": "dot"},
            annotation={"text": f"this subspace: {record.verdict.label}", "xanchor": "left"},
            annotation_position="top",
        )  # fmt: skip
    figure.update_xaxes(title_text="FLDD", rangemode="tozero")
    figure.update_yaxes(
        tickvals=[0, 1, 2], ticktext=[f"planted: {kind}" for kind in truths], range=[-0.6, 2.6],
        showgrid=False, zeroline=False,
    )  # fmt: skip
    return figure.update_layout(margin_t=60)


def patch_order(record: AuditRecord) -> list[str]:
    """The eight patches, then whatever else the record has."""
    return [*PATCHES, *(name for name in record.effects if name not in PATCHES)]


def scatters(record: AuditRecord) -> Mapping[Part, Scatter | None]:
    """The natural projections by part."""
    figures = record.figures
    return {
        "subspace": figures.projection,
        "row": figures.row_projection,
        "null": figures.null_projection,
    }


_NOTHING = Estimate(value=None)


def blank(height: int) -> go.Figure:
    """An empty figure in the report's style: transparent, no drag (a phone must scroll)."""
    axis = {
        "gridcolor": "rgba(134,141,151,.22)",
        "zerolinecolor": "rgba(134,141,151,.6)",
        "linecolor": "rgba(134,141,151,.6)",
        "automargin": True,
        "fixedrange": True,
        "title": {"standoff": 10, "font": {"size": 12}},
    }
    # Subplot axes are made later: their style travels in the template.
    figure = go.Figure()
    figure.update_layout(
        template=go.layout.Template(layout={"xaxis": axis, "yaxis": axis}),
        height=height,
        autosize=True,
        dragmode=False,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 8, "r": 12, "t": 12, "b": 8},
        font={
            "family": 'system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif',
            "size": 12,
            "color": TEXT,
        },
        legend={
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "y": 1.02,
            "yanchor": "bottom",
            "bgcolor": "rgba(0,0,0,0)",
        },
        hoverlabel={"font": {"size": 12}},
    )
    return figure


def _histograms(scatter: Scatter, edges: np.ndarray) -> list[go.Scatter]:
    """One filled step line a class: the share of that class's values in each bin of `edges`."""
    width = edges[1] - edges[0]
    centres = np.linspace(edges[0] - width / 2, edges[-1] + width / 2, len(edges) + 1)
    traces = []
    for key, name, colour, dash in _CLASSES:
        values: Sequence[float] = getattr(scatter, key)
        share = np.pad(np.histogram(values, edges)[0] / max(len(values), 1), 1)
        filled = np.flatnonzero(share)
        shown = slice(filled[0] - 1, filled[-1] + 2) if len(filled) else slice(0, 0)
        traces.append(
            go.Scatter(
                x=centres[shown].tolist(),
                y=share[shown].tolist(),
                name=name,
                legendgroup=key,
                mode="lines",
                line={"color": colour, "width": 1.8, "shape": "hvh", "dash": dash},
                fill="tozeroy",
                fillcolor=_faint(colour, 0.28),
                hovertemplate="%{x:.3g}: %{y:.2f}",
            )
        )
    return traces


def _edges(values: Sequence[float]) -> np.ndarray:
    """Equal bins over all `values`, between 12 and 40 of them by how many values there are."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-30):
        room = max(abs(low) * 0.1, 0.5)
        low, high = low - room, high + room
    return np.linspace(low, high, int(np.clip(1.5 * len(values) ** 0.5, 12, 40)) + 1)


def _hide_inner_ticks(figure: go.Figure) -> go.Figure:
    return figure.update_xaxes(showticklabels=False, row=1)


def _gap(value: float | None, end: float | None) -> float:
    return 0.0 if value is None or end is None else abs(end - value)


def _faint(colour: str, opacity: float) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, {opacity})"


def safe(text: str) -> str:
    """Plotly reads tags in text: a name from a file must not bring any."""
    return html.escape(text)
