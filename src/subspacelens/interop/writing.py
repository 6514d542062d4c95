"""Writers: each puts a subspace of ours into the form of another tool, and says how it is used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from ..core.errors import SubspaceError
from ..core.site import Site
from ..model.lens import LensModel
from .names import MIDDLE


@dataclass(frozen=True, eq=False, kw_only=True)
class Outgoing:
    """What is written: an orthonormal `basis` (width, k) at `site` of the model `lens`; `scale` is
    the length of a vector that is added, in units of the activation."""

    basis: Tensor = field(repr=False)
    site: Site
    lens: LensModel
    scale: float = 1.0

    def vector(self, what: str) -> Tensor:
        """`scale` times the one direction, (width,). Raises `SubspaceError` where there are
        several."""
        if self.basis.shape[1] != 1:
            raise SubspaceError(
                f"{what} is one vector, and this subspace has {self.basis.shape[1]} dimensions"
            )
        return self.scale * self.basis[:, 0]


Writer = Callable[[Outgoing, Path], str]
WRITERS: dict[str, Writer] = {}
"""Every writer by the name of its tool."""


def writer(name: str) -> Callable[[Writer], Writer]:
    """Registers a function that writes an `Outgoing` to a path, and returns how it is used."""

    def register(function: Writer) -> Writer:
        WRITERS[name] = function
        return function

    return register


def export(outgoing: Outgoing, tool: str, path: Path | str) -> str:
    """Writes `outgoing` for `tool`, one of `WRITERS`, to a file or folder at `path`, and returns
    lines that say how it is used there.

    Raises `SubspaceError` for an unknown tool and for a subspace that the tool cannot express,
    `ResultError` where the path cannot be written.
    """
    if outgoing.site.stream == "resid_mid" and tool not in ("leace", "control-vector"):
        raise SubspaceError(f"{outgoing.site} cannot be written for {tool}: {MIDDLE}")
    if tool not in WRITERS:
        raise SubspaceError(f"unknown tool '{tool}': one of {', '.join(sorted(WRITERS))}")
    return WRITERS[tool](outgoing, Path(path))
