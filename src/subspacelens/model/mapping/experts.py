"""The experts of a mixture, one by one: what each computes for a token that is sent to it.

Experts are held in two stacked weights, and no module takes or gives what one of them computes. It
is computed here from what the module of all of them takes, and a change of it is added to what that
module puts out, as its own down-projection and the token's weight would write it. That both are
what the model does is proven: the sum over the experts must be what the module puts out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.weak import WeakTensorKeyDictionary

from ..hooks import Place, on_call
from .recording import same
from .running import BlockRun

_written = WeakTensorKeyDictionary()
"""What has been written by expert, of outputs in which something was: a later hook of the same call
reads it there."""


@dataclass(frozen=True, eq=False)
class Experts:
    """The experts of a block. `module` takes tokens x (t, d_model), and the numbers and weights,
    (t, k) both, of the experts to which each is sent."""

    module: nn.Module

    @property
    def _stacked(self) -> tuple[Tensor, Tensor]:
        """What all of them read by, (experts, 2 width, d_model), and write by, (experts, d_model,
        width)."""
        return self.module.get_parameter("gate_up_proj"), self.module.get_parameter("down_proj")

    @property
    def count(self) -> int:
        return len(self._stacked[1])

    @property
    def width(self) -> int:
        return self._stacked[1].shape[2]

    def writer(self, expert: int) -> Tensor:
        """The matrix (d_model, width) by which an expert writes, before the token's weight."""
        return self._stacked[1][expert].detach()

    def activation(self, x: Tensor, expert: int) -> Tensor:
        """What the down-projection of an expert reads of tokens x (t, d_model), (t, width)."""
        gate, up = linear(x, self._stacked[0][expert]).chunk(2, dim=-1)
        return self.module.get_submodule("act_fn")(gate) * up

    def place(self, expert: int) -> Place:
        """How one expert is hooked: what is seen of the module is the activation (t, width), NaN
        for tokens that are not sent there, of which a change does nothing."""
        return partial(self._on, expert)

    @contextmanager
    def _on(
        self, expert: int, module: nn.Module, change: Callable[[Tensor], Tensor | None]
    ) -> Iterator[None]:
        def see(taken: Sequence[Any], output: Tensor) -> Tensor | None:
            x, sent, share = _of(taken, expert)
            written: dict[int, Tensor] = _written.get(output) or {}
            now = written.get(expert)
            if now is None:
                now = x.new_full((len(x), self.width), torch.nan)
                now[sent] = self.activation(x[sent], expert)
            new = change(now)
            if new is None:
                return None
            moved = (new - now)[sent] @ self.writer(expert).T
            output = output.index_add(0, sent.nonzero()[:, 0], (share * moved).to(output))
            _written[output] = {**written, expert: new}
            return output

        with on_call(module, see):
            yield

    def add_up(self, x: Tensor, run: BlockRun) -> bool:
        """Whether what they write for the input x of their block, each times its weight, is what
        the module puts out."""
        seen: list[tuple[Sequence[Any], Tensor]] = []
        with on_call(self.module, lambda taken, output: seen.append((taken, output))):
            run(x)
        if len(seen) != 1 or not _is_routed(*seen[0]):
            return False
        taken, output = seen[0]
        total = torch.zeros_like(output)
        for expert in taken[1].unique().tolist():
            tokens, sent, share = _of(taken, expert)
            writes = self.activation(tokens[sent], expert) @ self.writer(expert).T
            total[sent] += (share * writes).to(total)
        exact = output.dtype in (torch.float32, torch.float64)
        return same(total, output, 1e-4 if exact else 2e-2)


def find_experts(mixture: nn.Module, x: Tensor, run: BlockRun) -> Experts | None:
    """The experts inside the part of a block that holds them, if they can be shown to be what the
    block computes from its input x (1, columns, d_model); else None."""
    for module in mixture.modules():
        if _is_stacked(module, x.shape[-1]):
            experts = Experts(module)
            return experts if experts.add_up(x, run) else None
    return None


def _is_stacked(module: nn.Module, d_model: int) -> bool:
    parameters, parts = dict(module.named_parameters(recurse=False)), dict(module.named_children())
    reads, writes = parameters.get("gate_up_proj"), parameters.get("down_proj")
    if reads is None or writes is None or reads.ndim != 3 or writes.ndim != 3:
        return False
    count, _, width = writes.shape
    right = (reads.shape, writes.shape) == ((count, 2 * width, d_model), (count, d_model, width))
    return right and writes.is_floating_point() and "act_fn" in parts


def _is_routed(taken: Sequence[Any], output: Tensor) -> bool:
    """Whether a module takes tokens, numbers and weights, and puts out as much as it reads."""
    if len(taken) != 3 or not all(isinstance(each, Tensor) for each in taken):
        return False
    x, numbers, weights = taken
    of_tokens = x.ndim == numbers.ndim == 2 and len(x) == len(numbers) and x.shape == output.shape
    return of_tokens and numbers.shape == weights.shape and not numbers.is_floating_point()


def _of(taken: Sequence[Any], expert: int) -> tuple[Tensor, Tensor, Tensor]:
    """The tokens (t, d_model), which of them are sent to an expert, (t,), and with what weight each
    of these, (sent, 1)."""
    x, numbers, weights = taken
    here = numbers == expert
    sent = here.any(dim=-1)
    return x, sent, (weights * here).sum(dim=-1, keepdim=True)[sent]
