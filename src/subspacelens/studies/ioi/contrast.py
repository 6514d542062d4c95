"""What the paper is about, in two rules: where an effect is an illusion's, and where a feature's.

Both compare effects on the same pairs, so their shares have intervals of their own.
"""

from __future__ import annotations

from typing import Literal

from ...core.records import Estimate, Record
from ...core.site import Site
from .table import Evaluation

WHOLE = 1 / 4
"""An illusion does at least four times what the whole component does,"""
READ = 1 / 2
"""at most half of it is left of its unit read part,"""
UNREAD = 0.01
"""and its unit unread part has an FLDD below this."""
KEPT = 0.8
"""Of a feature at least this share is left along what its readers read."""


class Contrast(Record):
    """A DAS direction on pairs of one kind. `effect` and `unread` are FLDD, of the direction and of
    the part that nothing downstream (at the residual site: none of the readers) reads; `whole` and
    `read` are shares of the direction's effect: what the whole component and the part that is read
    do. `rule`: which rule its site is for. `met`: by the values; `sure`: by the far ends of their
    intervals too."""

    pairs: str
    site: str
    rule: Literal["illusion", "feature"]
    effect: Estimate
    whole: Estimate
    read: Estimate
    unread: Estimate
    met: bool
    sure: bool


def contrasts(evaluation: Evaluation, kind: str) -> list[Contrast]:
    """One for every site; `kind` says which pairs these are."""
    return [_contrast(evaluation, kind, site) for site in evaluation.effects]


def _contrast(evaluation: Evaluation, kind: str, site: Site) -> Contrast:
    mlp = site.stream == "mlp_act"
    name, part = ("v_MLP", "row") if mlp else ("v_resid", "along readers")
    effect = evaluation.share(site, name, None)
    whole = evaluation.share(site, "full", name)
    read = evaluation.share(site, f"{name} {part}", name)
    unread = evaluation.share(site, f"{name} null", None)

    def holds(lower, upper) -> bool:
        if lower(effect) <= 0:
            return False
        if not mlp:
            return lower(read) >= KEPT
        return (
            upper(whole) <= WHOLE
            and upper(read) <= READ
            and -UNREAD < lower(unread) <= upper(unread) < UNREAD
        )

    return Contrast(
        pairs=kind,
        site=str(site),
        rule="illusion" if mlp else "feature",
        effect=effect,
        whole=whole,
        read=read,
        unread=unread,
        met=_low(effect) > 0 and holds(_value, _value),
        sure=holds(_low, _high),
    )


def _value(estimate: Estimate) -> float:
    return float("nan") if estimate.value is None else estimate.value


def _low(estimate: Estimate) -> float:
    return float("nan") if estimate.low is None else estimate.low


def _high(estimate: Estimate) -> float:
    return float("nan") if estimate.high is None else estimate.high
