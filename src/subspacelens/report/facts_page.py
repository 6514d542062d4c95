"""The page of the facts study: tables and figures from its record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import plotly.graph_objects as go

from ..core.files import write_atomically
from ..core.format import with_interval
from ..core.records import Estimate
from ..studies.facts_record import FactsRecord
from ..studies.facts_summary import (
    FACTOR,
    PAPER_LAYERS,
    PAPER_XL,
    LayerSummary,
    findings,
    shared_summary,
    summary,
)
from .document import Plot, document
from .figures import BLUE, GOLD, GREY, ORANGE, PURPLE, blank

NAMES = {
    "v": "direction v",
    "full": "full component",
    "row": "unit row part of v",
    "null": "unit null part of v",
    "read_row": "read row → write v",
    "read_null": "read null → write v",
    "edit": "rank-1 edit from v",
}
STYLE = {
    "v": (ORANGE, "circle", "solid"),
    "edit": (GOLD, "diamond", "dot"),
    "full": (BLUE, "square", "solid"),
    "row": (PURPLE, "triangle-up", "dash"),
}


def write_facts(record: FactsRecord, directory: Path) -> Path:
    """Writes `directory`/facts.json, facts.md and report.html; returns the path of the page."""
    page = write_facts_page(record, directory)
    write_atomically(directory / "facts.json", record.model_dump_json(indent=1).encode())
    return page


def write_facts_page(record: FactsRecord, directory: Path) -> Path:
    """The page and the table alone, from a record that is there."""
    rows = summary(record)
    mlp = [row for row in rows if row.stream == "mlp_act"]
    write_atomically(directory / "facts.md", markdown(record).encode())
    page = document(
        "facts.html.j2",
        title="Facts: one direction against its whole component",
        record=record,
        relations=sorted({pair.relation for pair in record.pairs}),
        mlp=mlp,
        residual=[row for row in rows if row.stream == "resid_post"],
        shared=shared_summary(record),
        findings=findings(record),
        known_paraphrases=sum(record.paraphrase_known),
        names=NAMES,
        factor=FACTOR,
        paper_layers=PAPER_LAYERS,
        paper=PAPER_XL,
        plots={
            "flips": Plot.of(flips_figure(mlp), "Share of pairs flipped by each patch, by layer"),
            "beyond": Plot.of(beyond_figure(mlp), "The same directions beyond their own pair"),
        },
    )
    write_atomically(directory / "report.html", page.encode())
    return directory / "report.html"


def markdown(record: FactsRecord) -> str:
    """Flips of every patch, a layer a row."""
    patches = [name for name in NAMES if name in record.layers[0].patches]
    lines = [
        f"| site | {' | '.join(NAMES[name] for name in patches)} | paraphrases | other pairs |",
        "|---" * (len(patches) + 3) + "|",
    ]
    for row in summary(record):
        entries = [with_interval(row.flips.get(name)) for name in patches]
        entries += [with_interval(row.paraphrases["v"]), with_interval(row.others)]
        lines.append(f"| L{row.layer}.{row.stream} | {' | '.join(entries)} |")
    return "\n".join([*lines, "", *findings(record)]) + "\n"


def flips_figure(rows: list[LayerSummary]) -> go.Figure:
    """Share of pairs whose top token becomes the source's, for v, its edit and the controls."""
    lines = [Line(NAMES[n], [r.flips.get(n) for r in rows], *STYLE[n]) for n in STYLE]
    whole = [row.residual for row in rows]
    lines.append(Line("whole residual stream", whole, GREY, "x", "dashdot"))
    return lines_figure([row.layer for row in rows], lines, "share of pairs flipped")


def beyond_figure(rows: list[LayerSummary]) -> go.Figure:
    """v on its own pair, on paraphrases of it and on another pair of the relation."""
    direction, whole = ([row.paraphrases[name] for row in rows] for name in ("v", "full"))
    lines = [
        Line("its own pair", [row.flips["v"] for row in rows], *STYLE["v"]),
        Line("paraphrases of the pair", direction, *STYLE["edit"]),
        Line("another pair of the relation", [row.others for row in rows], *STYLE["row"]),
        Line("paraphrases, full component", whole, *STYLE["full"]),
    ]
    return lines_figure([row.layer for row in rows], lines, "share of pairs flipped")


@dataclass(frozen=True)
class Line:
    """One quantity at every layer, with the look of its line."""

    name: str
    values: Sequence[Estimate | None]
    colour: str
    symbol: str
    dash: str


def lines_figure(layers: list[int], lines: Sequence[Line], title: str) -> go.Figure:
    """Estimates against layers, with their intervals; lines without a value are left out."""
    figure = blank(height=400)
    lowest = 0.0
    for line in lines:
        estimates = [e if e is not None and e.value is not None else None for e in line.values]
        if not any(estimates):
            continue
        lowest = min([lowest, *(e.value for e in estimates if e and e.value is not None)])
        figure.add_scatter(
            x=layers,
            y=[e.value if e else None for e in estimates],
            name=line.name,
            mode="lines+markers",
            line={"color": line.colour, "dash": line.dash, "width": 2},
            marker={"symbol": line.symbol, "size": 8},
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [_reach(e, "high") for e in estimates],
                "arrayminus": [_reach(e, "low") for e in estimates],
                "color": line.colour,
                "thickness": 1,
                "width": 3,
            },
            hovertemplate="layer %{x}: %{y:.2f}",
        )
    figure.update_xaxes(title_text="layer", tickvals=layers, zeroline=False)
    figure.update_yaxes(title_text=title, range=[min(-0.03, 1.15 * lowest), 1.05])
    return figure


def _reach(estimate: Estimate | None, end: str) -> float:
    edge = getattr(estimate, end) if estimate else None
    return (
        0.0
        if estimate is None or estimate.value is None or edge is None
        else abs(edge - estimate.value)
    )
