"""The examples of an audit's page: a dozen pairs as text, and all of them as points."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
from markupsafe import Markup, escape

from ..audit.record import AuditRecord, PairTable
from ..core.format import fixed
from ..engine.likely import Likely
from .document import Plot
from .figures import BLUE, GREY, ORANGE, PURPLE, TEXT, blank, safe

KINDS = {
    "typical": ("typical", "its effect is nearest to the median"),
    "extreme": ("extreme", "among the strongest or the weakest effects"),
    "failing": ("failing", "answered wrongly without a patch, or its answer survives the patch"),
}
ROWS = {
    "clean": "no patch",
    "full": "whole component",
    "subspace": "subspace V",
    "row": "unit row part",
}
_COLOURS = {"typical": BLUE, "extreme": PURPLE, "failing": ORANGE}
_SYMBOLS = {"typical": "circle", "extreme": "diamond", "failing": "x"}
HOVER_ROOM = 110
CARD_ROOM = 1500
_LINE = 58


@dataclass(frozen=True)
class Card:
    """One pair: `rows` are the name of a patch, the logit difference under it, and the likeliest
    next tokens; `template` is the number of its template."""

    kind: str
    why: str
    template: int
    template_name: str
    base: Markup
    source: Markup
    answer: str
    target: str
    rows: list[tuple[str, float | None, list[Likely]]]


@dataclass(frozen=True)
class Examples:
    """What the section shows. `templates`: number, name and count of pairs of each."""

    cards: list[Card]
    plot: Plot
    templates: list[tuple[int, str, int]]
    pairs: int


def examples(record: AuditRecord) -> Examples | None:
    """The section of one audit, None where no pair is to be shown."""
    pairs = record.pairs
    if not record.examples:
        return None
    counts = Counter(pairs.template)
    numbers = {name: number for number, name in enumerate(counts)}
    return Examples(
        cards=[_card(record, number, numbers) for number in range(len(record.examples))],
        plot=Plot.of(scatter(record), _label(record)),
        templates=[(number, name or "none", counts[name]) for name, number in numbers.items()],
        pairs=len(pairs.pair),
    )


def scatter(record: AuditRecord) -> go.Figure:
    """A point a pair: the effect of the subspace against that of the whole component, in nats; the
    pairs of the cards by their kind."""
    pairs = record.pairs
    numbers = {name: str(number) for number, name in enumerate(dict.fromkeys(pairs.template))}
    x, y = (
        [clean - after for clean, after in zip(pairs.clean, pairs.patched[name], strict=True)]
        for name in ("full", "subspace")
    )
    figure = blank(height=430)
    low, high = min([0.0, *x, *y]), max([0.0, *x, *y])
    line = {"color": TEXT, "width": 1, "dash": "dot"}
    figure.add_shape(type="line", x0=low, y0=low, x1=high, y1=high, line=line, layer="below")
    kinds = {each.row: each.kind for each in record.examples}
    groups = {"": [i for i in range(len(x)) if i not in kinds]}
    groups |= {kind: [i for i, of in kinds.items() if of == kind] for kind in KINDS}
    for kind, rows in groups.items():
        figure.add_scatter(
            x=[round(x[i], 3) for i in rows],
            y=[round(y[i], 3) for i in rows],
            mode="markers",
            name=KINDS[kind][0] if kind else "all others",
            marker={
                "size": 10 if kind else 6,
                "color": _COLOURS.get(kind, GREY),
                "symbol": _SYMBOLS.get(kind, "circle"),
                "opacity": 1 if kind else 0.55,
            },
            unselected={"marker": {"opacity": 0.05}},
            customdata=[
                [
                    _hover(pairs.base[i], pairs.base_marks[i]),
                    numbers[pairs.template[i]],
                    _hover(pairs.source[i], pairs.source_marks[i]),
                    safe(f"{pairs.answer[i]!r} → {pairs.target[i]!r}"),
                    fixed(pairs.clean[i]),
                ]
                for i in rows
            ],
            hovertemplate="%{customdata[0]}<br><i>source:</i> %{customdata[2]}<br>"
            "%{customdata[3]}, %{customdata[4]} nats without a patch<br>"
            "whole %{x:.2f}, subspace %{y:.2f}<extra></extra>",
        )
    figure.update_xaxes(title_text="effect of the whole component, nats")
    figure.update_yaxes(title_text="effect of the subspace, nats")
    return figure.update_layout(hoverlabel_align="left", hovermode="closest")


def _label(record: AuditRecord) -> str:
    return (
        f"{record.site}. Scatter of {len(record.pairs.pair)} pairs: effect of the whole component "
        "against that of the subspace, in nats; the prompts of a dozen are below"
    )


def _card(record: AuditRecord, number: int, templates: dict[str, int]) -> Card:
    example, pairs = record.examples[number], record.pairs
    row, (kind, why) = example.row, KINDS[example.kind]
    return Card(
        kind=kind,
        why=why,
        template=templates[pairs.template[row]],
        template_name=pairs.template[row],
        base=_marked(pairs.base[row], pairs.base_marks[row]),
        source=_marked(pairs.source[row], pairs.source_marks[row]),
        answer=pairs.answer[row],
        target=pairs.target[row],
        rows=[
            (words, _difference(pairs, name, row), example.tops[name])
            for name, words in ROWS.items()
            if name in example.tops
        ],
    )


def _difference(pairs: PairTable, name: str, row: int) -> float | None:
    column = pairs.clean if name == "clean" else pairs.patched.get(name)
    return None if column is None else column[row]


def visible(token: str) -> str:
    """A token as it is, but for line ends and tabs, which are shown as signs."""
    return token.translate({10: "↵", 13: "↵", 9: "⇥"})


def _marked(text: str, marks: Sequence[tuple[int, int]]) -> Markup:
    """The text with what the label stands for in `<mark>`, cut to what a card has room for."""
    text, marks = excerpt(text, marks, CARD_ROOM)
    parts, at = Markup(), 0
    for start, end in marks:
        parts += escape(text[at:start]) + Markup("<mark>{}</mark>").format(text[start:end])
        at = end
    return parts + escape(text[at:])


def _hover(text: str, marks: Sequence[tuple[int, int]]) -> str:
    """The same for a label that plotly shows, whose only tags are ours."""
    text, marks = excerpt(" ".join(text.split("\n")), marks, HOVER_ROOM)
    breaks, shown = _LINE, ""
    bold = {start: "<b>" for start, _ in marks} | {end: "</b>" for _, end in marks}
    for i, character in enumerate(text):
        shown += bold.get(i, "")
        if i >= breaks and character == " ":
            shown, breaks = f"{shown}<br>", i + _LINE
        else:
            shown += safe(character)
    return shown + bold.get(len(text), "")


def excerpt(
    text: str, marks: Sequence[tuple[int, int]], room: int
) -> tuple[str, list[tuple[int, int]]]:
    """At most `room` characters of the text, around what is marked first, else its end, and the
    marks that are whole within."""
    if len(text) <= room:
        return text, list(marks)
    centre = marks[0][1] if marks else len(text)
    start = min(max(0, centre - room // 2), len(text) - room)
    end = start + room
    before, after = "…" * (start > 0), "…" * (end < len(text))
    shift = len(before) - start
    inside = [(a + shift, b + shift) for a, b in marks if start <= a and b <= end]
    return before + text[start:end] + after, inside
