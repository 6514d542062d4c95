"""Tests that take the effect apart: what nature would have written, and what is beyond it."""

from __future__ import annotations

from collections.abc import Callable

from ...core.records import Estimate
from ...core.statistics import ratio
from ..record import Test
from .case import NO_EFFECT, Case, test_of, void

NO_CLASSES = "the pairs carry no z, only one value, or one that no training pair has"
ADEQUATE = 2 / 3
"""What is written where the gradients point has at least this share of the effect, or they say
nothing of what acts."""


def natural(case: Case) -> Test:
    """How much of the effect would nature have made? E(c m) / E(V), where c m is as much of the
    difference of the class means as does, along the directions that act, what the patch does there
    (`measure.nature`)."""
    return _part(
        case,
        "natural",
        lambda share: f"as much of the natural change as it takes has {share:.0%} of the effect",
    )


def beyond(case: Case) -> Test:
    """How much of the effect is left without the natural change? E(δ - c m) / E(V)."""
    return _part(
        case,
        "beyond",
        lambda share: f"without the natural change, what is written has {share:.0%} of the effect",
    )


def acting(case: Case) -> Test:
    """How much remains when V reads only what acts? E(V Vᵀ P_A Δ) / E(V)."""

    def reading(share: float) -> str:
        count = 0 if case.nature is None else case.nature.acting.shape[1]
        return (
            f"reading only along the {count} of {case.basis.shape[0]} dimensions to which the "
            f"answer reacts, it keeps {share:.0%}"
        )

    return _part(case, "acting", reading)


def comovement(case: Case) -> Test:
    """Does nature move with z along what V writes? What base and source differ by there, over what
    the patch writes, both as far as the answer reacts and along what V writes of the natural
    change m: Σ ⟨P_A V Vᵀ m, Δ⟩ / Σ ⟨P_A V Vᵀ m, δ⟩ over pairs.

    What a feature writes is part of the natural change, however small a part of all that acts: 1,
    or more where others write the same. Along a dormant direction nothing but the patch writes."""
    if case.nature is None:
        return void(NO_CLASSES)
    difference, acting = case.replay.difference.cpu().double(), case.nature.acting
    writes = case.basis @ (case.basis.T @ acting)
    along = case.nature.change(case.replay.pairs) @ writes
    natural, written = difference @ acting, difference @ writes
    slope = ratio((along * natural).sum(dim=1), (along * written).sum(dim=1), case.units)
    if slope.value is None:
        return void("nothing is written to which the answer reacts")
    return test_of(
        slope,
        f"along what is written, as far as the answer reacts, nature moves {slope.value:.2f} where "
        "the patch moves 1",
    )


def _part(case: Case, name: str, reading: Callable[[float], str]) -> Test:
    if name not in case.taken_apart:
        return void(NO_CLASSES)
    share, along = (case.share(case.taken_apart[part]) for part in (name, "along"))
    return part_of(share, along, reading, "what is written does")


def part_of(
    share: Estimate, along: Estimate, reading: Callable[[float], str], all_does: str
) -> Test:
    """The `share` of the effect that a part of a write has, in the words of `reading`; void where
    the gradients do not say what acts: what lies where they point (`all_does`) has, `along`, too
    little of the effect."""
    if share.value is None or along.value is None:
        return void(NO_EFFECT)
    if along.value < ADEQUATE:
        return void(
            f"where the answer's gradients point, {all_does} {along.value:.0%} of its effect: they "
            "do not say what acts here"
        )
    return test_of(share, reading(share.value))
