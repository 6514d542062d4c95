"""Tests of what else the patch moves: other words, and other text."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ...core.errors import LensError
from ...core.statistics import ratio
from ...engine.capture import capture
from ...engine.patches import SubspacePatch
from ...engine.replay import Replay
from ...engine.text import reference_windows
from ...tasks.pairset import Pair, PairSet, Prompt
from ..record import Test
from .case import Case, test_of, void

SIDE_PAIRS = 64
TEXT_PAIRS, TEXT_TOKENS = 32, 24
TEXT_CONTROLS = 5


def selectivity(case: Case) -> Test:
    """What else does it move? KL divergence in nats of the next-token distribution without the two
    answers, patched from clean, over that of the full-component patch."""
    captured = case.captures.test
    replay = case.replay.subset(torch.arange(min(SIDE_PAIRS, len(captured.pairs))))
    base, source = replay.base, replay.source
    deltas = [SubspacePatch(case.basis).delta(base, source), source - base]
    ours, whole = divergences(replay, torch.stack(deltas), without_answers=True)
    found = ratio(ours, whole, replay.pairs.units)
    if found.value is None:
        return void("the whole component changes nothing")
    return test_of(
        found,
        f"beside the two answers the patch moves the prediction by {ours.mean():.2g} nats, the "
        f"whole component by {whole.mean():.2g}",
    )


def unrelated_text(case: Case) -> Test:
    """Does it move text that the task has nothing to do with? KL divergence in nats of the
    next-token distribution when the subspace's part is exchanged between two pieces of CPython's
    reference text, at their last token, over that of the full component. Control: the same for
    random subspaces."""
    if case.lens.tokenizer is None:
        return void("the model has no tokenizer to read other text with")
    site = replace(case.site, label="END")
    try:
        pairs = _text_pairs(case)
        captured = capture(case.lens, pairs, [site], memory=case.replay.memory)
    except LensError as error:
        return void(f"no other text could be read: {error}")
    replay = captured.at(site)
    base, source = captured.base[site], captured.source[site]
    bases = [case.basis, *case.haar()[:TEXT_CONTROLS]]
    deltas = [source - base, *(SubspacePatch(b).delta(base, source) for b in bases)]
    whole, ours, *random = divergences(replay, torch.stack(deltas))
    found = ratio(ours, whole, pairs.units)
    if found.value is None:
        return void("the whole component changes nothing in other text")
    return test_of(
        found,
        f"in text that has nothing to do with the task the patch moves the prediction by "
        f"{ours.mean():.2g} nats, the whole component by {whole.mean():.2g}",
        float(np.mean([each.sum() for each in random]) / whole.sum()),
    )


def divergences(replay: Replay, deltas: Tensor, *, without_answers: bool = False) -> np.ndarray:
    """KL divergence in nats of the clean next-token distribution from that under each patch, (m, n)
    for `deltas` (m, n, dim); `without_answers`, among all tokens but the pair's two."""
    found = np.zeros(deltas.shape[:2])
    stacked = torch.cat([torch.zeros_like(deltas[:1]), deltas])
    with torch.no_grad():
        for piece in replay.pieces(1, gradients=False):
            rows, clean = torch.arange(len(piece.pairs)), None
            for which, delta in enumerate(stacked):
                moved = delta[None, piece.pairs.to(delta.device)]
                logits = piece.logits(moved)[0].double().cpu()
                if without_answers:
                    logits[rows[:, None], piece.answers] = -torch.inf
                patched = logits.log_softmax(-1)
                if clean is None:
                    clean = patched
                    continue
                kl = (patched.exp() * (patched - clean)).nan_to_num(0).sum(-1)
                found[which - 1, piece.pairs.numpy()] = kl.numpy()
    return found


def _text_pairs(case: Case) -> PairSet:
    windows = reference_windows(case.lens.tokenizer, 2 * TEXT_PAIRS, TEXT_TOKENS, seed=case.seed)
    prompts = [Prompt("", ids, {"END": len(ids) - 1}) for ids in windows]
    pairs = [
        Pair(a, b, a.ids[0], b.ids[0]) for a, b in zip(prompts[::2], prompts[1::2], strict=True)
    ]
    return PairSet("reference text", "unrelated", tuple(pairs))
