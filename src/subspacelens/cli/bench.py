"""`bench`: the library measured on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ..errors import LensError
from ..progress import showing_progress
from ..site import Site
from .options import (
    Device,
    Dtype,
    Model,
    writable,
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
    table = Table(title="seconds, and ratios of seconds")
    for heading in ("", *names, "engine / floor", "hooks / engine", "pyvene / engine"):
        table.add_column(heading, overflow="fold")
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


@commands.command("profile")
def bench_profile_command(
    model: Model = "smollm2",
    site: Annotated[str, typer.Option(help="Where the direction is trained.")] = "L18.mlp_act@S2",
    device: Device = None,
    dtype: Dtype = "float32",
) -> None:
    """Show where the time of a training step of the engine goes, by operation."""
    from ..bench import profile_step
    from ..model import load_model

    where = Site.parse(site)
    with showing_progress():
        shares = profile_step(load_model(model, device=device, dtype=dtype), where)
    table = Table("operation", "share", title=f"a step at {where}")
    for name, share in list(shares.items())[:20]:
        table.add_row(name, f"{share:.1%}")
    Console().print(table)


@commands.command("audit")
def bench_audit_command(
    model: Model = "smollm2",
    cases: Annotated[
        int | None, typer.Option(help="Stop either half after so many cases; by default all.")
    ] = None,
    device: Device = None,
    dtype: Dtype = "float32",
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("runs/bench-audit"),
) -> None:
    """Measure the audit against planted truth: models in which faithful and illusory directions
    are known by construction.

    Writes OUT/audit.json, OUT/audit.md and OUT/roc.html. All cases take about half an hour on 2
    cores.
    """
    import json

    from ..bench import audit_table, bench_audit, roc_figure
    from ..model import load_model
    from ..results import write_atomically

    if cases is not None and cases < 1:
        raise LensError(f"--cases {cases}: at least one case is needed")
    writable(out)
    with showing_progress():
        result = bench_audit(load_model(model, device=device, dtype=dtype), cases=cases)
    table = audit_table(result)
    write_atomically(out / "audit.json", json.dumps(result, indent=1).encode())
    write_atomically(out / "audit.md", table.encode())
    write_atomically(out / "roc.html", roc_figure(result).to_html(include_plotlyjs=True).encode())
    typer.echo(table)
