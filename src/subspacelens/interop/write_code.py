"""A subspace as code for another tool: `basis.npy`, and a file that needs nothing of ours."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from ..core.files import write_atomically
from .names import spellings
from .writing import Outgoing, writer

_INTERCHANGE = '''"""Interchange of a subspace of {width} dimensions, {k} of them, at {site} of {model}.

{note}
"""

from pathlib import Path

import numpy
import torch

BASIS = torch.from_numpy(numpy.load(Path(__file__).parent / "basis.npy"))
"""Orthonormal columns, ({width}, {k})."""


def interchanged(base, source):
    """`base` (..., {width}) with the value of `source` in the subspace."""
    basis = BASIS.to(base)
    return base + ((source.to(base) - base) @ basis) @ basis.T
'''

_TRANSFORMER_LENS = '''

NAME = "{name}"


def hook_for(source, base_position, source_position=None):
    """A pair for `fwd_hooks`: `source` is what `run_with_cache` has under `NAME`, (rows, columns,
    ...); positions are columns, one for all rows."""
    there = base_position if source_position is None else source_position

    def hook(act, hook):
        act = act.clone()
        here = act[:, base_position]{head}
        act[:, base_position]{head} = interchanged(here, source[:, there]{head})
        return act

    return NAME, hook
'''

_NNSIGHT = '''

PLACE = "{name}"


def edit(base_activation, source_activation, base_position, source_position=None):
    """What `PLACE` becomes inside a trace, (rows, columns, width):

        model.{path} = edit(model.{path}, source, position)
    """
    there = base_position if source_position is None else source_position
    edited = base_activation.clone()
    here = edited[:, base_position]{part}
    edited[:, base_position]{part} = interchanged(here, source_activation[:, there]{part})
    return edited
'''


@writer("transformer-lens")
def transformer_lens(outgoing: Outgoing, folder: Path) -> str:
    """`interchange.py` with `hook_for`, for `run_with_hooks`."""
    name, note = _called(outgoing, "TransformerLens")
    site = outgoing.site
    head = ""
    if site.stream == "head_z":
        head = ".flatten(1)" if site.head is None else f"[:, {site.head}]"
    code = _TRANSFORMER_LENS
    if head == ".flatten(1)":
        code = code.replace(
            "act[:, base_position]{head} = interchanged(here, source[:, there]{head})",
            "new = interchanged(here, source[:, there].flatten(1))\n"
            "        act[:, base_position] = new.view_as(act[:, base_position])",
        )
    _write(outgoing, folder, note, code.format(name=name, head=head))
    return (
        "from interchange import NAME, hook_for\n"
        "_, cache = model.run_with_cache(source_tokens, names_filter=NAME)\n"
        "logits = model.run_with_hooks(tokens, fwd_hooks=[hook_for(cache[NAME], position)])"
    )


@writer("nnsight")
def nnsight(outgoing: Outgoing, folder: Path) -> str:
    """`interchange.py` with `edit`, for a trace."""
    name, note = _called(outgoing, "nnsight")
    path = name.removeprefix("model.")
    where = outgoing.lens.map.head_slice(outgoing.site)
    part = "" if where == slice(None) else f"[:, {where.start}:{where.stop}]"
    _write(outgoing, folder, note, _NNSIGHT.format(name=name, path=path, part=part))
    return (
        "from interchange import edit\n"
        "with model.trace(source_tokens):\n"
        f"    source = model.{path}.save()\n"
        "with model.trace(tokens):\n"
        f"    model.{path} = edit(model.{path}, source, position)\n"
        "    logits = model.output.logits.save()"
    )


def _called(outgoing: Outgoing, tool: str) -> tuple[str, str]:
    for each in spellings(outgoing.lens, outgoing.site):
        if each.tool == tool:
            return str(each.name), f"{each.tool}: {each.note}" if each.note else ""
    raise LookupError(tool)


def _write(outgoing: Outgoing, folder: Path, note: str, code: str) -> None:
    basis = outgoing.basis
    head = _INTERCHANGE.format(
        width=basis.shape[0], k=basis.shape[1], site=outgoing.site, model=outgoing.lens.id,
        note=note or "The tensor is the same there.",
    )  # fmt: skip
    file = io.BytesIO()
    np.save(file, basis.detach().float().cpu().numpy())
    write_atomically(folder / "basis.npy", file.getvalue())
    write_atomically(folder / "interchange.py", (head + code).encode())
