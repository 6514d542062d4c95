"""The commands, and where their errors end: one line on standard error and exit code 2."""

from __future__ import annotations

import sys

import typer

from ..core.errors import LensError
from . import audit, bench, export, facts, inspect, look, patch, reproduce, survey, sweep
from .printing import complain, escape_what_cannot_be_encoded

app = typer.Typer(
    help="Patch a subspace of a language model's activations, then find out whether the effect is "
    "real or an illusion.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command()(audit.audit)
app.command("fit")(audit.fit_command)
app.command()(patch.patch)
app.command("map")(look.map_command)
app.command()(inspect.inspect)
app.command("export")(export.export_command)
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
