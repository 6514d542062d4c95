"""Through whom does the patch act? The readers of the residual stream that carry the effect."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import Tensor

from ...core.statistics import ratio
from ...engine.patches import SubspacePatch
from ...engine.replay import Replay
from ...measure.effects import Scorer
from ...measure.readers import ReaderShare, attribute_readers
from ...model.hooks import on_output
from ..record import Test
from .case import SMALLEST_NATS, Case, test_of, void

PAIRS = 64
FROZEN = 3


def path(case: Case) -> Test:
    """Effect that is left when the three attention readers (a head's queries, keys or values at the
    patched column) with the largest attribution keep their clean values, over E(V)."""
    replay = case.replay.subset(torch.arange(min(PAIRS, len(case.captures.test.pairs))))
    base, source = replay.captured.base[case.site], replay.captured.source[case.site]
    delta = SubspacePatch(case.basis).delta(base, source)
    readers = case.readers or attribute_readers(case.lens, replay, delta)
    chosen = [reader for reader in readers if reader.reader.attention][:FROZEN]
    if not chosen:
        return void("no attention reads the residual stream after this site at its own column")
    scorer = Scorer.of(replay.captured)
    whole = scorer.drop(replay.outcomes(delta))
    if abs(whole.mean()) < SMALLEST_NATS:
        return void("the subspace has no effect to compare with")
    frozen = scorer.clean - _frozen(replay, chosen, delta).double().numpy()
    found = ratio(frozen, whole, scorer.units)
    total = sum(abs(reader.attribution) for reader in readers)
    names = ", ".join(f"{r.name} ({abs(r.attribution) / total:.0%})" for r in chosen)
    return test_of(
        found,
        f"the strongest attention readers are {names}; with these held at their clean values "
        f"{found.value:.0%} of the effect is left",
    )


def _frozen(replay: Replay, readers: list[ReaderShare], delta: Tensor) -> Tensor:
    """Logit differences (n,) of the patch with the outputs of `readers` at the patched column as
    they are without it."""
    patched = torch.empty(len(delta))
    with torch.no_grad():
        for unit in replay.units(gradients=False):
            moved = delta[None, unit.pairs.to(delta.device)]
            clean: dict[int, Tensor] = {}
            for amount in (0 * moved, moved):
                with ExitStack() as stack:
                    for number, share in enumerate(readers):
                        change = _at_patched_column(share, clean, number, len(unit.pairs))
                        stack.enter_context(on_output(share.reader.linear.module, change))
                    patched[unit.pairs] = replay.logit_diff(unit, amount)[0].float().cpu()
    return patched


def _at_patched_column(share: ReaderShare, clean: dict[int, Tensor], number: int, rows: int):
    """On the first call of a pass: keeps the reader's output if it is not kept yet, else writes
    what was kept. A later call of the pass belongs to other columns."""
    keeps, called = number not in clean, []

    def change(y: Tensor) -> Tensor | None:
        if called:
            return None
        called.append(True)
        columns = y.reshape(rows, -1, y.shape[-1])
        if keeps:
            clean[number] = columns[:, 0, share.rows].clone()
            return None
        held = columns.clone()
        held[:, 0, share.rows] = clean[number]
        return held.reshape(y.shape)

    return change
