"""`inspect`: what a file of another tool is, and what it would be read as."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..core.errors import LensError
from ..core.progress import showing_progress
from .options import Device, Dtype, loaded
from .printing import PlainTable, paragraph, say

SHOWN = 20


def inspect(
    file: Annotated[str, typer.Argument(help="A file, a folder, or a hub id.")],
    model: Annotated[
        str | None,
        typer.Option(help="The model that it is for: says at which site it would be read."),
    ] = None,
    device: Device = None,
    dtype: Dtype = "float32",
) -> None:
    """Say what a file is, what `audit --subspace` would read it as, and what is missing.

    Nothing in the file is run. With --model the place that it names is looked for in the model and
    proven there. Exits with 2 for a file that cannot be read.
    """
    from ..fit.subspace import Subspace
    from ..interop import recognised
    from ..interop.containers import container_of, tensors_of
    from ..interop.hub import located

    path = located(Path(file))
    if not path.exists():
        raise LensError(f"{file}: no such file or folder")
    if Subspace.is_ours(path):
        ours = Subspace.load(path)
        say(f"{path}: a subspace of this library")
        say(f"  {ours.dim} of {ours.basis.shape[0]} dimensions at {ours.site}")
        say(f"  of model {ours.model_id}, found by {ours.fit.get('method')}")
        return
    found = recognised(path)
    if found is None:
        if path.is_dir() or not container_of(path):
            raise LensError(f"{path} is of no format that is known")
        table = PlainTable("key", "shape", title=f"{path}: plain arrays")
        for name, value in list(tensors_of(path).items())[:SHOWN]:
            table.add_row(name or "-", tuple(getattr(value, "shape", ())))
        table.show()
        say("missing: it says neither where it belongs nor what is done with it: --site, and --key")
        say("or --row where one array or one row of it is meant")
        return
    with showing_progress():
        lens = loaded(model, device, dtype) if model else None
    say(f"{path}: {found.kind} ({found.tool})")
    if found.model:
        say(f"  of model {found.model}")
    if found.bos is not None:
        say(f"  on prompts that {'begin' if found.bos else 'do not begin'} with a BOS token")
    table = PlainTable("--key", "is", "wide", "belongs at", "operation there", title="parts")
    for name, part in list(found.parts.items())[:SHOWN]:
        count, what = (part.latents, "latent") if part.latents else (part.shape[1], "dimension")
        size = f"{count} {what}{'s' * (count != 1)}"
        table.add_row(
            name, "refused" if part.refused else size, part.width, _place(part, lens),
            part.operation,
        )  # fmt: skip
    table.show()
    if len(found.parts) > SHOWN:
        say(f"and {len(found.parts) - SHOWN} more parts")
    for part in list(found.parts.values())[:SHOWN]:
        if part.refused:
            paragraph(f"  refused: {part.refused}")
    notes = (*found.notes, *(note for part in found.parts.values() for note in part.notes))
    for note in dict.fromkeys(notes):
        paragraph(f"  note: {note}")
    for text in _missing(found):
        paragraph(f"  missing: {text}")


def _place(part, lens) -> str:
    from ..core.errors import SiteError
    from ..interop.names import spot_of

    if part.place is None:
        return "it does not say"
    if lens is None:
        return str(part.place)
    try:
        return str(spot_of(part.place, lens))
    except SiteError as error:
        return str(error)


def _missing(found):
    parts = [part for part in found.parts.values() if part.refused is None]
    if parts and found.default is None and len(parts) > 1:
        yield "which part: --key"
    if any(part.latents for part in parts):
        yield "which latent: --latent, several for several dimensions"
    if any(part.place is None for part in parts):
        yield "where it belongs: --site L8.resid_post@END"
    elif parts:
        yield "at which token: --site @END"
    if any(part.operation not in ("interchange", "unsaid") for part in parts):
        yield (
            "an audit of its own operation: what is audited is the interchange of the subspace "
            "between two prompts"
        )
