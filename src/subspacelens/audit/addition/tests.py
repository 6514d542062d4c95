"""The tests of an addition: each a question with a statistic, an interval, a control, a reading."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from ...core.errors import LensError
from ...core.geometry import haar
from ...core.places import Place, Span
from ...core.records import Estimate
from ...core.statistics import (
    auroc_interval,
    mean,
    proportion,
    ratio,
    within_class_share,
    within_classes,
)
from ...engine.joint import joint_replay
from ...engine.patches import Add
from ...measure.readers import attribute_readers
from ..evidence.case import NO_EFFECT, SMALLEST_NATS, test_of, void
from ..evidence.downstream import pathway
from ..evidence.elsewhere import TEXT_CONTROLS, divergences, other_text
from ..evidence.natural import part_of
from ..evidence.nature import LEAST_WITHIN
from ..evidence.path import PAIRS, through
from ..record import Test
from .case import Addition

NO_Z = "the pairs carry no z of two values"


def full_component(case: Addition) -> Test:
    """Does the whole component do what is added to it? E(full) / E(add)."""
    share = case.share(case.effects["full"].drop)
    if share.value is None:
        return void(NO_EFFECT)
    return test_of(share, f"the whole component does {share.value:.0%} of what is added")


def natural(case: Addition) -> Test:
    """How much of the effect would nature have made? E(c m) / E(add), where c m is as much of the
    difference of the class means as does what is added, along the directions that act."""

    def reading(share: float) -> str:
        amount = 0.0 if case.nature is None else case.nature.amount
        return (
            f"{max(0.0, amount):.2f} times the difference of the classes, which is as much where "
            f"the answer reacts, has {share:.0%} of the effect"
        )

    return _part(case, "natural", reading)


def beyond(case: Addition) -> Test:
    """How much of the effect is left without the natural change? E(δ - c m) / E(add)."""
    return _part(
        case, "beyond", lambda share: f"without it, what is added has {share:.0%} of the effect"
    )


def _part(case: Addition, name: str, reading: Callable[[float], str]) -> Test:
    def rounded(share: float) -> str:
        return reading(round(share, 4) + 0.0)  # No minus before a zero.

    if name not in case.taken_apart:
        return void(NO_Z)
    share, along = (case.share(case.taken_apart[part]) for part in (name, "along"))
    return part_of(share, along, rounded, "what is added does")


def reach(case: Addition) -> Test:
    """How far does nature go along what is added? Mean change along the part of W v to which the
    answer reacts when z does, over that of the addition."""
    values = case.along_acting(case.replay.difference.cpu().double())
    if values is None:
        return void(NO_Z)
    share = mean(case.sign * values / case.alpha, case.units)
    return test_of(
        share,
        f"when z changes, nature moves {share.value:.0%} as far along what acts of it as is added",
    )


def natural_range(case: Addition) -> Test:
    """Does the patched reading lie where natural ones do? Share along W v between the least and the
    most of the central 99 % of either class. Control: of unpatched prompts."""
    share = proportion(case.inside(case.alpha).astype(float), case.units)
    low, high = case.range
    return test_of(
        share,
        f"{share.value:.0%} of the patched readings lie no further than natural ones, which go "
        f"from {low / case.alpha:.2f} to {high / case.alpha:.2f} times the dose; {case.usual:.0%} "
        "of unpatched ones do",
        case.usual,
    )


def separation(case: Addition) -> Test:
    """Does nature move along it with z? AUROC of z along W v, held out, 1 where it is larger at
    z = 1; correlational, never enough alone."""
    if case.z is None:
        return void(NO_Z)
    scores = case.along(case.setting.test.x).numpy() * np.sign(case.alpha)
    apart = auroc_interval(scores, case.z, case.units.of_prompts)
    turned = "" if apart.high is None or apart.high > 0.5 else ": it points to z = 0"
    return test_of(
        apart, f"along what is written the classes lie apart with AUROC {apart.value:.2f}{turned}",
        0.5,
    )  # fmt: skip


def behaviour(case: Addition) -> Test:
    """Does behaviour follow it in nature, at equal z? Slope of the clean logit difference, turned
    to z, on the natural reading along W v, pooled within the classes of the base prompts, over that
    of the addition, so that 1 is what adding it does."""
    if case.z is None:
        return void(NO_Z)
    per_unit = float(case.drop.mean()) / case.alpha
    if abs(case.drop.mean()) < SMALLEST_NATS:
        return void(NO_EFFECT)
    of_base = case.z[: len(case.replay.pairs)]
    readings = case.unpatched[:, None]
    share = within_class_share(readings, of_base)
    if share < LEAST_WITHIN:
        return void(f"only {share:.1%} of the reading's variance lies within the classes")
    towards = -case.sign * torch.from_numpy(case.clean)
    moved = within_classes(torch.stack([readings[:, 0], towards], dim=1), of_base)
    slope = ratio(moved[:, 0] * moved[:, 1], per_unit * moved[:, 0].square(), case.units)
    if slope.value is None:
        return void("the reading does not vary within the classes")
    return test_of(
        slope,
        f"at equal z the answer moves {slope.value:.2f} times as much with the natural reading as "
        f"when it is added ({share:.0%} of the reading's variance is within the classes)",
        0.0,
    )


def chance(case: Addition) -> Test:
    """Is it better than a random vector that writes as much? Share of uniformly random ones, with
    the true one among them, that do at least as much: the p-value of a Monte Carlo test. Control:
    the share that do of vectors drawn from the natural covariance of what is orthogonal to it."""
    uniform, others = case.random["uniform"], case.random["natural"]
    size = abs(case.drop[: len(uniform[0].drop)].mean())
    above, natural_above = (
        sum(abs(effect.drop.mean()) >= size for effect in effects) for effects in (uniform, others)
    )
    p = (1 + above) / (1 + len(uniform))
    return test_of(
        Estimate(value=p),
        f"{above} of {len(uniform)} uniformly random vectors that write as much do as much "
        f"(p = {p:.2g}), and {natural_above} of {len(others)} drawn from the natural covariance of "
        "the rest",
        natural_above / len(others),
    )


def hidden_pathway(case: Addition) -> Test:
    """How much of the effect needs values behind the site that nature does not show?"""
    return pathway(case.captures, case.replay, case.delta.to(case.replay.base), case.drop)


def path(case: Addition) -> Test:
    """Through which readers does it act? Effect left with the three strongest attention readers
    held at their clean values, over E(add)."""
    replay, delta = case.replay.subset(slice(PAIRS)), case.delta[:PAIRS].to(case.replay.base)
    return through(replay, delta, attribute_readers(replay, delta), case.drop)


def everywhere(case: Addition) -> Test:
    """Does it do the same when it is added at every token, as steering does? E(add at all tokens
    of the base prompt) / E(add)."""
    replay = case.replay.subset(slice(PAIRS))
    drop = case.drop[: len(replay.pairs)]
    if abs(drop.mean()) < SMALLEST_NATS:
        return void(NO_EFFECT)
    patch = Add(case.vector, case.alpha, case.sign[: len(drop)])
    everywhere = joint_replay(
        case.lens, replay.pairs, [Place(case.site, Span.ALL)], memory=replay.memory, sources=False
    )
    effect = everywhere.patching([patch]).together()
    share = ratio(effect.drop, drop, replay.units)
    return test_of(
        share, f"added at every token of the prompt it does {share.value:.2f} times as much"
    )


def unrelated_text(case: Addition) -> Test:
    """Does it move text that the task has nothing to do with? KL divergence in nats of the
    next-token distribution when it is added at the last token of pieces of CPython's reference
    text, over that of random vectors that write as much."""
    if case.lens.tokenizer is None:
        return void("the model has no tokenizer to read other text with")
    try:
        replay = other_text(case.captures, case.replay, case.seed)
    except LensError as error:
        return void(f"no other text could be read: {error}")
    generator = torch.Generator().manual_seed(case.seed + 1)
    vectors = haar(len(case.vector), 1, TEXT_CONTROLS, generator)[..., 0]
    random = [Add(vector) for vector in case.matched(vectors)]
    ours, *others = divergences(replay, [Add(case.vector, case.alpha), *random])
    usual = np.mean(others, axis=0)
    share = ratio(ours, usual, replay.pairs.units)
    if share.value is None:
        return void("random vectors that write as much change nothing in other text")
    return test_of(
        share,
        f"in text that has nothing to do with the task it moves the prediction by "
        f"{ours.mean():.2g} nats, random vectors that write as much by {usual.mean():.2g}",
        1.0,
    )


TESTS: dict[str, tuple[str, Callable[[Addition], Test]]] = {
    "full_component": ("fast", full_component),
    "natural": ("fast", natural),
    "beyond": ("fast", beyond),
    "reach": ("fast", reach),
    "natural_range": ("fast", natural_range),
    "chance": ("fast", chance),
    "separation": ("fast", separation),
    "behaviour": ("standard", behaviour),
    "hidden_pathway": ("standard", hidden_pathway),
    "path": ("standard", path),
    "everywhere": ("standard", everywhere),
    "unrelated_text": ("standard", unrelated_text),
}
