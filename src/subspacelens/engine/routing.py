"""Pairs whose tokens the router of a mixture sends to the experts that are to be patched."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from ..core.site import EXPERT, Site
from ..model.lens import LensModel
from ..tasks.pairset import PairSet
from .activations import seen
from .capture import check_pairs
from .fitting_prompts import Some, without


def routed(
    lens: LensModel, pairs: Some, sites: Iterable[Site | str], *, shifted: bool = False
) -> Some:
    """The pairs of a set, or of each split of a task, in which base and source have something at
    every expert of `sites`: the router sends the token at the label to it. Other sites do not
    matter. A line counts the pairs that are left out.

    `shifted` allows a label in different columns of base and source. Raises `SiteError` for a site
    that the model lacks, `TaskError` for pairs without its label, and for a split of which no pair
    is left.

    >>> task = sl.routed(lens, task, ["L3.expert_act.5@END"])
    """
    asked = [site for site in dict.fromkeys(map(Site.of, sites)) if site.stream == EXPERT]
    if not asked:
        return pairs
    return without(partial(_past, lens, asked, shifted), pairs, "not being sent to the expert")


def _past(lens: LensModel, sites: list[Site], shifted: bool, pairs: PairSet) -> dict[int, str]:
    """The pairs of which a token is not sent to an expert, by number, each with which that is."""
    for site in sites:
        lens.map.block(site)
        check_pairs(pairs, site, shifted=shifted)
    found: dict[int, str] = {}
    for side in ("base", "source"):
        there = seen(lens, [getattr(pair, side) for pair in pairs], sites)
        for site, values in there.items():
            for number in values.isnan().any(dim=-1).nonzero()[:, 0].tolist():
                found.setdefault(number, f"{pairs.where(number)}: the {side} at {site}")
    return found
