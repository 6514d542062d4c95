"""The page of a search: where the feature lives, what would have fooled one, and how to go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import plotly.graph_objects as go

from ..audit.record import AuditRecord, load_audit
from ..audit.run import AUDIT_FILE, SUBSPACE_FILE
from ..core.errors import SiteError
from ..core.files import write_atomically
from ..core.format import fixed, interval, percent, short
from ..core.records import Estimate
from ..core.site import Site
from ..find.record import FindRecord, Place, Prediction, load_find
from ..measure.maps import PatchingMap, SiteEffect
from .document import Plot, document
from .examples import examples, visible
from .figures import safe
from .instant_page import UNITS
from .page import write_report
from .results import FIND_FILE, site_place
from .tiles import tiles

PAGE = "find.html"
_INK, _PAPER = "#1c2026", "#ffffff"
_MARKS = {
    "found": ("found", "☆", "star", 15),
    "fooled": ("would have fooled you", "✕", "x", 10),
    "predicted": ("would have, by prediction alone", "▽", "triangle-down", 9),
    "undetermined": ("undetermined", "○", "circle", 9),
}
"""Of every kind of site: its name, its sign in text, its mark and how large that is. Shape tells
them apart, and ink on paper is seen on every shade."""
_TITLES = {
    "found": "Where the feature lives: {} in {}",
    "nowhere": "No site carries it alone: {} in {}",
    "undetermined": "Nothing to rely on: {} in {}",
    "lacking": "The model lacks the feature: {} in {}",
}


def write_find_page(directory: Path | str) -> Path:
    """Reads `directory`/find.json and the audits in the folders beside it, writes
    `directory`/find.html and, with all the evidence, `directory`/report.html, and returns the path
    of the first.

    Raises `ResultError` where one is no record, or where a page cannot be written.

    >>> write_find_page("runs/find")
    PosixPath('runs/find/find.html')
    """
    directory = Path(directory)
    record = load_find(directory / FIND_FILE)
    inside = set(directory.glob(f"*/{AUDIT_FILE}"))
    paths = {
        place.site: path
        for place in record.places
        if place.folder is not None and (path := directory / place.folder / AUDIT_FILE) in inside
    }
    if inside:
        write_report(directory)
    evidence = {site: f"report.html{site_place(path)}" for site, path in paths.items()}
    found = [place.site for place in record.found]
    audits = {site: load_audit(path) for site, path in paths.items() if site in found}
    target = directory / PAGE
    write_atomically(target, render_find(record, audits, evidence).encode())
    return target


def render_find(
    record: FindRecord,
    audits: Mapping[str, AuditRecord] | None = None,
    evidence: Mapping[str, str] | None = None,
) -> str:
    """The search as one HTML document that needs no network. By site: the `audits` of what was
    found, for their examples, and the addresses of the `evidence`."""
    audits = audits or {}
    patched = (
        PatchingMap.from_json(record.patched.model_dump_json(by_alias=True))
        if record.patched is not None
        else None
    )
    drawn = None if patched is None else model_figure(record, patched)
    return document(
        "find.html.j2",
        {"times": times, "visible": visible, "in_words": controls_in_words},
        drawn=drawn is not None,
        title=_TITLES[record.outcome].format(record.task.name, record.model.id),
        record=record,
        lead=record.answer,
        plot=Plot.of(drawn, in_words(record)) if drawn is not None else None,
        signs=[_MARKS[kind][:2] for kind, sites in marked(record).items() if sites],
        searched=searched(record, patched),
        how_to_load=how_to_load,
        examples={site: examples(audit) for site, audit in audits.items()},
        audits=audits,
        evidence=evidence or {},
    )


def model_figure(record: FindRecord, patched: PatchingMap) -> go.Figure:
    """The model as layers by labels, with a tile for each stream of each label, of heads the
    strongest: the shade is the effect of the whole component, marks are what was found there."""
    columns = [(label, stream) for label in patched.labels for stream in patched.streams]
    values = np.full((patched.layers, len(columns)), np.nan)
    strongest: dict[tuple[int, int], SiteEffect] = {}
    for effect in patched.sites():
        place = effect.site.layer, columns.index((effect.site.label, effect.site.stream))
        size = getattr(effect, patched.measure)
        if place not in strongest or abs(size) > abs(values[place]):
            values[place], strongest[place] = size, effect
    end = float(np.nanmax(np.abs(values), initial=0.01))
    unit = f"effect of the whole component, {UNITS[patched.measure]}"
    hover = {place: _hover(effect) for place, effect in strongest.items()}
    names = [stream.replace("_", "<br>") for _, stream in columns]
    figure = tiles(values, names, hover, unit, (-end, end), numbered=False)
    figure.update_traces(x=[[f"at {safe(label)}" for label, _ in columns], names])
    figure.update_xaxes(type="multicategory", dividercolor="rgba(0,0,0,0)")
    for kind, sites in marked(record).items():
        name, _, symbol, size = _MARKS[kind]
        there = [
            (site, columns.index((site.label, site.stream)))
            for site in sites
            if (site.label, site.stream) in columns
        ]
        if not there:
            continue
        figure.add_scatter(
            x=[[f"at {safe(site.label)}" for site, _ in there], [names[c] for _, c in there]],
            y=[site.layer for site, _ in there],
            mode="markers",
            name=name,
            marker={
                "symbol": symbol,
                "size": size,
                "color": _PAPER,
                "line": {"color": _INK, "width": 1.5},
            },
            customdata=[f"<b>{safe(str(site))}</b><br>{name}" for site, _ in there],
            hovertemplate="%{customdata}<extra></extra>",
        )
    return figure.update_layout(hovermode="closest", showlegend=False)


def marked(record: FindRecord) -> dict[str, list[Site]]:
    """The sites by what was found there."""
    kinds: dict[str, Sequence[Place | Prediction]] = {
        "found": record.found,
        "fooled": record.fooled,
        "predicted": record.predicted,
        "undetermined": record.undetermined,
    }
    named = {kind: [_site(each.site) for each in places] for kind, places in kinds.items()}
    return {kind: [site for site in sites if site] for kind, sites in named.items()}


def _site(text: str) -> Site | None:
    """The site of a record, None where it is the name of none."""
    try:
        return Site.parse(text)
    except SiteError:
        return None


def in_words(record: FindRecord) -> str:
    """The picture for a screen reader."""
    best = ", ".join(f"{each.site} {fixed(each.whole)}" for each in record.largest[:6])
    sites = "; ".join(
        f"{_MARKS[kind][0]}: {', '.join(map(str, sites))}"
        for kind, sites in marked(record).items()
        if sites
    )
    return (
        "Map of the model, layers by labels and streams, shaded by the effect of the whole "
        f"component. Strongest: {best}. {sites}"
    )


def searched(record: FindRecord, patched: PatchingMap | None) -> list[str]:
    """What was looked at, on which pairs, and how the search is corrected for, in sentences."""
    task = record.task
    lines = [
        f"{task.fit_pairs} pairs to fit on, {task.choice_pairs} to choose sites and dimensions on, "
        f"and {task.test_pairs} fresh ones to judge on. No prompt is in two of them, so that what "
        "was chosen because it looked good there is judged where nobody has looked."
    ]
    if patched is None:
        return lines
    audited = len(record.places)
    lines.insert(
        0,
        f"{len(list(patched.sites()))} whole components: {', '.join(patched.streams)} of "
        f"{patched.layers} layers at {', '.join(patched.labels)}. Where one does much, a subspace "
        "was fitted; where DAS is predicted to do much although the component does little, DAS was "
        "let do it.",
    )
    lines.append(
        f"{audited} site{'' if audited == 1 else 's'} audited. Chance is corrected for their "
        "number (Benjamini and Hochberg's q): what one of so many would do by luck is undetermined."
    )
    if record.failed:
        lines.append(f"At {len(record.failed)} more nothing could be fitted or judged.")
    return lines


def times(estimate: Estimate) -> str:
    """`97 % [91 %, 99 %]` of the whole component, or `25 times` as much."""
    if estimate.value is None:
        return "–"
    if abs(estimate.value) < 2:
        return f"{percent_of(estimate.value)} {interval(estimate, percent_of)}".rstrip()
    return f"{short(estimate.value)} × {interval(estimate, short)}".rstrip()


def percent_of(share: float) -> str:
    """`97 %`."""
    return percent(share).replace(".0 %", " %")


def controls_in_words(place: Place) -> str:
    """On how many planted subspaces the audit was right, or why that is not known."""
    if place.controls is None:
        return "not asked for"
    told = f"right on {place.controls.right} of {place.controls.of}"
    return f"{told}; no calibration: {place.controls.void}" if place.controls.void else told


def how_to_load(record: FindRecord, place: Place) -> str:
    """Python that loads the subspace of a place and patches it, from the folder of the page."""
    path = f"{place.folder}/{SUBSPACE_FILE}"
    return "\n".join(
        (
            "import subspacelens as sl",
            "",
            f"lens = sl.load_model({record.model.id!r})",
            f"subspace = sl.load_subspace({path!r}, lens)",
            "effect = subspace.patch(task)  # a task, or pairs of yours",
            "print(effect.fldd, effect.examples(5))",
        )
    )


def _hover(effect: SiteEffect) -> str:
    return (
        f"<b>{safe(str(effect.site))}</b><br>whole component: FLDD {fixed(effect.fldd)}, "
        f"{fixed(effect.nats)} nats"
    )
