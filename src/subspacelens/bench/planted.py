"""Planted truth: a real model whose MLP is widened by channels of which we know what they do.

Each extra channel reads the residual stream linearly at its own column, before the MLP of one
block, and writes a vector to it. There are some of each role:

- *faithful*: reads z, writes a vector that moves the answer; the unpatched model uses it;
- *sensor*: reads z, writes nothing;
- *dormant*: reads something that hardly varies, writes a vector that moves the answer;
- *distractor*: reads something else, writes something else.

A random rotation mixes the channels, so that no neuron is one of them. The base model's weights are
not touched: two modules are put around its own, and taken away again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor, nn

from ..core.errors import SiteError
from ..core.geometry import haar
from ..core.site import Site
from ..engine.capture import Capture
from ..engine.replay import Replay
from ..fit.closed_form import by_class
from ..model.lens import LensModel
from ..model.mapping.values import Linear

DISTRACTORS = 4
NOISE_AXES = 40
EFFECT = 0.6
SIZES = torch.logspace(-1.5, 0.0, 13, dtype=torch.float64)
"""Lengths of what is written, as multiples of the natural difference of the stream."""
ROLES = ("faithful", "sensor", "dormant", "distractor")


@dataclass(frozen=True)
class Channels:
    """Extra channels: values = mixing @ (reads x + biases) for a residual stream x (d_model,);
    `writes` (d_model, p) belong to the values before mixing."""

    reads: Tensor
    biases: Tensor
    writes: Tensor
    mixing: Tensor
    roles: tuple[str, ...]

    def of(self, role: str) -> list[int]:
        return [number for number, name in enumerate(self.roles) if name == role]

    def direction(self, weights: dict[int, float], width: int) -> Tensor:
        """The direction of the widened activation, float64 (width,), in which the unmixed channels
        have these weights; `width` counts all neurons, the added ones last."""
        plain = torch.zeros(len(self.roles), dtype=torch.float64)
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
    """The model with these channels in the MLP of one block, for as long as the context lasts.

    Raises `SiteError` if the block has no MLP that writes by one linear map and reads a residual
    stream of its own.
    """
    block = lens.map.blocks[layer]
    if block.down_proj is None or block.mid_reader is None:
        raise SiteError(f"block {layer} has no MLP that channels could be planted in")
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


@dataclass(frozen=True)
class Plan:
    """What to plant: `noise` is that of each reading of z (its own, beside the readout's error),
    `drift` the natural standard deviation of dormant channels, both as multiples of half the
    distance of the classes; `strength` what all faithful channels write together, as a multiple of
    one that lowers the logit difference by `EFFECT` of itself. `shared`: dormant and faithful
    channels write the same vector. `beside`: there are faithful channels at all."""

    noise: float
    drift: float
    strength: float
    shared: bool
    beside: bool


@dataclass(frozen=True)
class Bed:
    """What channels of one site are made of, found on prompts that no audit sees: the mean stream,
    the linear readout of z, axes of unit standard deviation within the classes and how far apart
    the classes lie along them, and two vectors that move the answer."""

    centre: Tensor
    reading: Tensor
    axes: Tensor
    between: Tensor
    writes: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, readout: Capture, site: Site) -> Bed:
        """`readout` must hold the `resid_mid` and `resid_post` of the block of `site`."""
        x, z = by_class(readout.at(replace(site, stream="resid_mid")))
        x, sign = x.cpu().double(), 2 * z.double() - 1
        centre = x.mean(dim=0)
        x = x - centre
        means = {side: x[sign == side].mean(dim=0) for side in (-1.0, 1.0)}
        within = x - torch.stack([means[float(side)] for side in sign])
        _, s, vh = torch.linalg.svd(within, full_matrices=False)
        axes = vh[:NOISE_AXES] / s[:NOISE_AXES, None] * len(x) ** 0.5
        return cls(
            centre,
            _reading(x, sign),
            axes,
            axes @ (means[1.0] - means[-1.0]),
            _writes(readout.at(replace(site, stream="resid_post"))),
        )

    def noises(self, count: int, generator: torch.Generator) -> Tensor:
        """Readings (count, d) of unit standard deviation that do not tell the classes apart."""
        mix = torch.randn(count, len(self.axes), generator=generator, dtype=torch.float64)
        along = (mix @ self.between)[:, None] * self.between / (self.between @ self.between)
        mix = mix - along
        return (mix / mix.norm(dim=1, keepdim=True)) @ self.axes


def make_channels(bed: Bed, plan: Plan, per_role: int, seed: int) -> Channels:
    """`per_role` channels of each role but the distractors, of which there are `DISTRACTORS`."""
    generator = torch.Generator().manual_seed(seed)
    noises = bed.noises(3 * per_role + DISTRACTORS, generator)
    first, second = bed.writes if seed % 2 else bed.writes[::-1]
    if plan.shared:
        second = first
    each = plan.strength / per_role
    reads, writes, roles = [], [], []
    for role in ROLES:
        for _ in range(DISTRACTORS if role == "distractor" else per_role):
            noise = noises[len(reads)]
            if role in ("faithful", "sensor"):
                reads.append(bed.reading + plan.noise * noise)
            else:
                reads.append(plan.drift * noise if role == "dormant" else noise)
            if role == "distractor":
                other = haar(len(first), 1, 1, generator)[0, :, 0]
                writes.append(each / plan.strength * other * first.norm())
            elif role == "dormant":
                writes.append(each * second)
            else:
                writes.append(each * first * (role == "faithful" and plan.beside))
            roles.append(role)
    stacked = torch.stack(reads)
    mixing, _ = torch.linalg.qr(
        torch.randn(len(reads), len(reads), generator=generator, dtype=torch.float64)
    )
    return Channels(
        stacked, -stacked @ bed.centre, torch.stack(writes, dim=1), mixing, tuple(roles)
    )


def _reading(x: Tensor, sign: Tensor) -> Tensor:
    """The linear readout w (d,) of z with class means of wᵀx at -1 and 1."""
    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    w = torch.from_numpy(model.fit(x.numpy(), sign.numpy()).coef_[0])
    apart = (x[sign > 0].mean(dim=0) - x[sign < 0].mean(dim=0)) @ w
    return 2 * w / apart


def _writes(replay: Replay) -> tuple[Tensor, Tensor]:
    """Two orthogonal vectors (d_model,), float64: the mean gradient of the answer with the sign of
    z, on either half of the stream's dimensions. Each is as long as it takes to lower the logit
    difference by `EFFECT` of itself, when a channel that writes it changes from z to the other."""
    signs = [2.0 * pair.z[0] - 1 for pair in replay.pairs]  # type: ignore[index]
    sign = torch.tensor(signs, dtype=torch.float64)
    pull = (sign[:, None] * replay.gradients().cpu().double()).mean(dim=0)
    half = torch.arange(len(pull)) % 2 == 0
    size = replay.difference.cpu().double().norm(dim=1).mean()
    clean = replay.clean.logit_diff.mean()

    def scaled(direction: Tensor) -> Tensor:
        moves = SIZES[:, None] * size * direction / direction.norm()
        deltas = -2 * sign[None, :, None] * moves[:, None]
        left = replay.delta_outcomes(deltas.to(replay.base)).logit_diff.mean(dim=1)
        return moves[int((1 - left / clean - EFFECT).abs().argmin())]

    return scaled(pull * half), scaled(pull * ~half)
