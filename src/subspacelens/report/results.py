"""What the results of every kind have in common: kind, model, task, site, verdict, FLDD, date."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from ..audit.addition.record import AdditionRecord, load_addition
from ..audit.failure import FAILURE_FILE, Failure
from ..audit.failure import SCHEMA as FAILURE_SCHEMA
from ..audit.record import AuditRecord, load_audit
from ..audit.screening import Screen
from ..core.errors import ResultError
from ..core.files import read_whole
from ..core.format import counted
from ..core.records import Estimate, read_record
from ..find.record import FIND_FILE, KEPT, Outcome, load_find
from ..measure.maps import InstantMap, PatchingMap
from ..studies.editing_record import load_editing_record
from ..studies.facts_record import load_facts_record
from ..studies.ioi import IoiRecord
from ..studies.ioi.data import FRESH, HELD_OUT
from ..studies.prevalence import Prevalence
from ..sweep.store import Store
from ..sweep.table import INDEX, read_index

_NEVER = datetime.fromtimestamp(0, UTC)
_SWEEP = {"records", "failed", "building"}
"""The folders of a sweep's store."""

JUDGED = ("audit", "addition")
"""The kinds whose verdict is one of the audit's."""
OUTCOMES: Mapping[Outcome, str] = {
    "found": "found",
    "nowhere": "no site carries it alone",
    "undetermined": "nothing to rely on",
    "lacking": "the model lacks it",
}


@dataclass(frozen=True, kw_only=True)
class Result:
    """One result: `path` is its record, or the folder of a sweep, `page` where it is shown: a path
    and a place in it; `written`: when the record was. `fldd` is that of the subspace, of the
    addition, or of the best of several."""

    kind: str
    site: str
    model: str = ""
    task: str = ""
    verdict: str = ""
    fldd: Estimate = field(default_factory=lambda: Estimate(value=None))
    path: Path = Path()
    page: tuple[Path, str] = Path(), ""
    written: datetime = _NEVER


@dataclass(frozen=True)
class Unread:
    """What is no result: where it lies, and the one line that says why."""

    path: Path
    reason: str


def results_below(directory: Path) -> tuple[list[Result], list[Unread]]:
    """Every result in `directory` and its folders, in the order of their paths, and what should be
    one and is none. The cells of a sweep are one result together.

    Folders that begin with a dot are left alone, and symbolic links to folders are not followed.
    """
    found: list[Result] = []
    unread: list[Unread] = []

    def read(path: Path, reader: Callable[[Path], Result]) -> None:
        try:
            result = replace(reader(path), path=path)
            dated = path / INDEX if result.kind == "sweep" and (path / INDEX).exists() else path
            written = datetime.fromtimestamp(dated.stat().st_mtime, UTC)
            found.append(replace(result, page=_page(result), written=written))
        except (ResultError, OSError) as error:
            unread.append(Unread(path, _writable(str(error))))

    def closed(error: OSError) -> None:
        unread.append(Unread(Path(error.filename), f"cannot read it: {error.strerror}"))

    for name, folders, files in os.walk(directory, onerror=closed):
        folder = Path(name)
        folders[:] = sorted(each for each in folders if not each.startswith("."))
        if FIND_FILE in files:
            folders[:] = [each for each in folders if each != KEPT]
        if set(folders) >= _SWEEP:
            folders[:] = [each for each in folders if each not in {*_SWEEP, "damaged"}]
            read(folder, _sweep)
        for file in sorted(files):
            if file in _READERS:
                read(folder / file, _READERS[file])
            elif file == FAILURE_FILE:
                unread.append(Unread(folder / file, _writable(_failure(folder / file))))
    return found, unread


def link(page: tuple[Path, str], directory: Path) -> str:
    """The address of a page from within `directory`, whatever characters its name has."""
    path, place = page
    return quote(os.fsencode(os.path.relpath(path, directory))) + place


def shown(path: Path, directory: Path) -> str:
    """A path from within `directory`, as text that can be written."""
    return _writable(os.path.relpath(path, directory))


def _writable(text: str) -> str:
    """The text with a sign in place of each byte of a path that is no character."""
    return os.fsencode(text).decode("utf-8", "replace")


def site_place(record: Path) -> str:
    """Where the page of its run shows a record that lies in a folder of its own."""
    of_the_run = sorted(record.parent.parent.glob(f"*/{record.name}"))
    return f"#site-{1 + of_the_run.index(record)}"


_PAGES: Mapping[str, Sequence[str]] = {
    "audit": ("../report.html",),
    "addition": ("../addition.html",),
    "screen": ("screen.html",),
    "map": ("map.html",),
    "instant map": ("instant.html", "map.html"),
    "search": ("find.html",),
}
"""Where a kind of result is shown, seen from its record; others are in report.html beside it."""


def _page(result: Result) -> tuple[Path, str]:
    beside = result.path if result.kind == "sweep" else result.path.parent
    for name in _PAGES.get(result.kind, ("report.html",)):
        page = beside / name
        if page.is_file():
            return page, site_place(result.path) if name.startswith("..") else ""
    return result.path, ""


def _audit(path: Path) -> Result:
    return _judged("audit", load_audit(path), "subspace")


def _addition(path: Path) -> Result:
    return _judged("addition", load_addition(path), "add")


