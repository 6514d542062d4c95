"""Featurizers of causalab and MIB: a rotation (d, k), and which of its columns are swapped."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ..core.errors import SubspaceError
from .containers import reading
from .foreign import Foreign, Part
from .registry import Source, reader

_ENTRY = re.compile(r"weight\[k=\d+(?:,\s*seed=\d+)?\]")


@reader("featurizer")
def saved_featurizer(source: Source) -> Foreign | None:
    """`<unit>_featurizer` of MIB and causalab in 2025: a torch file without a suffix."""
    info = source.tensors["model_info"] if "model_info" in source.names else None
    if not isinstance(info, Mapping) or "featurizer_class" not in info:
        return None
    kind = str(info["featurizer_class"])
    matrix = (info.get("additional_config") or {}).get("rotation_matrix")
    if not isinstance(matrix, Tensor):
        why = f"{kind} has no rotation: it is the identity, or an autoencoder, over all features"
        return Foreign(
            tool="causalab / MIB", kind=kind, origin=str(source.path), path=source.path,
            parts={
                "rotation_matrix": Part(
                    shape=(0, 0), columns=lambda _: torch.empty(0, 0), operation="interchange",
                    refused=why,
                )
            },
        )  # fmt: skip
    chosen = _indices(source, matrix.shape[1])
    return _of(
        {"rotation_matrix": matrix if chosen is None else matrix[:, chosen]},
        kind if chosen is None else f"{kind}, {len(chosen)} of {matrix.shape[1]} features",
        source,
    )


@reader("featurizer weights")
def featurizer_weights(source: Source) -> Foreign | None:
    """Safetensors with entries `weight[k=8,seed=0]`."""
    if source.container != "safetensors":
        return None
    names = [name for name in source.shapes if _ENTRY.fullmatch(name)]
    if not names:
        return None
    matrices = {name: source.tensors[name] for name in names}
    return _of(matrices, f"{len(names)} rotations", source)


def _of(matrices: Mapping[str, Tensor], kind: str, source: Source) -> Foreign:
    for name, matrix in matrices.items():
        if matrix.ndim != 2 or matrix.shape[0] < matrix.shape[1]:
            raise SubspaceError(f"{source.path}: {name} has the shape {tuple(matrix.shape)}")
    return Foreign(
        tool="causalab / MIB",
        kind=kind,
        origin=str(source.path),
        path=source.path,
        parts={name: _part(matrix) for name, matrix in matrices.items()},
        notes=("layer and token stand in the name of the file, which is not trusted",),
    )


def _part(matrix: Tensor) -> Part:
    return Part(
        shape=(matrix.shape[0], matrix.shape[1]),
        columns=lambda _: matrix.double(),
        operation="interchange",
    )


def _indices(source: Source, count: int) -> list[int] | None:
    """The features that `<unit>_indices` beside the file names, None for all of them. The inverse,
    which is kept beside it and holds the same, has the same ones."""
    name = source.path.name.removesuffix("_featurizer").removesuffix("_inverse")
    path = source.path.with_name(f"{name}_indices")
    if not path.is_file():
        return None
    with reading(path):
        chosen = json.loads(path.read_text())
        if chosen is None:
            return None
        numbers = [int(index) for index in chosen]
        if not numbers or not all(0 <= index < count for index in numbers):
            raise ValueError(f"indices {numbers[:8]} of {count} features")
        return numbers
