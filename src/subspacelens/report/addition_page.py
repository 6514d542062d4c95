"""The page of additions: records in, one self-contained HTML file out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..audit.addition.record import PATCHES, AdditionRecord, load_addition
from ..audit.addition.run import ADDITION_FILE
from ..audit.controls.words import in_words
from ..audit.failure import Failure, load_failures
from ..audit.record import Test
from ..core.errors import ResultError
from ..core.files import write_atomically
from ..core.format import fixed, number, percent
from .document import Plot, document
from .figures import BLUE, GREY, ORANGE, PURPLE, TEXT, blank, natural_and_patched
from .page import spread
from .words import METRIC_WORDS, TEST_WORDS

PAGE = "addition.html"

PATCH_WORDS = {
    "full": ("full component", "the whole activation comes from the source"),
    "add": ("the addition", "what is judged"),
    "mean": ("class difference", "what nature changes there on average is added instead"),
    "random": ("random vector", "one that writes as much, the mean of all drawn"),
}
ADDITION_WORDS = {
    "full_component": (
        "Does the whole component do what is added to it?",
        "effect of full ÷ effect of the addition",
    ),
    "natural": (
        "How much of the effect would nature have made?",
        "effect of as much class difference ÷ effect of the addition",
    ),
    "beyond": (
        "How much is left when that is taken out?",
        "effect of the rest ÷ effect of the addition",
    ),
    "reach": (
        "How far does nature go along it when the feature changes?",
        "natural change ÷ dose, where the answer reacts",
    ),
    "natural_range": (
        "Do the patched readings lie no further than natural ones?",
        "share inside the natural 99 %",
    ),
    "chance": ("Is it better than a random vector that writes as much?", "p-value"),
    "towards": (
        "Does the prediction become that of the other list?",
        "drop of the KL divergence from it, nats",
    ),
    "separation": ("Do the classes lie apart along it?", "held-out AUROC, 1 if v points to z = 1"),
    "behaviour": (
        "Does behaviour follow it in nature, at equal z?",
        "natural slope of the answer ÷ that of adding it",
    ),
    "hidden_pathway": TEST_WORDS["hidden_pathway"],
    "path": TEST_WORDS["path"],
    "everywhere": (
        "Does it do the same at every token, as steering does?",
        "effect at all tokens ÷ effect of the addition",
    ),
    "unrelated_text": (
        "Does it move text that the task has nothing to do with?",
        "KL on other text ÷ that of random vectors",
    ),
}


def write_addition_page(directory: Path | str) -> Path:
    """Reads every `directory`/*/addition.json and failure.json, in order of their paths, writes
    `directory`/addition.html and returns its path.

    Raises `ResultError` where there is none, where one is not a record, or where the page cannot be
    written.
    """
    directory = Path(directory)
    paths = sorted(directory.glob(f"*/{ADDITION_FILE}"))
    if not paths:
        raise ResultError(f"no {ADDITION_FILE} in any folder of {directory}: nothing to report")
    records = [load_addition(path) for path in paths]
    target = directory / PAGE
    write_atomically(target, render_additions(records, load_failures(directory)).encode())
    return target


def render_additions(records: Sequence[AdditionRecord], failures: Sequence[Failure] = ()) -> str:
    """The page of `records`, in their order, as one HTML document that needs no network."""
    models = ", ".join(dict.fromkeys(record.model.id for record in records))
    tasks = ", ".join(dict.fromkeys(record.task.name for record in records))
    return document(
        "addition.html.j2",
        {
            "in_words": in_words,
            "ordered_tests": ordered_tests,
            "dose_rows": dose_rows,
            "spread": spread,
            "leaves": leaves_in_words,
        },
        title=f"Audit of an addition: {tasks} in {models}",
        records=records,
        failures=failures,
        plots=[_plots(record) for record in records],
        patches=PATCHES,
        patch_words=PATCH_WORDS,
        metric_words=METRIC_WORDS,
    )


def ordered_tests(record: AdditionRecord) -> Iterator[tuple[str, str, str, Test]]:
    """(id, plain question, statistic, test) in the order of the documentation."""
    for name in sorted(record.tests, key=[*ADDITION_WORDS].index):
        yield name, *ADDITION_WORDS[name], record.tests[name]


def dose_rows(record: AdditionRecord) -> Iterator[tuple[float, ...]]:
    """α, effect, share inside, relative length, deviations and class distances, None where there
    are none."""
    curve = record.curve
    nothing = [None] * len(curve.dose)
    yield from zip(
        curve.alpha, curve.effect, curve.inside, curve.relative, curve.deviations or nothing,
        curve.classes or nothing, strict=True,
    )  # fmt: skip


