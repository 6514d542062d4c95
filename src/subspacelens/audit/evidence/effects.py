"""Tests of what patches do: how much of the effect is left when something is taken away."""

from __future__ import annotations

import numpy as np
import torch

from ...core.statistics import ratio
from ...engine.patches import SubspacePatch
from ...measure.effects import Scorer
from ...measure.splits import READERS_IN_PROXY, proxy_split
from ..record import Test
from .case import Case, test_of, void


def full_component(case: Case) -> Test:
    """Does the whole component do what its part does? E(full) / E(V)."""
    found = case.share(case.drop("full"))
    if found.value is None:
        return void("the subspace has no effect to compare with")
    return test_of(found, f"the whole component does {found.value:.0%} of what its subspace does")


def row_effect(case: Case) -> Test:
    """Does the effect survive without the disconnected part? E(unit row) / E(V)."""
    if case.parts is None or (case.parts.exact and case.parts.degenerate):
        rank = (
            "no split exists at this site"
            if case.parts is None
            else (
                f"the map read downstream has rank {case.parts.split.rank} in "
                f"{case.basis.shape[0]} dimensions"
            )
        )
        return void(f"void: {rank}, so that the split cannot tell anything")
    found = case.share(case.drop("row"))
    if found.value is None:
        return void("the row part does not exist or the subspace has no effect")
    norm = float(case.parts.row.norm() ** 2 / case.basis.norm() ** 2)
    if case.parts.exact:
        return test_of(
            found,
            f"without its disconnected part ({1 - norm:.0%} of its squared norm) the subspace "
            f"keeps {found.value:.0%} of its effect",
        )
    by_count = _by_reader_count(case)
    sizes = ", ".join(f"{count}: {share:.0%}" for count, share in by_count)
    shares = [share for _, share in by_count]
    depends = ", so it depends on how many one takes" if max(shares) - min(shares) > 0.2 else ""
    return test_of(
        found,
        f"a proxy: along what the {len(case.parts.readers)} strongest attention readers see, "
        f"{found.value:.0%} of the effect remains; by number of readers {sizes}{depends}",
    )


def _by_reader_count(case: Case) -> list[tuple[str, float]]:
    attention = [r for r in case.readers if r.reader.attention]
    counts = [c for c in (1, READERS_IN_PROXY, 10) if c <= len(attention)] + [len(attention)]
    base, source = case.captures.test.base[case.site], case.captures.test.source[case.site]
    deltas = []
    for count in counts:
        row = proxy_split(case.readers, case.basis, count).unit_row
        deltas.append(SubspacePatch(row).delta(base, source))
    found = case.replay.delta_outcomes(torch.stack(deltas)).logit_diff.double().numpy()
    whole = case.drop("subspace")
    assert whole is not None
    shares = (case.scorer.clean - found).sum(1) / whole.sum()
    names = [str(c) for c in counts[:-1]] + [f"all {counts[-1]}"]
    return list(zip(names, shares.tolist(), strict=True))


def null_effect(case: Case) -> Test:
    """Does the disconnected part act? E(unit null) / E(V). At exact sites a numerical check: the
    null part must do nothing; at residual ones a proxy."""
    drop = case.drop("null")
    if case.parts is None or drop is None:
        return void("the subspace has no null part")
    share = case.share(drop)
    if case.parts.exact:
        worst = float(np.abs(drop).max())
        fine = "as it must be" if worst < 1e-2 else "which it must not: do not trust the split"
        return test_of(
            share, f"the null part changes no answer by more than {worst:.1g} nats, {fine}"
        )
    if share.value is None:
        return void("the subspace has no effect to compare with")
    return test_of(
        share,
        f"a proxy: outside of what the strongest attention readers see, {share.value:.0%} of the "
        "effect remains",
    )


def read_source(case: Case) -> Test:
    """Which part senses? E(read null, write V) / E(V)."""
    found = case.share(case.drop("read_null"))
    row = case.share(case.drop("read_row")).value
    if found.value is None or row is None:
        return void("no split exists at this site, or the subspace has no effect")
    return test_of(
        found,
        f"reading only the null part gives {found.value:.0%} of the effect, only the row part "
        f"{row:.0%}; faithful directions read from the null part too, so this alone decides "
        "nothing",
    )


def generalisation(case: Case) -> Test:
    """Does it work on templates the fit never saw? FLDD held out over FLDD on the test split."""
    held = case.captures.held_out
    if held is None:
        return void("the task has no held-out template")
    replay = held.at(case.site)
    patch = SubspacePatch(case.basis)
    found = replay.delta_outcomes(patch.delta(held.base[case.site], held.source[case.site]))
    scorer = Scorer.of(held)
    whole = case.drop("subspace")
    assert whole is not None
    inside = whole.sum() / case.scorer.clean.sum()
    if abs(inside) < 1e-9:
        return void("the subspace has no effect to compare with")
    estimate = ratio(scorer.drop(found), scorer.clean, scorer.units, factor=1 / inside)
    if estimate.value is None:
        return void("the model does not do the task on the held-out templates")
    return test_of(
        estimate, f"on templates that were not fitted the effect is {estimate.value:.0%} as large"
    )
