"""Tests that take the effect apart: what nature would have written, and what is beyond it."""

from __future__ import annotations

from ..record import Test
from .case import NO_EFFECT, Case, test_of, void

NO_CLASSES = "the pairs carry no z, or only one value of it"


def natural(case: Case) -> Test:
    """How much of the effect would nature have made? E(c m) / E(V), where c m is as much of the
    difference of the class means as does, along the directions that act, what the patch does there
    (`measure.nature`)."""
    if case.nature is None:
        return void(NO_CLASSES)
    share = case.share(case.taken_apart["natural"])
    if share.value is None:
        return void(NO_EFFECT)
    return test_of(share, f"as much of the natural change as it takes does {share.value:.0%} of it")


def beyond(case: Case) -> Test:
    """How much of the effect is left without the natural change? E(δ - c m) / E(V)."""
    if case.nature is None:
        return void(NO_CLASSES)
    share = case.share(case.taken_apart["beyond"])
    if share.value is None:
        return void(NO_EFFECT)
    return test_of(
        share, f"{share.value:.0%} of it is left when the natural change is taken out of the write"
    )


def acting(case: Case) -> Test:
    """How much remains when V reads only what acts? E(V Vᵀ P_A Δ) / E(V)."""
    if case.nature is None:
        return void(NO_CLASSES)
    share = case.share(case.taken_apart["acting"])
    if share.value is None:
        return void(NO_EFFECT)
    count, width = case.nature.acting.shape[1], case.basis.shape[0]
    return test_of(
        share,
        f"reading only along the {count} of {width} dimensions to which the answer reacts, it "
        f"keeps {share.value:.0%}",
    )
