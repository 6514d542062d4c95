"""What a file of another tool holds, in words that the rest of the library knows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from torch import Tensor

from ..core.errors import SubspaceError
from ..engine.patches import SetLatent

Operation = Literal["interchange", "add", "erase", "latent", "reft", "edit", "unsaid"]
"""What the tool does with it: take the source's value in the subspace, add the vector, project it
out (obliquely), set a latent, the learned edit of LoReFT, a change of a weight, or nothing that the
file says."""

SHOWN = 8
"""How many names a line of an error lists."""


@dataclass(frozen=True)
class Name:
    """A place as a tool spells it: `TransformerLens` `blocks.8.hook_resid_pre`, `pyvene`
    `layer.8.comp.block_output`. `interop.names.resolve` says which site it is in a model."""

    tool: str
    text: str

    def __str__(self) -> str:
        return f"{self.text} ({self.tool})"


@dataclass(frozen=True, eq=False, kw_only=True)
class Part:
    """One thing that can be taken from a file: `shape` is that of its basis (width, k).

    `columns` gives the basis (width, k), float, not yet orthonormal; of a dictionary (`latents` of
    them) those of the rows that are asked for, in their order. `place` is where the file says that
    it belongs, None where it says nothing. `refused` says why it is no subspace, None where it is
    one. `numbers` are the tensors that its operation needs beside the basis, by name, read when
    they are asked for. `latent` gives the patch that sets the latent of a row, None where the
    dictionary does not compute each from the activation alone, or does not say how.
    """

    shape: tuple[int, int]
    columns: Callable[[Sequence[int]], Tensor] = field(repr=False)
    operation: Operation
    place: Name | None = None
    latents: int | None = None
    refused: str | None = None
    notes: tuple[str, ...] = ()
    centred: bool = False
    numbers: Mapping[str, Callable[[], Tensor]] = field(default_factory=dict, repr=False)
    latent: Callable[[int], SetLatent] | None = field(default=None, repr=False)

    @property
    def width(self) -> int:
        return self.shape[0]


@dataclass(frozen=True, eq=False, kw_only=True)
class Foreign:
    """What a file, a folder or an object of another `tool` holds: its `parts` by name, and what it
    says of the `model` and of whether prompts begin with a BOS token (`bos`, None where it does not
    say). `kind` is one line in words, `origin` where it was read, `default` the part that is meant
    where none is named.

    >>> found = sl.read_foreign("gpt2-small-res-jb/blocks.8.hook_resid_pre")
    >>> found.tool, found.kind, list(found.parts)
    ('SAELens', 'standard sparse autoencoder, 24576 latents', ['W_dec', 'W_enc'])
    """

    tool: str
    kind: str
    parts: Mapping[str, Part]
    origin: str
    model: str | None = None
    bos: bool | None = None
    notes: tuple[str, ...] = ()
    path: Path | None = field(default=None, repr=False)
    default: str | None = None

    def part(self, key: str | None = None) -> tuple[str, Part]:
        """The part of that name, or the one that there is. Raises `SubspaceError` where it is not
        there, where several are and none was named, and where it is refused."""
        key = self.default if key is None else key
        if key is None:
            open_ = [name for name, part in self.parts.items() if part.refused is None]
            if len(open_) != 1 and len(self.parts) > 1:
                raise SubspaceError(
                    f"{self.origin}: {self.kind} holds {self.listed()}: name one with --key"
                )
            key = open_[0] if open_ else next(iter(self.parts))
        if key not in self.parts:
            raise SubspaceError(f"{self.origin}: no part '{key}'; it holds {self.listed()}")
        part = self.parts[key]
        if part.refused is not None:
            raise SubspaceError(f"{self.origin}: {part.refused}")
        return key, part

    def listed(self) -> str:
        """The names of the parts, the first few of many."""
        names = list(self.parts)
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        return ", ".join(names[:SHOWN]) + more
