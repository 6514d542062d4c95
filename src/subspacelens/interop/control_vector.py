"""Control vectors of repeng and llama.cpp: GGUF with `direction.<L>` (d,), L a block from 0.

Each is added to the output of its block.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from gguf import GGUFReader, GGUFValueType
from torch import Tensor

from ..core.errors import SubspaceError
from .containers import reading
from .foreign import Foreign, Name, Part
from .registry import Source, reader

ARCHITECTURE = "controlvector"


@reader("control vector")
def control_vector(source: Source) -> Foreign | None:
    """A GGUF file whose architecture is `controlvector`; a model's is not read here."""
    if source.container != "gguf":
        return None
    with reading(source.path):
        file = GGUFReader(source.path)
        if _text(file, "general.architecture") != ARCHITECTURE:
            return None
        hint = _text(file, f"{ARCHITECTURE}.model_hint")
        vectors = {
            int(tensor.name.removeprefix("direction.")): np.array(tensor.data)
            for tensor in file.tensors
            if tensor.name.startswith("direction.")
        }
    if not vectors:
        raise SubspaceError(f"{source.path}: a control vector without a direction")
    found = {layer: torch.from_numpy(vector.astype("f4")) for layer, vector in vectors.items()}
    return of_directions(found, hint, str(source.path), source.path)


def of_directions(
    vectors: Mapping[int, Tensor],
    model: str | None,
    origin: str,
    path: Path | None = None,
    tool: str = "repeng / llama.cpp",
) -> Foreign:
    """Directions (d,) that are added to the output of the block by whose number they are kept."""
    for layer, vector in vectors.items():
        if vector.ndim != 1:
            raise SubspaceError(f"{origin}: direction {layer} has the shape {tuple(vector.shape)}")
    return Foreign(
        tool=tool,
        kind=f"control vector for {len(vectors)} blocks",
        parts={f"direction.{layer}": _part(layer, vectors[layer]) for layer in sorted(vectors)},
        origin=origin,
        path=path,
        model=model,
        notes=("it is added at all positions, times a coefficient that the file does not have",),
    )


def _part(layer: int, vector: Tensor) -> Part:
    return Part(
        shape=(len(vector), 1),
        columns=lambda _: vector[:, None].double(),
        operation="add",
        place=Name("block output", str(layer)),
        numbers={"vector": lambda: vector},
    )


def _text(file: GGUFReader, name: str) -> str | None:
    field = file.get_field(name)
    if field is None or field.types[-1] != GGUFValueType.STRING:
        return None
    return bytes(field.parts[field.data[-1]]).decode("utf-8", "replace")
