"""Through whom does the patch act? The readers of the residual stream that carry the effect."""

from __future__ import annotations

import torch

from ...core.statistics import ratio
from ...engine.patches import SubspacePatch
from ...measure.effects import Scorer
from ...measure.readers import attribute_readers, frozen
from ..record import Test
from .case import SMALLEST_NATS, Case, test_of, void

PAIRS = 64
FROZEN = 3


def path(case: Case) -> Test:
    """Effect that is left when the three attention readers (a head's queries, keys or values at the
    patched column) with the largest attribution keep their clean values, over E(V)."""
    replay = case.replay.subset(torch.arange(min(PAIRS, len(case.captures.test.pairs))))
    base, source = replay.base, replay.source
    delta = SubspacePatch(case.basis).delta(base, source)
    readers = case.readers or attribute_readers(case.lens, replay, delta)
    chosen = [reader for reader in readers if reader.reader.attention][:FROZEN]
    if not chosen:
        return void("no attention reads the residual stream after this site at its own column")
    scorer = Scorer.of(replay)
    whole = scorer.drop(replay.delta_outcomes(delta))
    if abs(whole.mean()) < SMALLEST_NATS:
        return void("the subspace has no effect to compare with")
    found = ratio(scorer.drop(frozen(replay, delta, chosen)), whole, scorer.units)
    total = sum(abs(reader.attribution) for reader in readers)
    names = ", ".join(f"{r.name} ({abs(r.attribution) / total:.0%})" for r in chosen)
    return test_of(
        found,
        f"the strongest attention readers are {names}; with these held at their clean values "
        f"{found.value:.0%} of the effect is left",
    )
