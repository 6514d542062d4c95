"""Spike-in controls of an addition: vectors of known truth, planted at its site and judged blind.

In each planted model a *channel* follows z and writes what moves the answer, a *sensor* follows z
and nobody reads it, a *dormant* does not follow z and writes what moves the answer, off what the
site writes when z changes. To add what a channel writes between the classes is faithful; to add as
much along the dormant as does the same is an illusion; a blend of both is mixed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ...core.geometry import orthonormal, unit
from ...core.statistics import within_class_share
from ...fit.closed_form import between_means, by_class
from ...measure.planting import UNPLANTABLE, Channels, can_be_planted, planted_task
from ..controls.bed import KEPT, WEAK, Bed
from ..controls.run import SPREAD, TRIED, between, smaller, summed, until_enough, with_room
from ..controls.spikes import Plan
from ..evidence.case import Setting
from ..record import Controls, Spiked, VerdictName
from ..verdict import SMALLEST_FLDD
from .case import Addition
from .judging import judge_blind

MIXES = (0.25, 0.5, 0.75)
"""Shares of the dormant's part in a mixture."""


@dataclass(frozen=True)
class Spike:
    """One vector to audit, as it is (α = 1). `kind`: faithful, illusory, mixed or sensor; `share`:
    of its effect, how much goes where nature does not move with z."""

    kind: str
    share: float | None
    vector: Tensor


def controls(case: Addition, label: VerdictName, seed: int = 0) -> Controls:
    """The error rate of the audit at the site of one addition that got the verdict `label`, for
    vectors like it: with an effect and a within-class share like its own."""
    lacking = _lacking(case)
    if lacking or case.z_fitted is None:
        return Controls.without(lacking)
    fldd = case.effects["add"].fldd.value or 0.0
    within = within_class_share(case.along(case.setting.train.x)[:, None], case.z_fitted)
    setting = smaller(case.setting)
    beside = setting.replay.writer is not None
    generator = torch.Generator().manual_seed(seed)
    drawn = (
        Plan.drawn(
            generator, k=1, fldd=(fldd / SPREAD, fldd * SPREAD),
            within=(between(within / SPREAD), between(within * SPREAD)), beside=beside,
        )
        for _ in range(TRIED)
    )  # fmt: skip
    plans = [plannable(plan) for plan in drawn]
    asked = (
        [(spike.kind, partial(_audited, own, spike, number)) for spike in spikes]
        for number, (own, spikes) in enumerate(planted(setting, plans, seed))
    )
    return summed(until_enough(asked, str(case.site)), label, fldd)


def plannable(plan: Plan) -> Plan:
    """The plan without units that take back what the channel writes, which whoever adds a vector
    cannot tell from it."""
    return replace(plan, cancels="")


def _lacking(case: Addition) -> str:
    """Why no vectors like this one can be planted; nothing where they can."""
    if case.z_fitted is None:
        return "the pairs carry no z of two values"
    if not can_be_planted(case.lens, case.site):
        return UNPLANTABLE
    if (case.effects["add"].fldd.value or 0.0) < SMALLEST_FLDD:
        return "the vector does too little to be judged"
    return ""


def planted(
    setting: Setting, plans: list[Plan], seed: int
) -> Iterator[tuple[Setting, tuple[Spike, ...]]]:
    """Each plan planted at the site of a setting, with the vectors to audit there, but for those
    that find no room there and those in which the model does not do the task any more."""
    site, beside = setting.replay.site, setting.replay.writer is not None
    bed = Bed.of(setting.captures.train, site)
    clean = float(setting.replay.clean.logit_diff.mean())
    for plan, channels, generator in with_room(bed, plans, seed, beside=beside):
        if beside:
            channels = _apart(setting, bed, channels)
        own = setting.planted(planted_task(setting.captures, site, channels))
        if float(own.replay.clean.logit_diff.mean()) >= KEPT * clean:
            yield own, _spikes(bed, plan, channels, generator, beside=beside)


def _apart(setting: Setting, bed: Bed, channels: Channels) -> Channels:
    """The same with a dormant that writes nothing of what the component, channels and all, writes
    between the classes where the answer reacts."""
    x, z = by_class(setting.fitted)
    writer = setting.replay.writer
    change = channels.writes @ (2 * channels.follow)
    if writer is not None:
        change = change + writer.cpu().double() @ between_means(x.cpu().double(), z)
    acting = bed.acting @ bed.acting.T
    taken = orthonormal(unit((acting @ change)[:, None]))
    dormant = channels.writes[:, 2]
    for direction in (dormant, acting @ bed.pull):
        rest = direction - taken @ (taken.T @ direction)
        if rest @ bed.pull > WEAK * rest.norm() * bed.pull.norm():
            break
    writes = channels.writes.clone()
    writes[:, 2] = rest / rest.norm().clamp(min=1e-30) * dormant.norm()
    return replace(channels, writes=writes)


def _spikes(
    bed: Bed, plan: Plan, channels: Channels, generator: torch.Generator, *, beside: bool
) -> tuple[Spike, ...]:
    column = channels.writes[:, 2].norm()
    woken = 2 * bed.length(channels.writes[:, 2] / column, plan.fldd) / float(column)
    apart = 2 * channels.follow
    used, sensor, dormant = (
        channels.direction({role: size}, beside)
        for role, size in enumerate((float(apart[0]), float(apart[1]), woken))
    )
    mix = MIXES[int(torch.randint(len(MIXES), (1,), generator=generator))]
    return (
        Spike("faithful", 0.0, used),
        Spike("illusory", 1.0, dormant),
        Spike("mixed", mix, (1 - mix) * used + mix * dormant),
        Spike("sensor", None, sensor),
    )


def _audited(setting: Setting, spike: Spike, number: int) -> Spiked:
    verdict, case = judge_blind(setting, spike.vector)
    return Spiked(
        model=number,
        kind=spike.kind,
        share=spike.share,
        fldd=case.effects["add"].fldd.value,
        label=verdict.label,
    )
