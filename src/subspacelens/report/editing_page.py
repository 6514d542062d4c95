"""The page of the editing study: tables and figures from its record."""

from __future__ import annotations

from pathlib import Path

import plotly.graph_objects as go

from ..core.files import write_atomically
from ..core.format import with_interval
from ..studies.editing_record import EditingRecord
from ..studies.editing_summary import (
    PAIRINGS,
    PAPER_LAYERS,
    PAPER_XL,
    EditSummary,
    edit_findings,
    edit_summary,
    over_layers,
    unedited,
)
from .document import Plot, document
from .facts_page import Line, lines_figure
from .figures import BLUE, GOLD, ORANGE, PURPLE, blank
from .tiles import SCALE, colorbar


def write_editing(record: EditingRecord, directory: Path) -> Path:
    """Writes `directory`/editing.json, editing.md and report.html; returns the path of the page."""
    page = write_editing_page(record, directory)
    write_atomically(directory / "editing.json", record.model_dump_json(indent=1).encode())
    return page


def write_editing_page(record: EditingRecord, directory: Path) -> Path:
    """The page and the table alone, from a record that is there."""
    rows = edit_summary(record)
    write_atomically(directory / "editing.md", markdown(record).encode())
    page = document(
        "editing.html.j2",
        title="Does an edit work where the fact is stored?",
        record=record,
        rows=rows,
        before=record.before,
        unedited=unedited(record),
        relations=sorted({pair.relation for pair in record.pairs}),
        pairings=PAIRINGS,
        over=over_layers(record),
        findings=edit_findings(record),
        paper_layers=PAPER_LAYERS,
        paper=PAPER_XL,
        plots={
            "why": Plot.of(why_figure(rows), "Edit, patch, full component and tracing by layer"),
            "zero": Plot.of(zero_figure(rows), "Rewrite score of the edit and of its patches"),
            "map": Plot.of(map_figure(record), "Causal tracing: layer against token"),
        },
    )
    write_atomically(directory / "report.html", page.encode())
    return directory / "report.html"


def markdown(record: EditingRecord) -> str:
    """A layer a row."""
    columns = {
        "rewrite score": "rome", "paraphrase": "paraphrase", "neighbourhood": "neighbour",
        "zero-setting": "zero", "row part": "zero_row", "|cos(v,b)|": "cos_vb",
        "variance ratio": "ratio", "patch flips": "patch", "full flips": "full", "trace": "trace",
    }  # fmt: skip
    lines = [f"| layer | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for row in edit_summary(record):
        entries = [with_interval(getattr(row, name)) for name in columns.values()]
        lines.append(f"| {row.layer} | {' | '.join(entries)} |")
    return "\n".join([*lines, "", *edit_findings(record)]) + "\n"


def why_figure(rows: list[EditSummary]) -> go.Figure:
    """Edit and patch against full component and tracing."""
    return lines_figure(
        [row.layer for row in rows],
        [
            Line("ROME edit, rewrite score", [r.rome for r in rows], ORANGE, "circle", "solid"),
            Line("patch along v, flips", [r.patch for r in rows], GOLD, "diamond", "dot"),
            Line("full component, flips", [r.full for r in rows], BLUE, "square", "solid"),
            Line("tracing effect", [r.trace for r in rows], PURPLE, "triangle-up", "dash"),
        ],
        "share, or probability",
    )


def zero_figure(rows: list[EditSummary]) -> go.Figure:
    """The edit against the zero-setting patches made from it."""
    return lines_figure(
        [row.layer for row in rows],
        [
            Line("ROME edit", [r.rome for r in rows], ORANGE, "circle", "solid"),
            Line("zero-setting patch", [r.zero for r in rows], PURPLE, "diamond", "dot"),
            Line("the same at all tokens", [r.zero_everywhere for r in rows], GOLD, "star", "dash"),
            Line("row part alone", [r.zero_row for r in rows], BLUE, "square", "solid"),
        ],
        "rewrite score",
    )


def map_figure(record: EditingRecord) -> go.Figure:
    """Mean indirect effect by role of the token (rows) and layer (columns)."""
    roles = list(record.trace_map)
    values = [record.trace_map[role] for role in roles]
    largest = max(abs(x) for row in values for x in row) or 1.0
    figure = blank(height=380)
    figure.add_heatmap(
        x=[str(layer) for layer in record.trace_layers],
        y=roles,
        z=values,
        zmin=-largest,
        zmax=largest,
        xgap=1,
        ygap=1,
        colorscale=SCALE,
        texttemplate="%{z:.2f}",
        colorbar=colorbar("probability that comes back"),
        hovertemplate="layer %{x}, %{y}: %{z:.3f}<extra></extra>",
    )
    figure.update_xaxes(title_text="layer whose state is put back", showgrid=False, type="category")
    figure.update_yaxes(autorange="reversed", showgrid=False)
    return figure