def dose_figure(record: AdditionRecord) -> go.Figure:
    """Effect (above) and share inside nature (below) against the multiple of the dose, with the
    dose that was asked for and the largest that stays inside nature."""
    curve = record.curve
    figure = make_subplots(
        rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.1, row_heights=[0.6, 0.4],
        figure=blank(height=430),
    )  # fmt: skip
    hover = [
        "<br>".join(
            (
                f"alpha {number(alpha)}: {number(effect)} nats",
                f"{percent(inside)} inside nature",
                f"{percent(relative)} of an activation's length",
                *([f"{number(deviations)} natural deviations"] if deviations is not None else []),
                *([f"{number(classes)} class distances"] if classes is not None else []),
            )
        )
        for alpha, effect, inside, relative, deviations, classes in dose_rows(record)
    ]
    for values, name, colour, dash, row in (
        (curve.effect, "effect", BLUE, "solid", 1),
        (curve.inside, "share inside nature", ORANGE, "dash", 2),
    ):
        figure.add_scatter(
            x=curve.alpha, y=values, mode="lines+markers", name=name,
            line={"color": colour, "width": 2, "dash": dash}, marker={"size": 7},
            customdata=hover, hovertemplate="%{customdata}<extra></extra>", showlegend=False,
            row=row, col=1,
        )  # fmt: skip
    low, high = min(curve.alpha), max(curve.alpha)
    inside = curve.leaves
    if inside is not None and low <= inside <= high:
        ends = (inside, high) if record.vector.alpha > 0 else (low, inside)
        figure.add_vrect(x0=ends[0], x1=ends[1], fillcolor=GREY, opacity=0.16, line_width=0)
        figure.add_annotation(
            x=ends[0], y=1, yref="paper", yanchor="bottom", xanchor="left", showarrow=False,
            text=f"beyond nature from {number(inside)}",
        )  # fmt: skip
    figure.add_vline(x=record.vector.alpha, line={"color": TEXT, "width": 1.3, "dash": "dot"})
    figure.update_xaxes(title_text="alpha (dotted: the dose that was asked for)", row=2)
    figure.update_xaxes(showticklabels=False, row=1)
    figure.update_yaxes(title_text="effect, nats", row=1)
    figure.update_yaxes(title_text="share inside<br>nature", range=[-0.05, 1.05], nticks=4, row=2)
    return figure.update_layout(margin_t=36)


def written_figure(record: AdditionRecord) -> go.Figure:
    """Natural readings above, patched ones below."""
    figure = natural_and_patched(record.written, "what is written")
    title = "along what is written, in units of the addition"
    return figure.update_xaxes(title_text=title, row=2)


def readers_figure(record: AdditionRecord) -> go.Figure | None:
    """Bars of the strongest readers; None where nobody reads it."""
    if not record.readers:
        return None
    shares = [reader.share for reader in record.readers]
    figure = blank(height=90 + 26 * len(shares))
    figure.add_bar(
        x=shares,
        y=[reader.name for reader in record.readers],
        orientation="h",
        marker={"color": [BLUE if share > 0 else ORANGE for share in shares]},
        hovertemplate="%{y}: %{x:.1%}<extra></extra>",
        showlegend=False,
    )
    figure.update_xaxes(title_text="share of the attribution", tickformat=".0%")
    figure.update_yaxes(autorange="reversed", showgrid=False, zeroline=False, ticks="")
    return figure


def controls_figure(record: AdditionRecord) -> go.Figure | None:
    """How many planted vectors of each kind got which verdict; None where none was planted."""
    if record.controls is None or not record.controls.spikes:
        return None
    kinds = ("faithful", "mixed", "illusory", "sensor")
    said = {
        "faithful": (("faithful", "partial"), BLUE),
        "mixed": (("mixed",), PURPLE),
        "undetermined": (("undetermined",), GREY),
        "illusory": (("illusory",), ORANGE),
    }
    figure = blank(height=240)
    for name, (labels, colour) in said.items():
        counts = [
            sum(row.kind == kind and row.label in labels for row in record.controls.spikes)
            for kind in kinds
        ]
        figure.add_bar(
            x=counts, y=[f"planted: {kind}" for kind in kinds], orientation="h",
            name=f"called {name}", marker={"color": colour},
            text=[str(count) if count else "" for count in counts],
            hovertemplate=f"%{{y}}, called {name}: %{{x}}<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(title_text="planted vectors")
    figure.update_yaxes(autorange="reversed", showgrid=False, zeroline=False, ticks="")
    return figure.update_layout(barmode="stack", margin_t=60)


def _plots(record: AdditionRecord) -> dict[str, Plot | None]:
    curve, controls = record.curve, record.controls
    doses = "; ".join(
        f"alpha {number(alpha)}: {fixed(effect)} nats, {percent(inside)} inside"
        for alpha, effect, inside, *_ in dose_rows(record)
    )
    readers = ", ".join(f"{reader.name} {percent(reader.share)}" for reader in record.readers)
    planted = " ".join(in_words(controls, record.task.test_pairs)) if controls else ""
    leaves = "no dose leaves nature" if curve.leaves is None else number(curve.leaves)
    written = record.written
    drawn: dict[str, tuple[go.Figure | None, str]] = {
        "dose": (dose_figure(record), f"Dose curve, beyond nature from {leaves}. {doses}"),
        "written": (
            written_figure(record),
            f"Histograms along what is written. Natural: {spread(written.natural)}. "
            f"Patched: {spread(written.patched)}",
        ),
        "readers": (readers_figure(record), f"Bars of the readers: {readers}"),
        "controls": (controls_figure(record), f"Planted vectors by truth and verdict. {planted}"),
    }
    return {
        name: None if figure is None else Plot.of(figure, f"{record.site}. {label}")
        for name, (figure, label) in drawn.items()
    }


def leaves_in_words(record: AdditionRecord) -> str:
    """Where the dose leaves nature, in one sentence."""
    curve = record.curve
    if curve.leaves is None:
        return "No dose up to a thousand times this one leaves nature along what is written."
    if curve.leaves == 0:
        return "No dose stays inside nature along what is written."
    there = curve.effect_inside
    effect = "" if there is None else f", where it does {fixed(there.value)} nats"
    return f"Up to alpha {number(curve.leaves)} it stays inside nature{effect}."
