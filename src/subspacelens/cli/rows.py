"""`audit --row 0-63`: many rows of one array, on one page."""

from __future__ import annotations

import re
from pathlib import Path

from ..core.errors import LensError, SiteError
from ..core.site import Site
from .options import command_line
from .out import read_json, refuse_other
from .printing import PlainTable, paragraph, say

MOST = 100_000
PRINTED = 20


def rows_of(text: str) -> list[int]:
    """The numbers that `7`, `0-63` or `0,3,7-9` stand for, each once, in order. Raises `LensError`
    for anything else."""
    rows: dict[int, None] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,9})(?:\s*-\s*([0-9]{1,9}))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first or len(rows) + last - first >= MOST:
            raise LensError(f"--row {text[:40]!r}: give rows such as 7, 0-63 or 0,3,7")
        rows.update(dict.fromkeys(range(first, last + 1)))
    return list(rows)


def one_site(path: Path, sites: list[str] | None) -> Site:
    """The site that the rows of a file belong to. Raises `SiteError` unless one is given."""
    if not sites or len(sites) > 1:
        raise SiteError(f"{path}: its rows belong to one site: name it with one --site")
    return Site.parse(sites[0])


def screen_rows(
    lens,
    captures,
    site: Site,
    path: Path,
    key: str | None,
    rows: list[int],
    seed: int,
    out: Path,
    overwrite: bool,
) -> None:
    """Judges the rows of a file and writes OUT/<site>/screen.json and screen.html."""
    from ..audit import screen
    from ..fit import given_rows
    from ..report.screen_page import summary, write_screen

    directions, origin = given_rows(lens, site, path, rows, key=key)
    held = out / str(site) / "screen.json"
    if held.exists() and not overwrite:
        expected = {
            "the model": ("model.weights_sha256", lens.weights_sha256),
            "the hash of its pairs": ("task.test_sha256", captures.test.pairs.sha256),
            "the hash of its file": ("origin.file_sha256", origin["file_sha256"]),
        }
        refuse_other(out, held, read_json(held), expected)
    found = screen(
        lens, captures, site, directions, rows=rows, origin=origin, seed=seed,
        command=command_line(),
    )  # fmt: skip
    page = write_screen(found, out / str(site))
    table = PlainTable("row", "FLDD", "nats", "p", "q", "verdict", title=str(site))
    ordered = sorted(found.rows, key=lambda each: (each.q, -each.size))
    for each in ordered[:PRINTED]:
        numbers = (each.effect.fldd.value, each.effect.nats.value)
        table.add_row(
            each.row, *("-" if x is None else f"{x:.2f}" for x in numbers), f"{each.p:.2g}",
            f"{each.q:.2g}", each.label,
        )  # fmt: skip
    table.show()
    if len(ordered) > PRINTED:
        say(f"  and {len(ordered) - PRINTED} more in {out / str(site) / 'screen.json'}")
    for row, reason in found.failed.items():
        paragraph(f"  row {row}: {reason}")
    paragraph(summary(found))
    say(f"report: {page}")
