"""The command line: reads options, calls the library, prints. No logic of its own."""

from __future__ import annotations

import sys

import typer

from ..core.errors import LensError
from . import audit, bench, facts, look, reproduce, survey, sweep

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
app.command("map")(look.map_command)
app.command()(look.doctor)
app.command()(look.models)
app.command()(audit.report)
app.command()(survey.survey)
reproduce.commands.command("prevalence")(survey.reproduce_prevalence)
app.command()(sweep.sweep)
app.command("results")(sweep.results_command)
app.add_typer(facts.commands, name="facts")
app.add_typer(reproduce.commands, name="reproduce")
app.add_typer(bench.commands, name="bench")


def main() -> None:
    """Runs the command line; bad input is one line on standard error and exit code 2."""
    try:
        app()
    except LensError as error:
        typer.echo(f"subspacelens: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.echo("subspacelens: interrupted; what was finished is kept", err=True)
        sys.exit(130)
