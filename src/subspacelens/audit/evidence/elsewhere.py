"""Tests of what else the patch moves: other words, and other text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ...core.errors import LensError
from ...core.statistics import ratio
from ...engine.capture import capture
from ...engine.patches import Full, Patch, SubspacePatch
from ...engine.reading import first_tokens
from ...engine.replay import Piece, Replay
from ...engine.task_capture import TaskCapture
from ...engine.text import reference_windows
from ...tasks.pairset import Pair, PairSet, Prompt
from ..record import Test
from .case import Case, test_of, void

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SIDE_PAIRS = 64
TEXT_PAIRS, TEXT_TOKENS = 32, 24
TEXT_CONTROLS = 5


def selectivity(case: Case) -> Test:
    """What else does it move? KL divergence in nats of the next-token distribution without the
    answers (their first tokens), patched from clean, over that of the full-component patch."""
    replay = case.replay.subset(slice(SIDE_PAIRS))
    ours, whole = divergences(replay, [case.patch, Full()], without_answers=True)
    share = ratio(ours, whole, replay.units)
    if share.value is None:
        return void("the whole component changes nothing")
    return test_of(
        share,
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
    try:
        replay = other_text(case.captures, case.replay, case.seed)
    except LensError as error:
        return void(f"no other text could be read: {error}")
    controls = [SubspacePatch(basis) for basis in case.haar()[:TEXT_CONTROLS]]
    whole, ours, *random = divergences(replay, [Full(), case.patch, *controls])
    share = ratio(ours, whole, replay.pairs.units)
    if share.value is None:
        return void("the whole component changes nothing in other text")
    return test_of(
        share,
        f"in text that has nothing to do with the task the patch moves the prediction by "
        f"{ours.mean():.2g} nats, the whole component by {whole.mean():.2g}",
        float(np.mean([each.sum() for each in random]) / whole.sum()),
    )


def divergences(
    replay: Replay, patches: Sequence[Patch], *, without_answers: bool = False
) -> np.ndarray:
    """KL divergence in nats of the clean next-token distribution from that under each patch,
    (patches, n); `without_answers`, among all tokens but those with which the pair's begin."""
    deltas = [patch.delta(replay.base, replay.source) for patch in patches]
    divergence = np.zeros((len(deltas), len(replay.pairs)))

    def predicted(piece: Piece, delta: Tensor) -> Tensor:
        logits = piece.logits(piece.of(delta[None]))[0].double().cpu()
        if without_answers:
            first, _ = first_tokens([replay.pairs[i] for i in piece.pairs.tolist()])
            last = first.where(first >= 0, first[:, :1])
            logits.scatter_(1, last, -torch.inf)
        return logits.log_softmax(-1)

    with torch.no_grad():
        for piece in replay.pieces(gradients=False):
            clean = predicted(piece, torch.zeros_like(deltas[0]))
            for which, delta in enumerate(deltas):
                patched = predicted(piece, delta)
                kl = (patched.exp() * (patched - clean)).nan_to_num(0).sum(-1)
                divergence[which, piece.pairs.numpy()] = kl.numpy()
    return divergence


def other_text(captures: TaskCapture, replay: Replay, seed: int) -> Replay:
    """The stream of `replay` at the last token of CPython's reference text; read once for all sites
    of the captures. Raises `LensError` where there is not enough of it."""
    lens, kept = replay.lens, ("other text", seed)
    if kept not in captures.shared:
        sites = [replace(site, label="END") for site in captures.test.sites]
        pairs = _text_pairs(lens.tokenizer, seed)
        captures.shared[kept] = capture(lens, pairs, sites, memory=replay.memory)
    return captures.shared[kept].at(replace(replay.site, label="END"))


def _text_pairs(tokenizer: PreTrainedTokenizerBase, seed: int) -> PairSet:
    windows = reference_windows(tokenizer, 2 * TEXT_PAIRS, TEXT_TOKENS, seed=seed)
    prompts = [Prompt("", ids, {"END": len(ids) - 1}) for ids in windows]
    pairs = [
        Pair(base=a, source=b, answer=a.ids[0], target=b.ids[0])
        for a, b in zip(prompts[::2], prompts[1::2], strict=True)
    ]
    return PairSet("reference text", "unrelated", tuple(pairs))
