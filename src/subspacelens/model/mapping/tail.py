"""The way from the last block to the logits, found and proven."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...core.errors import ModelError
from .recording import Call, Recording, same
from .values import Tail


def find_tail(model: PreTrainedModel, recording: Recording, last: Call, head: nn.Module) -> Tail:
    """The norms from the last block, whose call is `last`, to the unembedding `head`, and what the
    model then does to its logits. Raises `ModelError` where they are not found."""
    current, norms = last.y, []
    inside_last = {id(call) for call in recording.inside(last.module)}
    for call in recording.calls[recording.place(last) + 1 :]:
        if id(call) in inside_last:
            continue
        if call.module is head:
            linear = recording.linear(call)
            if linear is None or not same(call.x[:, -1], current[:, -1], 1e-6):
                break
            return Tail(tuple(norms), linear, _find_finish(model, call.y, recording.logits))
        if call.output is not None and same(call.x, current, 1e-6):
            current = call.output
            norms.append(call.module)
    raise ModelError(
        f"{type(model).__name__}: the way from the last block to the unembedding was not found"
    )


def _find_finish(model: PreTrainedModel, raw: Tensor, logits: Tensor) -> Callable[[Tensor], Tensor]:
    raw = raw[:, -logits.shape[1] :].to(logits)
    if same(raw, logits, 1e-6):
        return _identity
    scale = float((raw * logits).sum() / (raw * raw).sum())
    if same(raw * scale, logits, 1e-5):
        return _Scale(scale)
    cap = getattr(model.config.get_text_config(decoder=True), "final_logit_softcapping", None)
    if cap and same(torch.tanh(raw / cap) * cap, logits, 1e-5):
        return _SoftCap(float(cap))
    raise ModelError(
        f"{type(model).__name__}: its logits are neither the unembedding's output, "
        "nor a multiple of it, nor soft-capped"
    )


def _identity(logits: Tensor) -> Tensor:
    return logits


@dataclass(frozen=True)
class _Scale:
    scale: float

    def __call__(self, logits: Tensor) -> Tensor:
        return logits * self.scale


@dataclass(frozen=True)
class _SoftCap:
    cap: float

    def __call__(self, logits: Tensor) -> Tensor:
        return torch.tanh(logits / self.cap) * self.cap
