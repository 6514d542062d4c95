"""`audit`, `fit` and `report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..core.format import plain, with_interval
from ..core.progress import showing_progress
from .options import (
    BudgetName,
    Captures,
    Device,
    Dim,
    Dtype,
    Fit,
    FitName,
    Memory,
    Model,
    Pairs,
    Seed,
    Shifted,
    Sites,
    TaskName,
    TestPairs,
    Tests,
    bytes_of,
    captured,
    command_line,
    fitted,
    given_subspace,
    prepared,
    sites_of,
    writable,
)


def audit(
    model: Model = "smollm2",
    task: TaskName = "ioi",
    test_pairs: TestPairs = None,
    site: Sites = None,
    fit: FitName = Fit.das,
    dim: Dim = 1,
    subspace: Annotated[
        Path | None,
        typer.Option(
            help="Audit this subspace instead of fitting one: a file of ours, or, with --site, a "
            "vector or matrix from .npy, .npz, .pt or .safetensors."
        ),
    ] = None,
    key: Annotated[str | None, typer.Option(help="Which array of that file.")] = None,
    row: Annotated[
        int | None, typer.Option(help="Which row of that array, such as an autoencoder's latent.")
    ] = None,
    pairs: Pairs = None,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = "float32",
    memory: Memory = None,
    shifted: Shifted = False,
    captures: Captures = None,
    budget: BudgetName = "standard",
    tests: Tests = None,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("runs/audit"),
) -> None:
    """Fit a subspace at each site, or take one, and say: faithful, illusory or undetermined.

    Writes OUT/<site>/subspace.safetensors, OUT/<site>/audit.json and OUT/report.html. Without
    options it runs the main job: indirect object identification in SmolLM2-135M-Instruct, at a
    site where DAS finds an illusion and at one where it finds the feature.
    """
    from ..audit import audit as run_audit
    from ..audit.run import chosen_tests
    from ..report import write_report

    space = bytes_of(memory)
    named = None if tests is None else [name.strip() for name in tests.split(",")]
    chosen_tests(budget, named)
    writable(out)
    with showing_progress():
        lens, chosen = prepared(model, task, test_pairs, pairs, seed, device, dtype)
        given = given_subspace(lens, subspace, site, key, row) if subspace else None
        sites = [given.site] if given else sites_of(site, model, task)
        held = captured(lens, chosen, sites, dim, shifted, captures)
        results = []
        for where in sites:
            found = given or fitted(lens, held, where, fit, dim, seed, space)
            result = run_audit(
                lens, held, found, budget=budget, tests=named, seed=seed, memory=space,
                command=command_line(),
            )  # fmt: skip
            result.save(out)
            results.append(result.record)
    page = write_report(out)
    for record in results:
        _print_record(record)
    typer.echo(f"report: {page}")


def fit_command(
    model: Model = "smollm2",
    task: TaskName = "ioi",
    site: Sites = None,
    fit: FitName = Fit.das,
    dim: Dim = 1,
    pairs: Pairs = None,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = "float32",
    memory: Memory = None,
    shifted: Shifted = False,
    captures: Captures = None,
    out: Annotated[Path, typer.Option(help="Folder for the subspaces.")] = Path("runs/fit"),
) -> None:
    """Find a subspace at each site and save it, without judging it.

    Writes OUT/<site>/subspace.safetensors.
    """
    from ..audit.run import SUBSPACE_FILE

    budget = bytes_of(memory)
    writable(out)
    with showing_progress():
        lens, chosen = prepared(model, task, None, pairs, seed, device, dtype)
        sites = sites_of(site, model, task)
        held = captured(lens, chosen, sites, dim, shifted, captures)
        for where in sites:
            found = fitted(lens, held, where, fit, dim, seed, budget)
            path = out / str(where) / SUBSPACE_FILE
            found.save(path)
            typer.echo(path)


def report(directory: Annotated[Path, typer.Argument(help="A folder that `audit` wrote.")]) -> None:
    """Draw DIRECTORY/report.html again from the saved results."""
    from ..report import write_report

    typer.echo(write_report(directory))


def _print_record(record) -> None:
    metrics = ("nats", "fldd", "iia", "iia_pair")
    table = Table("patch", *metrics, title=Text(f"{record.site}: {record.verdict.label.upper()}"))

    def row(name: str, effect, style: str | None = None) -> None:
        table.add_row(Text(name), *(with_interval(each, plain) for _, each in effect), style=style)

    for name, effect in record.effects.items():
        row(name, effect)
    row("no patch", record.no_op, style="dim")
    console = Console()
    console.print(table)
    for reason in record.verdict.reasons:
        console.print(f"  - {reason}", markup=False, highlight=False)
    console.print()
