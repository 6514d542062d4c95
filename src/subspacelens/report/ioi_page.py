"""The page of the IOI study, and what else is written beside it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from ..audit.record import AuditRecord
from ..core.files import write_atomically
from ..core.format import fixed, with_interval
from ..studies.ioi import IoiRecord, IoiStudy
from ..studies.ioi.claims import Claim
from ..studies.ioi.contrast import Contrast
from ..studies.ioi.controls import Control
from ..studies.ioi.data import FRESH, HELD_OUT
from ..studies.ioi.table import Row
from . import ioi_figures
from .document import Plot, document
from .figures import dose_response, natural_and_patched, projection
from .page import spread, write_report

PATCH_WORDS = {
    "full": "whole component",
    "v_MLP": "v_MLP, by DAS",
    "v_MLP row": "its read part",
    "v_MLP null": "its unread part",
    "v_resid": "v_resid, by DAS",
    "v_resid along readers": "its part along the readers",
    "v_resid null": "its other part",
    "v_grad": "v_grad",
    "v_grad along readers": "its part along the readers",
    "v_grad null": "its other part",
    "v_mean": "v_mean",
    "v_mean along readers": "its part along the readers",
    "v_mean null": "its other part",
}
"""Patches of the table as the page calls them, below the direction that they are parts of."""


def write_ioi(study: IoiStudy, directory: Path) -> Path:
    """Writes `directory`/ioi.json, ioi.md, map.json, report.html and, for every audit,
    audits/<kind>/<site>/ with a page of its own; returns the path of report.html.

    Raises `ResultError` where one cannot be written.
    """
    record = study.record
    write_atomically(directory / "ioi.md", markdown(record).encode())
    study.map.save(directory / "map.json")
    for kind, audits in study.audits.items():
        for audit in audits:
            audit.save(directory / "audits" / kind)
        write_report(directory / "audits" / kind)
    target = directory / "report.html"
    write_atomically(target, render_ioi(study).encode())
    json = record.model_dump_json(indent=1, by_alias=True)
    write_atomically(directory / "ioi.json", json.encode())
    return target


def render_ioi(study: IoiStudy) -> str:
    """The study as one HTML document that needs no network."""
    record = study.record
    return document(
        "ioi.html.j2",
        {"spread": spread, "met": met},
        title=f"An illusion and a feature: IOI in {record.model.id}",
        lead=summary(record),
        record=record,
        labels=[place.label for place in record.circuit.places],
        claims=list(by_claim(record)),
        tally=tally,
        agreement=agreement(record),
        roles=list(by_role(record)),
        controls=by_control(record),
        patch_words=PATCH_WORDS,
        findings=findings(record),
        shown_kinds=(FRESH, HELD_OUT),
        constructed_audits="constructed" in study.audits,
        at=at,
        plots=_plots(study),
    )  # fmt: skip


def summary(record: IoiRecord) -> str:
    """Where the paper's two findings were met, read off the contrasts."""
    mlps = sum(len(place.mlps) for place in record.circuit.places)
    good = [place.bottleneck for place in record.circuit.places]
    both = FRESH, HELD_OUT
    return (
        f"At {len(record.sites_where('illusion', *both))} of {mlps} MLPs between the heads that "
        "write the position of the repeated name and those that read it, one direction moves the "
        "answer at least four times as much as the whole MLP that it lies in, and half of that or "
        "more goes away without the part that nothing reads: an illusion, on fresh pairs and on "
        f"templates held out. At {len(record.sites_where('feature', *both))} of {len(good)} places "
        f"in the residual stream ({', '.join(good)}) 80 % or more of the direction's effect is "
        "left along what its readers read, as it should be for a feature."
    )


def findings(record: IoiRecord) -> list[str]:
    """The same counted with and without the intervals, by kind of pairs, a sentence each."""
    lines = []
    for rule, words in (("illusion", "MLPs with an illusion"), ("feature", "Success sites")):
        for kinds in ((FRESH,), (HELD_OUT,), (FRESH, HELD_OUT)):
            met, sure = (_counted(record.sites_where(rule, *kinds, sure=x)) for x in (False, True))
            lines.append(f"{words}, {' and '.join(kinds)}: {met}; with all intervals: {sure}.")
    return lines


def _counted(sites: list[str]) -> str:
    return f"{len(sites)} ({', '.join(sites)})" if sites else "none"


def by_claim(record: IoiRecord) -> Iterator[tuple[str, list[Claim]]]:
    """Every claim with the sites it speaks of, in the order of the study."""
    order = {text: i for i, text in enumerate(dict.fromkeys(c.claim for c in record.claims))}
    ranked = sorted(record.claims, key=lambda claim: order[claim.claim])
    for text, several in groupby(ranked, key=lambda claim: claim.claim):
        yield text, list(several)


def tally(several: list[Claim]) -> str:
    """At how many of its sites a claim agrees, of those where the numbers can say."""
    answers = [claim.agrees for claim in several if claim.agrees is not None]
    if not answers:
        return "no effect to compare"
    if all(answers) or not any(answers):
        return "agrees" if all(answers) else "does not agree"
    return f"agrees at {answers.count(True)} of {len(answers)}"


def agreement(record: IoiRecord) -> str:
    """How many claims of the paper agree everywhere, somewhere and nowhere, in one sentence."""
    words = [tally(several) for _, several in by_claim(record)]
    everywhere, nowhere = words.count("agrees"), words.count("does not agree")
    somewhere = sum(word.startswith("agrees at") for word in words)
    return (
        f"Of {len(words)} claims of the paper {everywhere} agree at every site, {somewhere} at "
        f"some and {nowhere} at none."
    )


