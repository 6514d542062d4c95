"""Tests of what patches do: how much of the effect is left when something is taken away."""

from __future__ import annotations

import numpy as np
import torch

from ...core.statistics import quotient
from ...engine.patches import SubspacePatch
from ...measure.effects import drops_of
from ...measure.splits import READER_PAIRS, READERS_IN_PROXY, proxy_split
from ..record import Test
from .case import NO_EFFECT, Case, test_of, void


def full_component(case: Case) -> Test:
    """Does the whole component do what its part does? E(full) / E(V)."""
    share = case.share_of("full")
    if share.value is None:
        return void(NO_EFFECT)
    return test_of(share, f"the whole component does {share.value:.0%} of what its subspace does")


def row_effect(case: Case) -> Test:
    """Does the effect survive without the disconnected part? E(unit row) / E(V)."""
    parts = case.parts
    if parts is None:
        return void("void: no split exists at this site, so that the split cannot tell anything")
    if parts.exact and parts.degenerate:
        return void(
            f"void: the map read downstream has rank {parts.split.rank} in {case.basis.shape[0]} "
            "dimensions, so that the split cannot tell anything"
        )
    share = case.share_of("row")
    if share.value is None:
        return void("the row part does not exist or the subspace has no effect")
    norm = float(parts.row.norm() ** 2 / case.basis.norm() ** 2)
    if parts.exact:
        return test_of(
            share,
            f"without its disconnected part ({1 - norm:.0%} of its squared norm) the subspace "
            f"keeps {share.value:.0%} of its effect",
        )
    by_count = _by_reader_count(case)
    sizes = ", ".join(f"{count}: {each:.0%}" for count, each in by_count.items())
    shares = by_count.values()
    depends = ", so it depends on how many one takes" if max(shares) - min(shares) > 0.2 else ""
    return test_of(
        share,
        f"a proxy: along what the {len(parts.readers)} strongest attention readers see, "
        f"{share.value:.0%} of the effect remains; by number of readers, on {READER_PAIRS} pairs "
        f"at most, {sizes}{depends}",
    )


def _by_reader_count(case: Case) -> dict[str, float]:
    attention = [r for r in case.readers if r.reader.attention]
    counts = [c for c in (1, READERS_IN_PROXY, 10) if c <= len(attention)] + [len(attention)]
    names = [*map(str, counts[:-1]), f"all {counts[-1]}"]
    some = case.replay.subset(slice(READER_PAIRS))
    drops = {READERS_IN_PROXY: case.effects["row"].moved[:READER_PAIRS]}
    others = [count for count in dict.fromkeys(counts) if count not in drops]
    bases = [proxy_split(case.readers, case.basis, count).unit_row for count in others]
    deltas = torch.stack([SubspacePatch(basis).delta(some.base, some.source) for basis in bases])
    drops |= zip(others, drops_of(some, deltas), strict=True)
    whole = case.drop[:READER_PAIRS].sum()
    return {name: drops[count].sum() / whole for name, count in zip(names, counts, strict=True)}


def null_effect(case: Case) -> Test:
    """Does the disconnected part act? E(unit null) / E(V). At exact sites a numerical check: the
    null part must do nothing; at residual ones a proxy."""
    if case.parts is None or "null" not in case.effects:
        return void("the subspace has no null part")
    share = case.share_of("null")
    if case.parts.exact:
        worst = float(np.abs(case.effects["null"].drop).max())
        fine = "as it must be" if worst < 1e-2 else "which it must not: do not trust the split"
        return test_of(
            share, f"the null part changes no answer by more than {worst:.1g} nats, {fine}"
        )
    if share.value is None:
        return void(NO_EFFECT)
    return test_of(
        share,
        f"a proxy: outside of what the strongest attention readers see, {share.value:.0%} of the "
        "effect remains",
    )


def read_source(case: Case) -> Test:
    """Which part senses? E(read null, write V) / E(V). Control: the share of the dimensions that
    are disconnected, which is what a direction reads through them that knows nothing of them."""
    null, row, parts = case.share_of("read_null"), case.share_of("read_row"), case.parts
    if null.value is None or row.value is None or parts is None:
        return void("no split exists at this site, or the subspace has no effect")
    return test_of(
        null,
        f"reading only the null part gives {null.value:.0%} of the effect, only the row part "
        f"{row.value:.0%}",
        1 - parts.split.rank / case.basis.shape[0],
    )


def generalisation(case: Case) -> Test:
    """Does it work on templates the fit never saw? FLDD held out over FLDD on the test split."""
    if case.captures.held_out is None:
        return void("the task has no held-out template")
    replay = case.captures.held_out.at(case.site)
    held_out = replay.effects({"": case.patch}, decided=True)[""].fldd
    if held_out.value is None:
        return void("the model does not do the task on the held-out templates")
    share = quotient(held_out, case.effects["subspace"].fldd)
    if share.value is None:
        return void(NO_EFFECT)
    return test_of(
        share, f"on templates that were not fitted the effect is {share.value:.0%} as large"
    )
