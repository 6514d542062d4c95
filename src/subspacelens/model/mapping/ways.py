"""How a change at a site enters the residual stream, so that a replay can begin there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..hooks import muted

if TYPE_CHECKING:
    from .values import Block, Reader


class Way(ABC):
    """A replay begins at `start`, with what `entered` makes of the residual stream kept there. What
    `around` gives is in place while its first block runs; `alone` says that this is nothing."""

    alone = True

    @abstractmethod
    def start(self, layer: int) -> tuple[str, int]:
        """Where in the residual stream: ("pre", l) before block l, ("mid", l) inside it."""

    def entered(self, stream: Tensor, delta: Tensor, writer: Tensor | None) -> Tensor:
        """The residual stream (rows, columns, d_model) with a change (rows, dim) of the site in its
        first column, written by W (d_model, dim), or as it is."""
        write = delta if writer is None else delta @ writer.T.to(delta)
        return torch.cat([stream[:, :1] + write[:, None], stream[:, 1:]], dim=1)

    def around(
        self, block: Block, adding: AbstractContextManager[None]
    ) -> AbstractContextManager[None]:
        """What is in place while `block`, the first, runs. `adding` adds the change by a hook."""
        return nullcontext()

    def reaches(self, reader: Reader) -> bool:
        """Whether a reader of the first block runs after the change has entered."""
        return True


class Before(Way):
    """It is a change of what enters the block."""

    def start(self, layer: int) -> tuple[str, int]:
        return "pre", layer


class After(Way):
    """It is a change of what leaves the block."""

    def start(self, layer: int) -> tuple[str, int]:
        return "pre", layer + 1


class Between(Way):
    """It is a change of the residual stream between attention and MLP, where the replay begins: the
    block runs with its attention muted."""

    alone = False

    def start(self, layer: int) -> tuple[str, int]:
        return "mid", layer

    def around(
        self, block: Block, adding: AbstractContextManager[None]
    ) -> AbstractContextManager[None]:
        return muted(block.out_proj.module)

    def reaches(self, reader: Reader) -> bool:
        return reader.mid


class Within(Way):
    """It is none of these, as where a norm follows: a hook adds it while the block runs."""

    alone = False

    def start(self, layer: int) -> tuple[str, int]:
        return "pre", layer

    def entered(self, stream: Tensor, delta: Tensor, writer: Tensor | None) -> Tensor:
        return stream

    def around(
        self, block: Block, adding: AbstractContextManager[None]
    ) -> AbstractContextManager[None]:
        return adding


class Routed(Within):
    """It is a change of what an expert computes, which is written times the token's weight of that
    expert: nothing in the block reads it."""

    def reaches(self, reader: Reader) -> bool:
        return False


class Inside(Within):
    """It is a change of queries, keys or values: of what reads the stream at the same column only
    what stands behind attention comes later."""

    def reaches(self, reader: Reader) -> bool:
        return reader.mid
