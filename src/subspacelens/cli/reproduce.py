"""`reproduce`: the paper, study by study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import (
    writable,
)  # fmt: skip

commands = typer.Typer(help="Reproduce the paper, study by study.", no_args_is_help=True)


@commands.command("toy")
def reproduce_toy(
    out: Annotated[Path, typer.Option(help="Folder for the page and tables.")] = Path("runs/toy"),
) -> None:
    """The distilled example: an illusion in three hidden units.

    Writes OUT/toy.json, OUT/toy.md and OUT/report.html.
    """
    from ..report.toy_page import markdown, write_toy
    from ..studies.toy import run_toy

    writable(out)
    result = run_toy()
    page = write_toy(result, out)
    typer.echo(markdown(result))
    typer.echo(f"report: {page}")
