"""A subspace as code for another tool: `basis.npy`, and a file that needs nothing of ours."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from ..core.errors import SubspaceError
from ..core.files import write_atomically
from .names import spellings
from .writing import Outgoing, writer

_INTERCHANGE = '''"""Interchange of a subspace, {k} of {width} dimensions, at {site} of {model}.

{note}
"""

from pathlib import Path

import numpy
import torch

BASIS = torch.from_numpy(numpy.load(Path(__file__).parent / "basis.npy"))
"""Orthonormal columns, ({width}, {k})."""


PART = slice({start}, {stop})
"""The numbers of the tensor, its heads one after the other, that it is a basis of."""


def interchanged(base, source):
    """`base` (..., {width}) with the value of `source` in the subspace."""
    basis = BASIS.to(base)
    return base + ((source.to(base) - base) @ basis) @ basis.T


def edited(base, source, base_position, source_position=None):
    """`base` (rows, columns, ...) with the value of `source` at a column."""
    base = base.clone()
    here = base[:, base_position]
    there = source[:, base_position if source_position is None else source_position]
    new = here.flatten(1).clone()
    new[:, PART] = interchanged(new[:, PART], there.flatten(1)[:, PART])
    base[:, base_position] = new.view_as(here)
    return base
'''

_TRANSFORMER_LENS = '''

NAME = "{name}"


def hook_for(source, base_position, source_position=None):
    """A pair for `fwd_hooks`: `source` is what `run_with_cache` has under `NAME`; positions are
    columns, one for all rows."""

    def hook(act, hook):
        return edited(act, source, base_position, source_position)

    return NAME, hook
'''

_NNSIGHT = '''

PLACE = "{name}"


def edit(activation, source, base_position, source_position=None):
    """What `PLACE` becomes inside a trace:

        {name} = edit({name}, source, position)
    """
    return edited(activation, source, base_position, source_position)
'''


@writer("transformer-lens")
def transformer_lens(outgoing: Outgoing, folder: Path) -> str:
    """`interchange.py` with `hook_for`, for `run_with_hooks`."""
    name, note = _called(outgoing, "TransformerLens")
    _write(outgoing, folder, note, _TRANSFORMER_LENS.format(name=name))
    return (
        "from interchange import NAME, hook_for\n"
        "_, cache = model.run_with_cache(source_tokens, names_filter=NAME)\n"
        "logits = model.run_with_hooks(tokens, fwd_hooks=[hook_for(cache[NAME], position)])"
    )


@writer("nnsight")
def nnsight(outgoing: Outgoing, folder: Path) -> str:
    """`interchange.py` with `edit`, for a trace."""
    name, note = _called(outgoing, "nnsight")
    _write(outgoing, folder, note, _NNSIGHT.format(name=name))
    return (
        "from interchange import edit\n"
        "with model.trace(source_tokens):\n"
        f"    source = {name}.save()\n"
        "with model.trace(tokens):\n"
        f"    {name} = edit({name}, source, position)\n"
        "    logits = model.output.logits.save()"
    )


def _called(outgoing: Outgoing, tool: str) -> tuple[str, str]:
    for each in spellings(outgoing.lens, outgoing.site):
        if each.tool == tool:
            if each.name is None:
                raise SubspaceError(f"{outgoing.site} has no name in {tool}: {each.note}")
            return str(each.name), f"{each.tool}: {each.note}" if each.note else ""
    raise LookupError(tool)


def _write(outgoing: Outgoing, folder: Path, note: str, code: str) -> None:
    basis, part = outgoing.basis, outgoing.lens.map.head_slice(outgoing.site)
    head = _INTERCHANGE.format(
        width=basis.shape[0], k=basis.shape[1], site=outgoing.site, model=outgoing.lens.id,
        note=note or "The tensor is the same there.", start=part.start, stop=part.stop,
    )  # fmt: skip
    file = io.BytesIO()
    np.save(file, basis.detach().float().cpu().numpy())
    write_atomically(folder / "basis.npy", file.getvalue())
    write_atomically(folder / "interchange.py", (head + code).encode())
