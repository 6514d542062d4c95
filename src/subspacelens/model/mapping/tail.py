"""The way from the last block to the logits, found and proven."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...core.errors import ModelError
from .tracing import Call, Trace, as_linear, same
from .values import Tail


def find_tail(
    model: PreTrainedModel,
    trace: Trace,
    last: Call,
    head: nn.Module,
    logits: Tensor,
    names: dict[int, str],
) -> Tail:
    kind = type(model).__name__
    assert last.y is not None
    current, norms = last.y, []
    inside_last = {id(call) for call in trace.inside(last.module)}
    later = trace.calls[trace.calls.index(last) + 1 :]
    for call in later:
        if id(call) in inside_last:
            continue
        if call.module is head:
            linear = as_linear(call, names[id(head)])
            if linear is None or not same(call.x[:, -1], current[:, -1], 1e-6):
                break
            assert call.y is not None
            return Tail(tuple(norms), linear, _find_finish(model, call.y, logits))
        if call.y is not None and same(call.x, current, 1e-6):
            current = call.y
            norms.append(call.module)
    raise ModelError(f"{kind}: the way from the last block to the unembedding was not found")


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
