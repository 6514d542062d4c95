"""The commands, and where their errors end: one line on standard error and exit code 2."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ..core.errors import LensError
from . import (
    audit,
    bench,
    bench_truth,
    check,
    export,
    facts,
    find,
    inspect,
    look,
    pairs,
    patch,
    reproduce,
    survey,
    sweep,
)
from .examples import add_examples
from .printing import complain, escape_what_cannot_be_encoded, say

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        say(f"subspacelens {version('subspacelens')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Patch a subspace of a language model's activations, then find out whether the effect is real
    or an illusion."""


app.command()(audit.audit)
app.command("fit")(audit.fit_command)
app.command("find")(find.find_command)
app.command()(patch.patch)
app.command("map")(look.map_command)
app.command()(inspect.inspect)
app.command("export")(export.export_command)
app.command()(check.check)
app.command("pairs")(pairs.pairs_command)
app.command()(look.doctor)
app.command()(look.models)
app.command()(look.fits)
app.command()(audit.report)
app.command()(survey.survey)
reproduce.commands.command("prevalence")(survey.reproduce_prevalence)
app.command()(sweep.sweep)
app.command("results")(sweep.results_command)
app.add_typer(facts.commands, name="facts")
app.add_typer(reproduce.commands, name="reproduce")
app.add_typer(bench.commands, name="bench")
bench.commands.command("audit")(bench_truth.bench_audit_command)
bench.commands.command("find")(bench_truth.bench_find_command)
bench.commands.command("constraints")(bench_truth.bench_constraints_command)
add_examples(app)


def run(arguments: list[str]) -> None:
    """Runs the command of `arguments` and exits."""
    escape_what_cannot_be_encoded()
    try:
        for argument in arguments:
            if not argument.isascii() and argument.encode(errors="ignore").decode() != argument:
                raise LensError(f"argument '{argument}' is not UTF-8")
        app(arguments, prog_name="subspacelens")
    except LensError as error:
        complain(error)
        sys.exit(2)
    except OSError as error:
        if error.filename is None:
            raise
        complain(f"{error.filename}: {error.strerror}")
        sys.exit(2)
