"""The cases of the planted benchmark: where channels are planted, which, and what is audited.

The calibration half and the held-out half share no task, no block and no template. Tiers:

- `i`: nothing but the channels in question writes along their vector;
- `ii`: dormant and faithful channels write the very same vector;
- `iii`: as `i`, with noisier readings, dormant channels that vary, and few pairs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from ..core.geometry import haar
from ..core.site import Site
from .planted import Channels, Plan

ANGLES = (30, 45, 60)
MIXES = (25, 45, 65)
STRENGTH = 3.0


@dataclass(frozen=True)
class Place:
    """A task and a site of it."""

    task: str
    site: Site

    @classmethod
    def of(cls, task: str, site: str) -> Place:
        return cls(task, Site.parse(site))


CALIBRATION = (
    Place.of("pronoun", "L8.mlp_act@NAME"),
    Place.of("pronoun", "L16.mlp_act@END"),
    Place.of("pronoun", "L14.mlp_act@NAME"),
    Place.of("pronoun", "L24.mlp_act@END"),
)
HELD_OUT = (
    Place.of("ioi", "L17.mlp_act@S2"),
    Place.of("agreement", "L22.mlp_act@END"),
    Place.of("agreement", "L12.mlp_act@SUBJ"),
    Place.of("ioi", "L20.mlp_act@END"),
    Place.of("ioi", "L23.mlp_act@END"),
    Place.of("agreement", "L25.mlp_act@END"),
    Place.of("agreement", "L9.mlp_act@SUBJ"),
    Place.of("ioi", "L25.mlp_act@END"),
)


@dataclass(frozen=True)
class Planting:
    """One planted model: `k` is the dimension of the subspaces to audit in it, `pairs` how many
    pairs each split of the task has."""

    tier: str
    plan: Plan
    per_role: int
    k: int
    pairs: int


@dataclass(frozen=True)
class Planted:
    """One subspace to audit. `kind`: faithful, illusory, mixed, sensor, dormant or random; `share`:
    of the written change, how much goes through channels that are not faithful."""

    kind: str
    share: float | None
    basis: Tensor


def plantings(number: int) -> Iterator[Planting]:
    """What is planted at the `number`-th place."""
    k = (1, 2, 4)[number % 3]
    clear = Plan(noise=0.2, drift=0.02, strength=STRENGTH, shared=False, beside=True)
    yield Planting("i", clear, 4 if k > 1 else 2, k, 64)
    yield Planting("i", replace(clear, beside=False), 2, 1, 64)
    yield Planting("iii", replace(clear, noise=0.4, drift=0.2), 2, 1, 32)
    if number % 2 == 0:
        for noise, drift in product((0.0, 0.3, 0.6), (0.02, 0.1, 0.3)):
            yield Planting("ii", replace(clear, noise=noise, drift=drift, shared=True), 2, 1, 64)


def subspaces(planting: Planting, channels: Channels, width: int, seed: int) -> Iterator[Planted]:
    """The subspaces to audit in one planted model; `width` is that of its activation."""
    k = planting.k
    groups = range(planting.per_role // k)

    def blend(degrees: float) -> Tensor:
        first, second = tilted(degrees)
        return first * basis(0, faithful=1.0) + second * basis(1, faithful=1.0)

    def basis(group: int, **weights: float) -> Tensor:
        columns = []
        for channel in range(group * k, group * k + k):
            chosen = {channels.of(role)[channel]: weight for role, weight in weights.items()}
            columns.append(channels.direction(chosen, width))
        return torch.stack(columns, dim=1)

    def tilted(degrees: float) -> tuple[float, float]:
        return math.cos(math.radians(degrees)), math.sin(math.radians(degrees))

    if planting.plan.beside:
        for group in groups:
            yield Planted("faithful", 0.0, basis(group, faithful=1.0))
        for degrees in ANGLES if len(groups) > 1 and planting.tier != "ii" else ():
            yield Planted("faithful", 0.0, blend(degrees))
    if planting.tier == "ii":
        sensor, dormant = tilted(45)
        yield Planted("illusory", 1.0, basis(0, sensor=sensor, dormant=dormant))
        return
    for number, degrees in enumerate((*ANGLES, 45)):
        sensor, dormant = tilted(degrees)
        group = number // len(ANGLES) % len(groups)
        yield Planted("illusory", 1.0, basis(group, sensor=sensor, dormant=dormant))
    if planting.plan.beside:
        for degrees in MIXES:
            faithful, other = tilted(degrees)
            other /= math.sqrt(2)
            mixed = basis(0, faithful=faithful, sensor=other, dormant=other)
            yield Planted("mixed", other / (faithful + other), mixed)
    yield Planted("sensor", None, basis(0, sensor=1.0))
    yield Planted("dormant", None, basis(0, dormant=1.0))
    generator = torch.Generator().manual_seed(seed)
    yield Planted("random", None, haar(width, k, 1, generator)[0])
