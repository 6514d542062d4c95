"""Through whom does the patch act? The readers of the residual stream that carry the effect."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from ...core.statistics import ratio
from ...engine.effect import Effect
from ...engine.replay import Replay
from ...measure.readers import ReaderShare, attribute_readers, frozen
from ..record import Test
from .case import NO_EFFECT, READ_ELSEWHERE, Case, smallest_effect, test_of, void

PAIRS = 64
FROZEN = 3


def path(case: Case) -> Test:
    """Effect that is left when the strongest attention readers keep their clean values, over E(V)
    (`through`)."""
    if case.site.read_elsewhere:
        return void(READ_ELSEWHERE)
    replay = case.replay.subset(slice(PAIRS))
    delta = case.patch.delta(replay.base, replay.source)
    return through(replay, delta, case.readers or attribute_readers(replay, delta), case.drop)


def through(
    replay: Replay, delta: Tensor, readers: Sequence[ReaderShare], drop: np.ndarray
) -> Test:
    """Of a change `delta` (n, dim) that takes `drop` (n, or more) from the answers: E when the
    three of the attention `readers` (a head's queries, keys or values at the patched column) with
    the largest attribution keep their clean values, over E."""
    chosen = [share for share in readers if share.reader.attention][:FROZEN]
    if not chosen:
        return void("no attention reads the residual stream after this site at its own column")
    whole = drop[: len(delta)]
    if abs(whole.mean()) < smallest_effect(replay):
        return void(NO_EFFECT)
    held = Effect(replay.pairs, replay.clean, frozen(replay, delta, chosen))
    left = ratio(held.moved, whole, replay.units)
    total = sum(abs(share.attribution) for share in readers)
    names = ", ".join(f"{r.name} ({abs(r.attribution) / total:.0%})" for r in chosen)
    return test_of(
        left,
        f"the strongest attention readers are {names}; with these held at their clean values "
        f"{left.value:.0%} of the effect is left",
    )
