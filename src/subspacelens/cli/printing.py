"""What commands print: text from data stays text, whatever is in it."""

from __future__ import annotations

import sys
from io import TextIOWrapper

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text


def printable(text: object) -> str:
    r"""`text` with escapes such as `\x1b` in place of control characters and halves of characters,
    so that a name can neither drive a terminal nor fail to be encoded; line ends stay."""
    return "".join(
        character
        if character.isprintable() or character == "\n"
        else character.encode("unicode_escape").decode()
        for character in str(text)
    )


def say(text: object) -> None:
    """Prints `text` on standard output."""
    typer.echo(printable(text))


def is_wide() -> bool:
    """Whether more than 80 columns are there to print in."""
    return _console().width >= 100


def paragraph(text: object) -> None:
    """Prints `text`, its lines broken at the width of the terminal."""
    _console().print(printable(text))


def show(*renderables: Text) -> None:
    """Prints text with its colours, where the terminal has any."""
    for renderable in renderables:
        _console().print(renderable)


def complain(error: object) -> None:
    """Prints `error` as one line on standard error."""
    typer.echo(printable(f"subspacelens: {' '.join(str(error).splitlines())}"), err=True)


NAME = 40
"""A first column of at most this width stays on one line, however narrow that makes the others."""


class PlainTable(Table):
    """A table whose headings and entries are shown as they are, without a letter cut off: Rich's
    markup is not read, and what is too wide goes on in the next line."""

    def __init__(self, *headings, title: str | None = None) -> None:
        super().__init__(*headings, title=None if title is None else printable(title))
        for column in self.columns:
            column.overflow = "fold"

    def add_row(self, *entries: object, style: str | None = None) -> None:  # type: ignore[override]
        super().add_row(*map(printable, entries), style=style)

    def show(self) -> None:
        first = self.columns[0]
        first.no_wrap = max(cell_len(str(cell)) for cell in first.cells) <= NAME
        _console().print(self)


def _console() -> Console:
    return Console(markup=False, emoji=False, highlight=False)


def escape_what_cannot_be_encoded() -> None:
    """Where the terminal's encoding lacks a character, an escape is printed instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say_grounds(record) -> None:
    """Why a verdict is what it is: reasons, controls, notes."""
    from ..audit.controls.words import in_words

    for reason in record.verdict.reasons:
        paragraph(f"  - {reason}")
    for text in in_words(record.controls, record.task.test_pairs) if record.controls else ():
        paragraph(f"  controls: {text}")
    for text in record.notes:
        paragraph(f"  note: {text}")
    say("")
