"""Whether a site carries z, told by interventions, at any site of a model in which a place of z is
known (`trained.Case`): the subspace V there.

A site *carries* z where replacing all that is there by the source's does at least `MOST` of what V
does, and at most `LEAST` of that is left without z: with V held at its value in the base behind the
site, or, where the site is behind V, when the source was run with V as in the base. So a block
before the one at which z was trained or planted is as right as that, if z is on its way there.

A subspace U of such a site is *faithful* if it does at least `MOST` of what the whole does, all but
U at most `LEAST`, and what U does is at most `LEAST` without z. It is *illusory* where all but U
does at least `MOST`, for then the model's own way is not in U (or in a copy too: one is not told
from the other, and counted against it); and at a site where the whole does at most `LEAST` of what
U does. Anything else is *mixed*.
"""

from __future__ import annotations

import torch

from ..engine.patches import Full, SubspacePatch
from ..fit.subspace import Subspace
from ..measure.effects import drops_of
from .trained import LEAST, MOST, Case


def carried(case: Case, subspace: Subspace) -> dict:
    """What interventions say of a subspace, of JSON types: `does`, the whole's share of what V
    does; `whole_without_z`, of what the whole does; `own` and `rest`, the shares of it that the
    subspace and all but the subspace do; `without_z`, of what the subspace does; whether the site
    `carries` z, and the `truth` of the subspace.

    >>> carried(case, subspace)["truth"]
    """
    replay = case.test.at(subspace.site)
    whole = Full().delta(replay.base, replay.source)
    part = SubspacePatch(subspace.basis).delta(replay.base, replay.source)
    full, own, rest = drops_of(replay, torch.stack([whole, part, whole - part])).mean(1).tolist()
    there = case.test.at(case.trained.site)
    known = SubspacePatch(case.trained.basis).delta(there.base, there.source)
    does = full / float(drops_of(there, known[None]).mean())
    without, all_without = case.without_z(subspace)
    all_without *= own / full
    carries = does >= MOST and all_without <= LEAST
    if carries and own >= MOST * full and rest <= LEAST * full and without <= LEAST:
        truth = "faithful"
    elif (carries and rest >= MOST * full) or abs(full) <= LEAST * own:
        truth = "illusory"
    else:
        truth = "mixed"
    return {
        "does": does, "whole_without_z": all_without, "own": own / full, "rest": rest / full,
        "without_z": without, "carries": carries, "truth": truth,
    }  # fmt: skip