def by_role(record: IoiRecord) -> Iterator[tuple[str, str, list[tuple[str, str]]]]:
    """(label, role, (component, evidence) of each) in the order of the study."""
    evidence: dict[tuple[str, str], dict[str, list[str]]] = {}
    for role in record.circuit.roles:
        here = evidence.setdefault((role.label, role.role), {})
        here.setdefault(role.component, []).append(f"{fixed(role.value)} {role.unit}")
    for (label, role), components in sorted(evidence.items(), key=lambda item: item[0][0] != "S2"):
        yield label, role, [(name, ", ".join(numbers)) for name, numbers in components.items()]


def by_control(record: IoiRecord) -> list[dict[str, Control]]:
    """The patches by name of every control, site and seed."""
    patches: dict[tuple[str, str, int], dict[str, Control]] = {}
    for row in record.controls:
        patches.setdefault((row.control, row.site, row.seed), {})[row.patch] = row
    return list(patches.values())


def at(items, label: str) -> list:
    """Those whose site is at the label."""
    return [item for item in items if item.site.endswith(f"@{label}")]


def markdown(record: IoiRecord) -> str:
    """Circuit, table of effects and comparison with the paper."""
    lines = [f"# IOI in {record.model.id}", "", summary(record), "", "## Circuit", ""]
    lines += ["| at | role | component | value | of |", "|---|---|---|---|---|"]
    lines += [
        f"| {r.label} | {r.role} | {r.component} | {fixed(r.value)} | {r.unit} |"
        for r in record.circuit.roles
    ]
    lines += ["", "## Illusion and feature", ""]
    lines += [f"- {line}" for line in findings(record)]
    lines += ["", "| pairs | site | rule | FLDD of the direction | whole component / direction |"]
    lines[-1] += " read part / direction | FLDD of the unread part | met |"
    lines += ["|---|---|---|---|---|---|---|---|", *map(_contrast_row, record.contrasts)]
    lines += ["", f"## Effects on {record.table1[0].pairs} fresh pairs", ""]
    lines += ["| site | patch | FLDD | IIA | IIA of no patch | paper, GPT-2 small: FLDD / IIA |"]
    lines += ["|---|---|---|---|---|---|", *map(_markdown_row, record.table1)]
    lines += ["", "## What agrees with the paper", ""]
    lines += [agreement(record), ""]
    for text, several in by_claim(record):
        lines.append(f"- {text}:")
        lines += [f"  - {c.site}: {_WORDS[c.agrees]} ({c.numbers})" for c in several]
    return "\n".join(lines) + "\n"


_WORDS = {True: "agrees", False: "does not agree", None: "no effect to compare"}


def met(contrast: Contrast) -> str:
    """Whether the rule of its site is met."""
    return "yes, intervals too" if contrast.sure else "yes" if contrast.met else "no"


def _contrast_row(contrast: Contrast) -> str:
    numbers = map(with_interval, (contrast.effect, contrast.whole, contrast.read, contrast.unread))
    entries = (contrast.pairs, contrast.site, contrast.rule, *numbers, met(contrast))
    return f"| {' | '.join(entries)} |"


def _markdown_row(row: Row) -> str:
    paper = "" if row.paper is None else f"{fixed(row.paper.fldd)} / {fixed(row.paper.iia)}"
    numbers = map(with_interval, (row.fldd, row.iia, row.iia_no_op))
    return f"| {' | '.join((row.site, row.patch, *numbers, paper))} |"


def _plots(study: IoiStudy) -> dict[str, dict[str, Plot]]:
    """`[label][picture]`; for each MLP also `[site]["written"]` and, where it was audited,
    `[site]["dose"]`."""
    record = study.record
    audited = {audit.record.site: audit.record for audit in study.audits["das"]}
    plots = {
        place.label: _plots_at(study, place.label, audited[place.bottleneck])
        for place in record.circuit.places
    }
    for item in record.dormant:
        natural, patched = spread(item.along_v_grad.natural), spread(item.along_v_grad.patched)
        plots[item.site] = {
            "written": Plot.of(
                natural_and_patched(item.along_v_grad, "v_grad"),
                f"Histograms of the output of {item.site} along v_grad. Natural: {natural}. "
                f"Patched: {patched}",
            )
        }
        if item.site in audited:
            plots[item.site]["dose"] = Plot.of(
                dose_response(audited[item.site]),
                f"Effect of {item.site} in nats against the dose",
            )
    return plots


def _plots_at(study: IoiStudy, label: str, bottleneck: AuditRecord) -> dict[str, Plot]:
    record = study.record
    rows = at(record.table1, label)
    kinds = ioi_figures.kinds_of(record.table1, record.generalisation, label)
    values = ", ".join(f"{row.site} {row.patch} {fixed(row.fldd.value)}" for row in rows)
    figures = {
        "curves": (
            ioi_figures.curves(study.map, label),
            f"Lines of the effect of full patches at {label} against the layer",
        ),
        "effects": (ioi_figures.effects(rows), f"FLDD at {label}: {values}"),
        "generalisation": (
            ioi_figures.generalisation(kinds),
            f"FLDD at {label} on pairs of other kinds, as in the table",
        ),
        "projection": (
            projection(bottleneck),
            f"Histograms of {bottleneck.site} along v_resid by class",
        ),
    }
    return {name: Plot.of(figure, words) for name, (figure, words) in figures.items() if figure}
