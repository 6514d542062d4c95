"""`bench`: the library measured on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ..progress import showing_progress
from .options import (
    Device,
    Dtype,
    Model,
    Seed,
)  # fmt: skip

commands = typer.Typer(help="Measure the library on this machine.", no_args_is_help=True)


@commands.command("engine")
def bench_engine_command(
    model: Model = "smollm2",
    device: Device = None,
    dtype: Dtype = "float32",
    quick: Annotated[
        bool, typer.Option("--quick", help="Try it out; numbers of no worth.")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all numbers to this file.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Write the picture of the growth to this .html file.")
    ] = None,
) -> None:
    """Time the engine against plain hooks, pyvene (if installed) and the bare matrix products."""
    import json

    from ..bench import bench_engine, growth_figure
    from ..model import load_model
    from ..results import write_atomically

    with showing_progress():
        result = bench_engine(load_model(model, device=device, dtype=dtype), quick=quick)
    if json_file is not None:
        write_atomically(json_file, json.dumps(result, indent=1).encode())
    if plot is not None:
        write_atomically(plot, growth_figure(result).to_html(include_plotlyjs=True).encode())
    names = ("engine", "hooks", "pyvene", "floor")
    table = Table("seconds", *names, "engine / floor", "hooks / engine", "pyvene / engine")
    rows = {f"step {site}": times for site, times in result["steps"].items()}
    rows |= {f"fit {site}": times for site, times in result["fit"].items()}
    rows["map"] = result["map"]
    for name, times in rows.items():
        seconds = [times.get(f"{who}_seconds") for who in names]
        engine, hooks, pyvene, floor = seconds
        ratios = [(engine, floor), (hooks, engine), (pyvene, engine)]
        table.add_row(
            name,
            *("-" if s is None else f"{s:.3f}" for s in seconds),
            *("-" if None in pair else f"{pair[0] / pair[1]:.2f}" for pair in ratios),
        )
    Console().print(table)
    typer.echo(f"peak memory: {result['peak_rss_bytes'] / 2**30:.2f} GiB")


@commands.command("crash")
def bench_crash_command(
    local: Annotated[int, typer.Option(min=0, help="Kills of the local runner.")] = 100,
    ray: Annotated[int, typer.Option(min=0, help="Kills on a Ray cluster of two nodes.")] = 20,
    seed: Seed = 0,
) -> None:
    """Kill sweeps of small cells at random moments and count what is lost: nothing may be.

    Exits with 1 if anything was lost, changed, written twice or left half-written.
    """
    from ..bench.crash import TARGETS, crash_local, crash_ray

    with showing_progress():
        reports = {"local": crash_local(local, seed)} if local else {}
        if ray:
            reports["ray"] = crash_ray(ray, seed)
    counts = ("lost", "changed", "rewritten", "damaged", "orphans")
    table = Table("", *reports)
    for target in TARGETS:
        table.add_row(f"kills: {target}", *(str(r.kills[target]) for r in reports.values()))
    table.add_row("sweeps x cells", *(f"{r.rounds} x {r.cells}" for r in reports.values()))
    for count in counts:
        table.add_row(count, *(str(getattr(report, count)) for report in reports.values()))
    table.add_row("seconds", *(f"{report.seconds:.0f}" for report in reports.values()))
    Console().print(table)
    if not all(report.passed for report in reports.values()):
        raise typer.Exit(1)
