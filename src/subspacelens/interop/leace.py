"""LEACE erasers: x - P_left P_right (x - bias), an oblique projection."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..core.errors import SubspaceError
from ..core.geometry import svd
from .foreign import Foreign, Part
from .registry import Source, reader

OBLIQUE = 1e-3
"""Sine of the angle between what an eraser reads and what it writes from which on they differ."""


@reader("LEACE eraser")
def leace(source: Source) -> Foreign | None:
    """A mapping with `proj_left` (d, k), `proj_right` (k, d) and `bias` (d,) or None."""
    if not {"proj_left", "proj_right"} <= source.names:
        return None
    return of_eraser(source.tensors, str(source.path), source.path)


def of_eraser(numbers: Mapping[str, Any], origin: str, path: Path | None = None) -> Foreign:
    """An eraser from its numbers. What it writes is `proj_left`, what it reads `proj_right`; where
    the two differ no one subspace is what it does, and each is taken only when it is named."""
    left, right = numbers["proj_left"].detach().double(), numbers["proj_right"].detach().double()
    if left.ndim != 2 or left.shape != right.T.shape:
        raise SubspaceError(
            f"{origin}: proj_left {tuple(left.shape)} and proj_right {tuple(right.shape)} belong "
            "to no eraser"
        )
    kept = {
        name: _as_it_is(value)
        for name in ("proj_left", "proj_right", "bias")
        if isinstance(value := numbers.get(name), Tensor)
    }
    writes, reads = _span(left), _span(right.T)
    same = writes.shape == reads.shape and _apart(writes, reads) < OBLIQUE
    named = {"subspace": writes} if same else {"writes": writes, "reads": reads}
    parts = {name: _part(columns, kept) for name, columns in named.items()}
    return Foreign(
        tool="LEACE",
        kind=f"{'orthogonal' if same else 'oblique'} eraser of rank {writes.shape[1]}",
        parts=parts,
        origin=origin,
        path=path,
        notes=()
        if same
        else (
            "oblique: it reads along other directions than it writes, so it is no subspace; "
            "--key writes or --key reads audits one side of it",
        ),
    )


def _part(columns: Tensor, numbers: Mapping[str, Callable[[], Tensor]]) -> Part:
    return Part(
        shape=(columns.shape[0], columns.shape[1]),
        columns=lambda _: columns,
        operation="erase",
        numbers=numbers,
    )


def _as_it_is(tensor: Tensor) -> Callable[[], Tensor]:
    return lambda: tensor.detach()


def _span(columns: Tensor) -> Tensor:
    """An orthonormal basis of what the columns (d, m) span, (d, rank)."""
    u, s, _ = svd(columns)
    return u[:, s > 1e-6 * s[0]]


def _apart(a: Tensor, b: Tensor) -> float:
    """Sine of the largest angle between two spans of equal dimension."""
    return float((b - a @ (a.T @ b)).norm(2))
