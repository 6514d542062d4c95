"""What other tools hold and how they call things: one reader or writer a file.

Every file of this folder is imported, so that a reader is registered by being there. A file is told
by what is in it, never by its name; what two readers know is refused. Nothing pickled is run.

>>> found = read_foreign("runs/das")  # a folder that pyvene saved
>>> found.kind, found.parts["layer_8_comp_block_output_unit_pos_nunit_1#0"].shape
"""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from ..core.errors import SubspaceError
from .foreign import Foreign, Name, Part
from .memory import of_object
from .registry import READERS, recognised

for _file in iter_modules(__path__):
    import_module(f"{__name__}.{_file.name}")


def read_foreign(thing: Any) -> Foreign:
    """What another tool's file, folder or object holds: its operation, numbers, place and model.

    `thing` is a path, or an object in memory (see `interop.memory`). Raises `SubspaceError` for
    what no reader knows, what two know, a pickle, and a file that is damaged.

    >>> found = sl.read_foreign("vector.gguf")
    >>> found.tool, found.model, list(found.parts)
    ('repeng / llama.cpp', 'llama', ['direction.8', 'direction.9'])
    """
    if isinstance(thing, str | os.PathLike):
        path = Path(os.fspath(thing))
        found, wrong = recognised(path), f"{path} is of no format that is known: "
        wrong += ", ".join(READERS)
    else:
        found = of_object(thing)
        wrong = f"a {type(thing).__name__} is no object of another tool that is known"
    if found is None:
        raise SubspaceError(wrong)
    return found


__all__ = ["READERS", "Foreign", "Name", "Part", "read_foreign", "recognised"]
