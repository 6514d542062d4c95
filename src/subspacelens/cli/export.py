"""`export`: a subspace for another tool."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..core.progress import showing_progress
from .options import Device, Dtype, loaded
from .printing import say


def export_command(
    subspace: Annotated[Path, typer.Argument(help="A subspace of this library.")],
    to: Annotated[
        str, typer.Option(help="pyvene, transformer-lens, nnsight, control-vector or leace.")
    ],
    out: Annotated[Path, typer.Option(help="The file or folder to write.")],
    model: Annotated[
        str | None, typer.Option(help="Its model; by default the one that it was made with.")
    ] = None,
    scale: Annotated[
        float, typer.Option(help="Length of a control vector, in units of the activation.")
    ] = 1.0,
    device: Device = None,
    dtype: Dtype = "float32",
) -> None:
    """Write a subspace as another tool has it, and print how it is used there."""
    from ..fit.subspace import Subspace
    from ..interop.writing import Outgoing, export

    ours = Subspace.load(subspace)
    with showing_progress():
        lens = loaded(model or ours.model_id, device, dtype)
        ours.check(lens, str(subspace))
    outgoing = Outgoing(basis=ours.basis, site=ours.site, lens=lens, scale=scale)
    say(export(outgoing, to, out))
