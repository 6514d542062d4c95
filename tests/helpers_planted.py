"""Channels planted into a model for real: two modules are put around its own, and taken away again.

Each extra unit reads the residual stream before the MLP of one block and writes a vector to it; a
rotation mixes them, so that no neuron is one of them. `subspacelens.measure.planting` does without.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from subspacelens.model.lens import LensModel
from subspacelens.model.mapping.values import Linear


@dataclass(frozen=True)
class Channels:
    """Extra channels: values = mixing @ (reads x + biases) for a residual stream x (d_model,);
    `writes` (d_model, p) belong to the values before mixing."""

    reads: Tensor
    biases: Tensor
    writes: Tensor
    mixing: Tensor

    def direction(self, weights: dict[int, float], width: int) -> Tensor:
        """The direction of the widened activation, float64 (width,), in which the unmixed channels
        have these weights; `width` counts all neurons, the added ones last."""
        plain = torch.zeros(len(self.reads), dtype=torch.float64)
        for number, weight in weights.items():
            plain[number] = weight
        mixed = self.mixing.double() @ plain
        return torch.cat([torch.zeros(width - len(mixed), dtype=torch.float64), mixed])


class _Ear(nn.Module):
    """Around the MLP's norm: remembers the residual stream that it reads."""

    _heard: Tensor

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        self._heard = x
        return self.module(x)


class _Wide(nn.Module):
    """Around the down-projection: the model's own neurons and the added ones through one map."""

    def __init__(self, ear: _Ear, old: Linear, channels: Channels) -> None:
        super().__init__()
        self.listen = lambda: ear._heard
        weight = old.weight
        self.reads = nn.Parameter(channels.reads.to(weight), requires_grad=False)
        self.biases = nn.Parameter(channels.biases.to(weight), requires_grad=False)
        self.mixing = nn.Parameter(channels.mixing.to(weight), requires_grad=False)
        extra = (channels.writes.double() @ channels.mixing.double().T).to(weight)
        wide = torch.cat([weight, extra], dim=1)
        bias = getattr(old.module, "bias", None)
        self.linear = nn.Linear(wide.shape[1], wide.shape[0], bias=bias is not None, device="meta")
        self.linear.weight = nn.Parameter(wide, requires_grad=False)
        if bias is not None:
            self.linear.bias = nn.Parameter(bias.detach(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        stream = self.listen().reshape(*x.shape[:-1], -1)
        extra = (stream @ self.reads.T + self.biases) @ self.mixing.T
        return self.linear(torch.cat([x, extra], dim=-1))


@contextmanager
def planted(lens: LensModel, layer: int, channels: Channels) -> Iterator[LensModel]:
    """The model with these channels in the MLP of one block, for as long as the context lasts."""
    block = lens.map.blocks[layer]
    assert block.down_proj is not None and block.mid_reader is not None
    ear = _Ear(block.mid_reader)
    wide = _Wide(ear, block.down_proj, channels)
    new = replace(block, down_proj=Linear(f"{block.down_proj.name}.linear", wide.linear, False))
    blocks = tuple(new if i == layer else b for i, b in enumerate(lens.map.blocks))
    with (
        _instead(block.module, block.mid_reader, ear),
        _instead(block.module, block.down_proj.module, wide),
    ):
        model_map = replace(lens.map, blocks=blocks)
        yield LensModel(lens.model, lens.tokenizer, f"{lens.id}, planted", model_map)


@contextmanager
def _instead(root: nn.Module, old: nn.Module, new: nn.Module) -> Iterator[None]:
    """Puts `new` where `old` hangs in `root`."""
    parent, name = next(
        (parent, name)
        for parent in root.modules()
        for name, child in parent.named_children()
        if child is old and parent is not new
    )
    setattr(parent, name, new)
    try:
        yield
    finally:
        setattr(parent, name, old)