def _judged(kind: str, record: AuditRecord | AdditionRecord, patch: str) -> Result:
    return Result(
        kind=kind, site=record.site, model=record.model.id, task=record.task.name,
        verdict=record.verdict.label, fldd=record.effect(patch).fldd,
    )  # fmt: skip


def _screen(path: Path) -> Result:
    screen = Screen.load(path)
    return Result(
        kind="screen", site=screen.site, model=screen.model.id, task=screen.task.name,
        verdict=f"{len(screen.beyond_chance)} of {len(screen.rows)} beyond chance",
    )  # fmt: skip


def _map(path: Path) -> Result:
    patched = PatchingMap.load(path)
    best = patched.strongest(1)
    return Result(
        kind="map", site=f"most at {best[0].site}" if best else "", model=patched.model.id,
        task=patched.task, fldd=_estimate(best[0].fldd if best else None),
    )  # fmt: skip


def _instant(path: Path) -> Result:
    instant = InstantMap.load(path)
    best = instant.best(1)
    return Result(
        kind="instant map", site=f"DAS would find most at {best[0]}" if best else "",
        model=instant.model.id, task=instant.task,
    )  # fmt: skip


def _survey(path: Path) -> Result:
    it = read_record(Prevalence, path, "record of a survey").illusions
    working = sum(site.works for site in it.sites)
    return Result(
        kind="survey", site=f"MLPs at {', '.join(it.labels)}", model=it.model.id, task=it.task,
        verdict=f"illusions work at {working} of {len(it.sites)}",
    )  # fmt: skip


def _ioi(path: Path) -> Result:
    record = read_record(IoiRecord, path, "record of the IOI study")
    illusions, features = (
        len(record.sites_where(rule, FRESH, HELD_OUT)) for rule in ("illusion", "feature")
    )
    labels = ", ".join(place.label for place in record.circuit.places)
    return Result(
        kind="IOI study", site=f"the circuit at {labels}", model=record.model.id, task="ioi",
        verdict=_counted({"with an illusion": illusions, "with the feature": features}),
    )  # fmt: skip


def _facts(path: Path) -> Result:
    record = load_facts_record(path)
    layers = sorted({layer.layer for layer in record.layers})
    return Result(
        kind="facts study", site=f"layers {', '.join(map(str, layers))}", model=record.model.id,
        task=f"{counted(len(record.pairs), 'pair')} of facts",
    )  # fmt: skip


def _editing(path: Path) -> Result:
    record = load_editing_record(path)
    layers = [layer.layer for layer in record.layers]
    return Result(
        kind="editing study", site=f"layers {', '.join(map(str, layers))}", model=record.model.id,
        task=f"{len(record.pairs)} facts",
    )  # fmt: skip


def _toy(path: Path) -> Result:
    try:
        held = json.loads(read_whole(path))
    except (ValueError, RecursionError):
        held = None
    if not isinstance(held, dict) or held.get("schema") != "subspacelens.toy/2":
        raise ResultError(f"{path} is not a subspacelens.toy/2 record")
    return Result(kind="toy", site="three hidden units")


def _find(path: Path) -> Result:
    record = load_find(path)
    sites = [place.site for place in record.found]
    return Result(
        kind="search", site=", ".join(sites) or "no site", model=record.model.id,
        task=record.task.name, verdict=OUTCOMES[record.outcome],
        fldd=record.found[0].effect.fldd if sites else Estimate(value=None),
    )  # fmt: skip


def _sweep(folder: Path) -> Result:
    table = read_index(Store(folder, create=False))

    def different(column: str) -> str:
        values = table[column].drop_nulls().unique(maintain_order=True) if len(table) else ()
        return ", ".join(map(str, values))

    told = Counter(table["verdict"].drop_nulls()) if "verdict" in table.columns else Counter()
    failed = Counter(table["status"])["failed"] if len(table) else 0
    return Result(
        kind="sweep", site=counted(len(table), "cell"), model=different("model"),
        task=different("task"),
        verdict=_counted(dict(told.most_common()) | {"failed": failed}),
    )  # fmt: skip


def _failure(path: Path) -> str:
    try:
        failure = read_record(Failure, path, f"{FAILURE_SCHEMA} record")
    except ResultError as error:
        return str(error)
    return f"{failure.site}: {failure.error}"


def _estimate(value: float | None) -> Estimate:
    """Without an interval; of NaN without a value."""
    return Estimate(value=None if value is None or value != value else value)


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)


_READERS: Mapping[str, Callable[[Path], Result]] = {
    "audit.json": _audit,
    "addition.json": _addition,
    "screen.json": _screen,
    "map.json": _map,
    "instant.json": _instant,
    "survey.json": _survey,
    "ioi.json": _ioi,
    "facts.json": _facts,
    "editing.json": _editing,
    "toy.json": _toy,
    FIND_FILE: _find,
}


def kinds(results: Sequence[Result]) -> Iterator[str]:
    """`3 audits (2 illusory, 1 faithful)`, `1 map`: how many of each, with verdicts of audits."""
    for kind, count in Counter(result.kind for result in results).items():
        several = f"{kind}es" if kind == "search" else f"{kind}s".replace("studys", "studies")
        told = Counter(result.verdict for result in results if result.kind == kind)
        verdicts = f" ({_counted(dict(told.most_common()))})"
        yield f"{count} {kind if count == 1 else several}{verdicts * (kind in JUDGED)}"
