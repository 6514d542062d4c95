"""`reproduce`: the paper, study by study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..progress import showing_progress
from .options import Device, Dtype, Memory, Model, Seed, bytes_of, command_line, writable

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


@commands.command("ioi")
def reproduce_ioi(
    model: Model = "smollm2",
    quick: Annotated[
        bool, typer.Option("--quick", help="A first look: few pairs, wide intervals.")
    ] = False,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Take the sites and heads of a known circuit instead of finding it: `gpt2`, the "
            "paper's, which is the default for --model gpt2."
        ),
    ] = None,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = "float32",
    memory: Memory = None,
    out: Annotated[Path, typer.Option(help="Folder for the page and tables.")] = Path("runs/ioi"),
) -> None:
    """Indirect object identification: the circuit, illusions in its MLPs, the feature in its
    residual stream, and controls.

    Writes OUT/ioi.json, OUT/ioi.md, OUT/map.json, OUT/report.html and OUT/audits.
    """
    from ..model import load_model
    from ..report.ioi_page import markdown, write_ioi
    from ..studies.ioi import reproduce_ioi as run_ioi

    budget = bytes_of(memory)
    writable(out)
    with showing_progress():
        lens = load_model(model, device=device, dtype=dtype)
        study = run_ioi(
            lens, preset=preset, quick=quick, seed=seed, memory=budget, command=command_line()
        )
    page = write_ioi(study, out)
    typer.echo(markdown(study.record))
    typer.echo(f"report: {page}")
