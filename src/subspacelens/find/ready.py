"""A subspace from a file, with the model that it belongs to: ready to be patched."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..audit.run import SUBSPACE_FILE
from ..core.site import Site
from ..engine.effect import Effect
from ..fit.subspace import Subspace
from ..measure.patch import Pairs, patch
from ..model.lens import LensModel


@dataclass(frozen=True, eq=False)
class ReadySubspace:
    """A subspace and its model.

    >>> ready = sl.load_subspace("runs/find/subspace.safetensors", lens)
    >>> ready.patch(task).fldd.value
    """

    lens: LensModel = field(repr=False)
    subspace: Subspace

    @property
    def site(self) -> Site:
        return self.subspace.site

    def patch(self, pairs: Pairs, *, shifted: bool = False, memory: int | None = None) -> Effect:
        """What the model answers when the subspace takes the source's value, on a task's test
        pairs, on pairs, or on a capture of either (`sl.patch`, of which this is the short form)."""
        return patch(self.lens, pairs, self.site, self.subspace, shifted=shifted, memory=memory)


def load_subspace(path: Path | str, lens: LensModel) -> ReadySubspace:
    """Reads a subspace file of this model, such as the `subspace.safetensors` of a search; of a
    folder, the file of that name in it.

    Raises `SubspaceError` as `Subspace.load` does.

    >>> sl.load_subspace("runs/find", lens).patch(task).fldd.value
    """
    path = Path(path)
    return ReadySubspace(lens, Subspace.load(path / SUBSPACE_FILE if path.is_dir() else path, lens))
