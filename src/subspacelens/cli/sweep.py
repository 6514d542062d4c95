"""`sweep` and `results`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ..core.errors import LensError
from ..core.format import counted
from ..core.progress import showing_progress
from .printing import PlainTable, say


class Backend(StrEnum):
    local = "local"
    serial = "serial"
    ray = "ray"


def sweep(
    grid: Annotated[Path, typer.Argument(help="A TOML file with the lists that make the cells.")],
    out: Annotated[Path, typer.Option(help="Folder of the store; may hold other sweeps, too.")],
    backend: Annotated[
        Backend, typer.Option(help="Processes of this machine, this process alone, or Ray.")
    ] = Backend.local,
    workers: Annotated[
        int | None, typer.Option(min=1, help="By default one a GPU, or as many as cores allow.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Address of a Ray cluster that is already running.")
    ] = None,
    retry: Annotated[
        bool, typer.Option("--retry", help="Try cells again that failed before.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the cells and the estimated time only.")
    ] = False,
) -> None:
    """Compute a grid of audits or fits; killed at any time, the same command goes on.

    Each cell's record is written once into OUT/records, and OUT/index.parquet is made from them.
    Exits with 1 if cells failed.
    """
    from ..sweep import read_grid, run_sweep
    from ..sweep.estimate import estimate
    from ..sweep.plan import cells_of, facts_of
    from ..sweep.run import Tally, look
    from ..sweep.store import Store

    if address is not None and backend is not Backend.ray:
        raise LensError("--address goes with --backend ray")
    chosen = read_grid(grid)
    if dry_run:
        with showing_progress():
            models = [facts_of(spec, chosen) for spec in chosen.models]
        cells = cells_of(chosen, models)
        tally, missing = Tally(len(cells), 0, 0, 0), list(cells)
        if (out / "records").is_dir():
            tally, missing = look(Store(out, create=False), cells, retry=retry)
        for cell in cells:
            say(f"{cell.key[:12]}  {cell}")
        count, seconds = estimate(chosen, models, missing, workers)
        say(
            f"{counted(tally.cells, 'cell')}: {tally.found} done, {tally.failed} failed, "
            f"{len(missing)} to do; they take about {_duration(seconds)} with "
            f"{counted(count, 'worker')}"
        )
        return
    with showing_progress():
        tally = run_sweep(
            chosen, out, backend=backend.value, workers=workers, retry=retry, address=address
        )
    say(
        f"{counted(tally.cells, 'cell')}: {tally.found} found, {tally.done} done, "
        f"{tally.failed} failed; see: subspacelens results {out}"
    )
    if tally.failed:
        raise typer.Exit(1)


def results_command(
    directory: Annotated[Path, typer.Argument(help="A folder that `sweep` wrote.")],
    where: Annotated[
        str | None,
        typer.Option(help='An SQL condition, such as "subspace_fldd > 0.3 and layer >= 10".'),
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Write the table to this .csv file.")] = None,
    parquet: Annotated[
        Path | None, typer.Option(help="Write the table to this .parquet file.")
    ] = None,
) -> None:
    """Show what a sweep found, as a table; with --csv or --parquet all columns go to a file."""
    from ..core.files import write_atomically
    from ..sweep import results
    from ..sweep.table import to_parquet

    table = results(directory, where)
    if csv is not None:
        write_atomically(csv, table.write_csv().encode())
    if parquet is not None:
        write_atomically(parquet, to_parquet(table))
    shown = (
        "status", "model", "task", "site", "fit", "dim", "seed", "verdict",
        "subspace_fldd", "full_fldd", "row_fldd", "error",
    )  # fmt: skip
    names = [name for name in shown if name in table.columns and table[name].count()]
    same = [name for name in names if len(table) > 1 and table[name].n_unique() == 1]
    names = [name for name in names if name not in same]
    printed = PlainTable(*names)
    for row in table.select(names).iter_rows():
        printed.add_row(*map(_written, row))
    printed.show()
    common = "".join(f", {name} {_written(table[name][0])}" for name in same)
    say(f"{counted(len(table), 'cell')}{common}")


def _written(value: object) -> str:
    return "" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
