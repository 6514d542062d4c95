"""Planted models and the subspaces to audit in each, of which the truth is known.

Each role has k channels, each of which speaks in some prompts. *Channels* follow z and write what
moves the answer; *sensors* follow z and nobody reads them: they write nothing, or what the answer
does not react to; *dormants* do not follow z and write what moves the answer. What reads along a
channel and writes along it is faithful; what reads along a sensor and writes along a dormant is an
illusion; what does both is mixed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ...core.errors import TaskError
from ...core.geometry import orthonormal
from ...measure.planting import Channels
from .bed import Bed

WRITES = ("gradient", "half", "classes")
LEAST_OWN = 1e-6
"""What a direction has that no other one has, below this share, is rounding."""
LEAST_LEFT = 0.01
"""Where less than this share of a direction lies where the answer does not react, it is taken as it
is."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to plant. `k`: channels of each role. `fldd`: what the subspaces shall do. `within`:
    share of the variance of a reading of z that lies within the classes. `shared`: correlation of a
    sensor's noise with its channel's. `drift`: standard deviation of dormants, in units of half the
    distance of the classes along the sensor. `angle`: of the illusion, 0 all sensor, in degrees; of
    the mixture, 0 all channel, `mix`. `column`: how long a unit's column is, in units of a typical
    one. `write`: what channels write, see `Bed.written`. `wakes`: what a dormant writes; nothing
    that the site writes of z, unless it is what its `channel` does, or the `site` as it was.
    `inert`: sensors write what the answer does not react to, else nothing. `parallel`: so many
    channels write the same, of which one is audited. `cancels`: another unit takes back the `noise`
    of the channels, or most of their `feature`."""

    k: int
    fldd: float
    within: float
    shared: float
    drift: float
    angle: float
    mix: float
    column: float
    write: str
    wakes: str = ""
    inert: bool = False
    parallel: int = 1
    cancels: str = ""

    @classmethod
    def drawn(
        cls,
        generator: torch.Generator,
        *,
        k: int,
        fldd: tuple[float, float],
        within: tuple[float, float],
        beside: bool,
    ) -> Plan:
        """One at random, with `fldd` and `within` log-uniform in these ranges; `beside`: the
        channels are units beside those of a component, where more can go wrong."""

        def uniform(low: float, high: float) -> float:
            return low + (high - low) * float(torch.rand(1, generator=generator))

        def log_uniform(low: float, high: float) -> float:
            return math.exp(uniform(math.log(low), math.log(high)))

        def one_of(*choices):
            return choices[int(torch.randint(len(choices), (1,), generator=generator))]

        return cls(
            k=k,
            fldd=log_uniform(*fldd),
            within=log_uniform(*within),
            shared=uniform(0, 1),
            drift=log_uniform(0.01, 1),
            angle=uniform(30, 60),
            mix=one_of(25, 45, 65),
            column=log_uniform(1, 3),
            write=one_of(*WRITES),
            inert=beside and one_of(True, False, False),
            parallel=one_of(1, 1, 2, 4) if beside and k == 1 else 1,
            cancels=one_of("", "", "", "", "", "", "noise", "feature") if beside else "",
        )


@dataclass(frozen=True)
class Spike:
    """One subspace to audit. `kind`: faithful, illusory, mixed, sensor, dormant, or *halves*, which
    has an illusion beside every faithful dimension; `share`: of what it writes, how much does not
    go through what the model uses."""

    kind: str
    share: float | None
    basis: Tensor


KINDS = ("faithful", "illusory", "mixed", "sensor", "dormant")


def channels_of(bed: Bed, plan: Plan, generator: torch.Generator, *, beside: bool) -> Channels:
    """Channels, sensors, dormants, k each; then what is parallel to the first channel and what
    cancels. Raises `TaskError` where a stream has no room for so many directions that differ."""
    k, dim = plan.k, len(bed.centre)
    noise = (plan.within / (1 - plan.within)) ** 0.5
    own = [bed.noise(generator) for _ in range(3 * k)]
    alike, other = plan.shared, (1 - plan.shared**2) ** 0.5
    ours, theirs = bed.halves(generator) if beside else (bed.acting, bed.acting)
    uses = [bed.written(plan.write if j == 0 else "half", ours, generator) for j in range(k)]
    wakes = [bed.dormant(theirs, generator) for _ in range(k)]
    if plan.wakes:
        wakes = uses if plan.wakes == "channel" else [bed.nature / bed.nature.norm()] * k
    silent = [bed.unread(generator) if plan.inert else torch.zeros_like(each) for each in uses]
    if not beside:
        uses, wakes, silent = _orthogonal(bed, uses, wakes, own[k : 2 * k])
    column = bed.column * plan.column if beside else 1.0
    sine = math.sin(math.radians(2 * plan.angle)) / 2
    follow, reads, writes = [], [], []

    def add(amount: float, of_z: float, of_noise: Tensor, write: Tensor) -> None:
        follow.append(amount * of_z)
        reads.append(amount * of_noise)
        writes.append(column * write)

    sizes = [bed.length(each, plan.fldd, replacing=not beside) / column for each in uses]
    woken = [bed.length(each, plan.fldd) / column / sine for each in wakes]
    for j in range(k):
        add(sizes[j], 1.0, noise * own[j], uses[j])
    for j in range(k):
        mixed = alike * own[j] + other * own[k + j]
        add(woken[j], 1.0, noise * mixed, silent[j])
    for j in range(k):
        add(woken[j] * plan.drift, 0.0, own[2 * k + j], wakes[j])
    for _ in range(plan.parallel - 1):
        add(sizes[0], 1.0, noise * own[0], uses[0])
    if plan.cancels == "noise":
        add(sizes[0], 0.0, -0.9 * noise * own[0], uses[0])
    elif plan.cancels == "feature":
        add(sizes[0], -0.8, torch.zeros(dim, dtype=torch.float64), uses[0])
    silent_ones = torch.zeros(len(follow), dtype=torch.bool)
    silent_ones[k : 2 * k] = not beside
    groups = torch.zeros(len(follow), dtype=torch.long)
    groups[: 3 * k] = torch.arange(k).repeat(3)
    return Channels(
        follow=torch.tensor(follow, dtype=torch.float64),
        reads=torch.stack(reads),
        centre=bed.centre,
        writes=torch.stack(writes, dim=1),
        silent=silent_ones,
        groups=groups,
    )


def _orthogonal(
    bed: Bed, uses: list[Tensor], wakes: list[Tensor], noises: list[Tensor]
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Directions for channels, dormants and sensors of a stream, orthonormal; sensors lie where the
    stream varies and the answer does not react."""
    k = len(uses)
    deaf = orthonormal(bed.acting)
    rest = [noise - deaf @ (deaf.T @ noise) for noise in noises]
    sensors = [
        left if left.norm() > LEAST_LEFT * noise.norm() else noise
        for left, noise in zip(rest, noises, strict=True)
    ]
    wanted = torch.nn.functional.normalize(torch.stack([*uses, *wakes, *sensors], dim=1), dim=0)
    found, left = torch.linalg.qr(wanted)
    if left.diagonal().abs().min() < LEAST_OWN:
        raise TaskError(f"{k} channels of each role find no directions of their own here")
    columns = (found * wanted.mul(found).sum(dim=0).sign()).T
    return list(columns[:k]), list(columns[k : 2 * k]), list(columns[2 * k :])


