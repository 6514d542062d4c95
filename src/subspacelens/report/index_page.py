"""The start page of a folder of runs: every result below it, in a table that sorts itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..core.errors import ResultError
from ..core.files import write_atomically
from .document import document
from .find_page import write_find_page
from .page import write_report
from .results import FIND_FILE, JUDGED, Result, Unread, kinds, link, results_below, shown

INDEX = "index.html"


def write_pages(directory: Path | str) -> list[Path]:
    """Draws again what stands in `directory`, and returns the paths: report.html where audits lie
    in its folders, find.html with it where they are those of a search, and index.html, a table of
    every result below it, where there is anything else.

    Raises `ResultError` where there is nothing to report, where what report.html or find.html shows
    is no record, or where a page cannot be written.

    >>> write_pages("runs")
    [PosixPath('runs/index.html')]
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise ResultError(f"{directory} is no folder: nothing to report")
    pages = []
    if (directory / FIND_FILE).exists():
        pages.append(write_find_page(directory))
    elif any(directory.glob("*/audit.json")):
        pages.append(write_report(directory))
    found, unread = results_below(directory)
    drawn = {directory / FIND_FILE, *directory.glob("*/audit.json")}
    if {result.path for result in found} - drawn or (unread and not pages):
        pages.append(directory / INDEX)
        write_atomically(pages[-1], render_index(directory, found, unread).encode())
    if not pages:
        raise ResultError(f"no result in {directory} or any folder below it: nothing to report")
    return pages


def render_index(directory: Path, found: Sequence[Result], unread: Sequence[Unread]) -> str:
    """The results and what could not be read, as one HTML document without figures."""
    return document(
        "index.html.j2",
        {"link": lambda page: link(page, directory), "shown": lambda path: shown(path, directory)},
        drawn=False,
        title=f"Results in {shown(directory.absolute(), directory.absolute().parent)}",
        lead=summary(found, unread),
        found=found,
        unread=unread,
        judged=JUDGED,
    )


def summary(found: Sequence[Result], unread: Sequence[Unread]) -> str:
    """One sentence: how many results of which kinds there are."""
    results = f"{len(found)} result{'' if len(found) == 1 else 's'}"
    told = f": {', '.join(kinds(found))}" if found else ""
    without = f" {len(unread)} more cannot be shown." if unread else ""
    return f"{results}{told}.{without}"
