"""Runs the controls of one audit: plants, audits blind, and says what the audit's verdict is worth.

The unit is the planted model. In each one a faithful subspace, an illusion and a mixture are judged
by the rule, the pairs and the cuts by which the user's own subspace was judged.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from ...core.errors import TaskError
from ...core.progress import bar
from ...core.statistics import exact_proportion, within_class_share
from ...engine.patches import SubspacePatch
from ...measure.planting import UNPLANTABLE, Channels, can_be_planted, planted_task
from ..evidence import Case, Setting
from ..judging import Blind, judge_blind
from ..record import Controls, Spiked, VerdictName
from ..verdict import SMALLEST_FLDD
from .bed import KEPT, Bed
from .spikes import Plan, Spike, channels_of, spikes
from .words import PAIRS, USED

ENOUGH = 12
"""Spikes of either kind that do enough to be judged, which a calibration takes at least."""
TRIED = 24
"""Plans that are drawn, of which as many are planted as that takes."""
ACTIVE = 1 / 5
"""A sensor that alone does more than this share of what it does with a dormant is none."""
MOST_DIMENSIONS = 8
SPREAD = 1.5
"""Spikes are drawn from what is so many times less to so many times more than the audited one."""
LEAST_WITHIN = 0.01
"""Spikes vary at least this share within the classes."""
JUDGED = ("faithful", "illusory")
AUDITED = (*JUDGED, "mixed")
MOST_WRONG = 1
LEAST_RATIO = 3.0
"""A verdict is borne out where at most `MOST_WRONG` spikes of the other kind got it, and it is so
many times likelier for its own."""
SEEN = 0.8
LEAST_SEEN = 3
TOLD = ("illusory", "mixed")


@dataclass(frozen=True)
class Planted:
    """One planted model, ready to be audited."""

    plan: Plan
    setting: Setting
    spikes: tuple[Spike, ...]

    def judged(self, spike: Spike, pairs: int | None = None) -> Blind:
        """A spike judged without a hint of what it is, on the first `pairs` (`judge_blind`)."""
        setting = self.setting if pairs is None else self.setting.subset(slice(pairs))
        return judge_blind(setting, setting.subspace(spike.basis, "planted"))


def planted_models(
    setting: Setting, bed: Bed, plans: Sequence[Plan], kinds: tuple[str, ...], seed: int
) -> Iterator[Planted]:
    """Each plan planted at the site of a setting, but for those that find no room there, those in
    which the model does not do the task any more, and those whose sensors turn out to act."""
    site, beside = setting.replay.site, setting.replay.writer is not None
    clean = float(setting.replay.clean.logit_diff.mean())
    for plan, channels, _ in with_room(bed, plans, seed, beside=beside):
        captures = planted_task(setting.captures, site, channels)
        own = setting.planted(captures)
        if float(own.replay.clean.logit_diff.mean()) < KEPT * clean:
            continue
        both = spikes(plan, channels, beside=beside, kinds=("sensor", "illusory"))
        if plan.inert and _sensors_act(own, both):
            continue
        yield Planted(plan, own, tuple(spikes(plan, channels, beside=beside, kinds=kinds)))


def with_room(
    bed: Bed, plans: Sequence[Plan], seed: int, *, beside: bool
) -> Iterator[tuple[Plan, Channels, torch.Generator]]:
    """The channels of each plan, with the generator that drew them, but for those that find no room
    (`channels_of`)."""
    for number, plan in enumerate(plans):
        generator = torch.Generator().manual_seed(1000 * seed + number)
        try:
            channels = channels_of(bed, plan, generator, beside=beside)
        except TaskError:
            continue
        yield plan, channels, generator


def _sensors_act(setting: Setting, both: Iterable[Spike]) -> bool:
    """Whether the sensors alone move the answer: the gradients of few prompts had said that it does
    not react to what they write. `both`: the sensors, and the illusions that read them."""
    patches = {spike.kind: SubspacePatch(spike.basis) for spike in both}
    drops = {kind: effect.drop.mean() for kind, effect in setting.replay.effects(patches).items()}
    return abs(drops["sensor"]) > ACTIVE * abs(drops["illusory"])


def controls(case: Case, label: VerdictName, seed: int = 0) -> Controls:
    """The error rate of the audit at the site of one subspace that got the verdict `label`, for
    spikes like it: as many dimensions, an effect and a within-class share like its own."""
    lacking, z = _lacking(case), case.train.z
    if lacking or z is None:
        return Controls.without(lacking)
    fldd = case.effects["subspace"].fldd.value or 0.0
    within = within_class_share(case.train.x @ case.basis, z)
    setting = smaller(case.setting)
    beside = setting.replay.writer is not None
    generator = torch.Generator().manual_seed(seed)
    plans = [
        Plan.drawn(
            generator,
            k=case.subspace.dim,
            fldd=(fldd / SPREAD, fldd * SPREAD),
            within=(between(within / SPREAD), between(within * SPREAD)),
            beside=beside,
        )
        for _ in range(TRIED)
    ]
    bed = Bed.of(setting.captures.train, case.site)
    planted = planted_models(setting, bed, plans, AUDITED, seed)
    asked = (
        [(spike.kind, partial(_audited, m, spike, n)) for spike in m.spikes]
        for n, m in enumerate(planted)
    )
    return summed(until_enough(asked, str(case.site)), label, fldd)


def until_enough(
    models: Iterable[Iterable[tuple[str, Callable[[], Spiked]]]], site: str
) -> list[Spiked]:
    """The spikes of one planted model after the other, each by its kind and as a call that audits
    it, until `ENOUGH` of either kind do enough to be judged. Where one kind alone is lacking no
    other is audited."""
    rows: list[Spiked] = []
    what, lacking = f"controls at {site}", set(JUDGED)
    with bar(what, ENOUGH) as told:
        for spikes in models:
            alone = len(lacking) == 1
            rows += [audited() for kind, audited in spikes if kind in lacking or not alone]
            labels = dict(zip(JUDGED, _labels(rows), strict=True))
            lacking = {kind for kind, known in labels.items() if len(known) < ENOUGH}
            told(min(map(len, labels.values())), what)
            if not lacking:
                break
    return rows


def _labels(rows: Iterable[Spiked]) -> tuple[list[str], list[str]]:
    """How the faithful and how the illusory spikes that do enough were judged."""
    faithful, illusory = (
        [row.label for row in rows if row.kind == kind and _does_enough(row)] for kind in JUDGED
    )
    return faithful, illusory


def _does_enough(row: Spiked) -> bool:
    return row.fldd is not None and row.fldd >= SMALLEST_FLDD


def _lacking(case: Case) -> str:
    """Why no spikes like the subspace can be planted; nothing where they can."""
    if case.train.z is None or case.test.z is None:
        return "the pairs carry no z"
    if case.train.two is None or case.test.two is None:
        return f"z has {len(case.setting.classes)} values, and channels are planted for two"
    if not can_be_planted(case.lens, case.site):
        return UNPLANTABLE
    if case.subspace.dim > MOST_DIMENSIONS:
        return f"spikes have at most {MOST_DIMENSIONS} dimensions"
    if (case.effects["subspace"].fldd.value or 0.0) < SMALLEST_FLDD:
        return "the subspace does too little to be judged"
    return ""


def between(share: float) -> float:
    """A within-class share that spikes can have."""
    return min(0.9, max(LEAST_WITHIN, share))


def smaller(setting: Setting) -> Setting:
    """The first `PAIRS` pairs of the splits to fit and to judge on."""
    captures, first = setting.captures, setting.chosen[:PAIRS]
    train = captures.train.subset(torch.arange(min(PAIRS, len(captures.train.pairs))))
    test, swapped = captures.test.subset(first), captures.reversed.subset(first)
    captures = replace(captures, train=train, test=test, reversed=swapped, held_out=None)
    return Setting(
        captures=captures,
        replay=test.at(setting.replay.site),
        chosen=torch.arange(len(first)),
        kernel=setting.kernel,
    )


def _audited(model: Planted, spike: Spike, number: int) -> Spiked:
    judged = model.judged(spike)
    return Spiked(
        model=number,
        kind=spike.kind,
        share=spike.share,
        fldd=judged.case.effects["subspace"].fldd.value,
        label=judged.verdict.label,
    )


def summed(rows: Sequence[Spiked], label: VerdictName, fldd: float) -> Controls:
    """What the verdict `label` on a subspace of this `fldd` is worth, by how spikes were judged."""
    judged = [row for row in rows if _does_enough(row)]
    faithful, illusory = _labels(rows)

    def said(labels: Sequence[str], what: Collection[str]) -> int:
        return sum(each in what for each in labels)

    own = USED if label in USED else (label,)
    truth = {"faithful": faithful, "partial": faithful, "illusory": illusory}.get(label)
    sizes = [row.fldd for row in judged if row.kind in JUDGED and row.fldd]
    outside = ""
    if min(len(faithful), len(illusory)) < ENOUGH:
        outside = (
            f"only {len(faithful)} planted channels and {len(illusory)} planted illusions do "
            f"enough to be judged, {ENOUGH} of either are needed"
        )
    elif not min(sizes) <= fldd <= max(sizes):
        outside = (
            f"its FLDD, {fldd:.2f}, is none of the spikes' ({min(sizes):.2f} to {max(sizes):.2f})"
        )
    ratio = borne_out = None
    if truth is not None and faithful and illusory:
        other = illusory if truth is faithful else faithful
        right, wrong = said(truth, own), said(other, own)
        ratio = ((right + 0.5) / (len(truth) + 1)) / ((wrong + 0.5) / (len(other) + 1))
        if not outside or wrong > MOST_WRONG:
            borne_out = wrong <= MOST_WRONG and ratio >= LEAST_RATIO
    return Controls(
        spikes=list(rows),
        void=outside,
        false_faithful=exact_proportion(said(illusory, USED), len(illusory)),
        false_illusory=exact_proportion(said(faithful, ("illusory",)), len(faithful)),
        right_faithful=exact_proportion(said(faithful, USED), len(faithful)),
        right_illusory=exact_proportion(said(illusory, ("illusory",)), len(illusory)),
        likelihood_ratio=ratio,
        sees=_sees(judged),
        borne_out=borne_out,
    )


def _sees(rows: Sequence[Spiked]) -> float | None:
    """The smallest share of illusion from which on `SEEN` of the mixed spikes with as much of it
    are called illusory or mixed; None where there is no such share."""
    mixed = [row for row in rows if row.kind == "mixed" and row.share]
    told = sorted(((row.share, row.label in TOLD) for row in mixed), reverse=True)
    smallest = None
    for count in range(LEAST_SEEN, len(told) + 1):
        if sum(seen for _, seen in told[:count]) >= SEEN * count:
            smallest = told[count - 1][0]
    return smallest