def spikes(
    plan: Plan, channels: Channels, *, beside: bool, kinds: tuple[str, ...] = KINDS
) -> Iterator[Spike]:
    """The subspaces to audit in one planted model."""
    k = plan.k

    def basis(channel: float, sensor: float, dormant: float) -> Tensor:
        weights = (channel, sensor, dormant)
        columns = [
            channels.direction({role * k + j: w for role, w in enumerate(weights) if w}, beside)
            for j in range(k)
        ]
        return torch.stack(columns, dim=1)

    cosine, sine = (f(math.radians(plan.angle)) for f in (math.cos, math.sin))
    used, other = (f(math.radians(plan.mix)) for f in (math.cos, math.sin))
    illusory = other * sine
    made = {
        "faithful": (0.0, (1.0, 0.0, 0.0)),
        "illusory": (1.0, (0.0, cosine, sine)),
        "mixed": (illusory / (used + illusory), (used, other * cosine, other * sine)),
        "sensor": (None, (0.0, 1.0, 0.0)),
        "dormant": (None, (0.0, 0.0, 1.0)),
    }
    for kind in kinds:
        if kind == "halves":
            both = torch.cat([basis(*made[half][1]) for half in ("faithful", "illusory")], dim=1)
            yield Spike(kind, 0.5, both)
        else:
            share, weights = made[kind]
            yield Spike(kind, share, basis(*weights))
