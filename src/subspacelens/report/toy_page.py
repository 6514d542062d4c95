"""The page of the distilled example: tables, and a figure in which a slider turns the direction."""

from __future__ import annotations

import json
from dataclasses import asdict
from math import pi, sin
from pathlib import Path

import plotly.graph_objects as go
import torch
from torch import Tensor

from ..audit.verdict import EXACT
from ..core.files import write_atomically
from ..core.format import plain
from ..engine.patches import SubspacePatch
from ..studies.made import Made
from ..studies.toy import PATCHES, READ_IN, Judged, ToyResult, hidden, illusory, output
from .document import Plot, document
from .figures import BLUE, GREY, ORANGE, blank


def write_toy(result: ToyResult, directory: Path, made: Made | None = None) -> Path:
    """Writes `directory`/toy.json, toy.md and report.html; returns the path of the page."""
    record = {
        "schema": "subspacelens.toy/3",
        "table": result.table,
        "sweep": result.sweep,
        "span": result.span,
        "component": result.component,
        "verdicts": {
            name: [{**asdict(each), "verdict": each.verdict.model_dump()} for each in verdicts]
            for name, verdicts in result.verdicts.items()
        },
        "promises": [asdict(promise) for promise in result.promises],
        "made": made and made.model_dump(),
    }
    write_atomically(directory / "toy.md", markdown(result).encode())
    page = document(
        "toy.html.j2",
        title="The illusion in three hidden units",
        result=result,
        patches=PATCHES,
        conditions=EXACT,
        component=component,
        plots={
            "turn": Plot.of(turn_figure(), "Three hidden units before and after the patch"),
            "sweep": Plot.of(sweep_figure(result), "Effect against the angle of the direction"),
        },
    )
    write_atomically(directory / "report.html", page.encode())
    write_atomically(directory / "toy.json", json.dumps(record, indent=1).encode())
    return directory / "report.html"


def markdown(result: ToyResult) -> str:
    """The tables of effects and of verdicts as Markdown."""
    lines = [f"| direction | {' | '.join(PATCHES)} |", "|---" * (len(PATCHES) + 1) + "|"]
    for name, effects in result.table.items():
        lines.append(f"| {name} | {' | '.join(plain(effects[p]) for p in PATCHES)} |")
    lines += [
        "",
        f"Whole span of e1 and e2: {result.span:.2f}. Whole layer: {result.component:.2f}.",
        "",
        f"| direction | component | {' | '.join(EXACT)} | verdict |",
        "|---" * (len(EXACT) + 3) + "|",
    ]
    told = [(name, each) for name, verdicts in result.verdicts.items() for each in verdicts]
    for name, each in told:
        shares = " | ".join(plain(each.conditions[c]) for c in EXACT)
        lines.append(f"| {name} | {component(each)} | {shares} | {each.verdict.label} |")
    lines.append("")
    for name, each in told:
        why = "; ".join(each.verdict.reasons)
        lines.append(f"- {name}, {component(each)}, {each.verdict.label}: {why}.")
    return "\n".join(lines) + "\n"


def component(judged: Judged) -> str:
    """`unit 3`, `units 1, 2`, or `layer`."""
    if len(judged.units) == len(READ_IN):
        return "layer"
    plural = "s" if len(judged.units) > 1 else ""
    return f"unit{plural} {', '.join(map(str, judged.units))}"


def sweep_figure(result: ToyResult) -> go.Figure:
    """Measured effect of cos θ e1 + sin θ e2 beside the curve sin 2θ."""
    theta, effect = zip(*result.sweep, strict=True)
    fine = [d / 2 for d in range(181)]
    figure = blank(height=380)
    figure.add_scatter(
        x=fine, y=[sin(2 * d * pi / 180) for d in fine], mode="lines", name="sin 2θ",
        line={"color": GREY, "dash": "dot"},
    )  # fmt: skip
    figure.add_scatter(
        x=theta, y=effect, mode="markers", name="measured", marker={"color": BLUE, "size": 9}
    )
    figure.update_xaxes(title_text="θ, degrees (0: disconnected, 90: dormant)", dtick=15)
    figure.update_yaxes(title_text="effect (1: output becomes the source's)")
    return figure


def turn_figure() -> go.Figure:
    """Base x = -1, source x = 1: the slider turns θ; bars are the hidden units and the output."""
    names = ["unit 1<br>disconnected", "unit 2<br>dormant", "unit 3<br>in use", "output"]

    base, source = hidden(torch.tensor([-1.0])), hidden(torch.tensor([1.0]))

    def values(h: Tensor) -> list[float]:
        return [*h[0].tolist(), float(output(h))]

    def patched(degrees: float) -> list[float]:
        return values(base + SubspacePatch(illusory(degrees)).delta(base, source))

    figure = blank(height=480)
    figure.add_bar(x=names, y=values(base), name="base, x = −1", marker_color=GREY)
    figure.add_bar(x=names, y=patched(45), name="base, patched", marker_color=ORANGE)
    figure.add_bar(x=names, y=values(source), name="source, x = 1", marker_color=BLUE)
    steps = [
        {
            "method": "restyle",
            "label": f"{degrees}°",
            "args": [{"y": [patched(degrees)]}, [1]],
        }
        for degrees in range(0, 91, 5)
    ]
    figure.update_layout(
        barmode="group",
        sliders=[
            {
                "active": 9,
                "steps": steps,
                "currentvalue": {"prefix": "patch along cos θ e1 + sin θ e2, θ = "},
                "pad": {"t": 50},
            }
        ],
    )
    figure.update_yaxes(title_text="value", range=[-1.25, 1.25])
    return figure
