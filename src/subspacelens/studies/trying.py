"""Patches and edits of many pairs, and whether each flips the model's answer."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..edit.rank_one import RankOneEdit, edited_each
from ..engine.outcomes import Outcomes
from ..engine.patches import Patch
from ..engine.recall import recall
from ..engine.replay import Replay
from ..tasks.pairset import PairSet
from .editing_record import Scores
from .facts_record import Tried


def tried(replay: Replay, patch: Patch) -> Tried:
    """One patch of all pairs of a replay."""
    return tried_all(replay, {"": patch})[""]


def tried_all(replay: Replay, patches: dict[str, Patch]) -> dict[str, Tried]:
    """Several patches in one batched replay."""
    base, source = replay.base, replay.source
    deltas = torch.stack([p.delta(base, source) for p in patches.values()])
    outcomes = replay.delta_outcomes(deltas, decided=True)
    pairs = replay.pairs
    return {
        name: judged(Outcomes(outcomes.logit_diff[i], outcomes.top[i]), pairs)
        for i, name in enumerate(patches)
    }


def tried_edits(replay: Replay, edits: Sequence[RankOneEdit]) -> Tried:
    """Each pair's base prompt with its own edit in the weights, at all tokens."""
    lens, pairs = replay.lens, replay.pairs
    prompts = [pair.base for pair in pairs.pairs]

    def around(rows: list[int]):
        return edited_each(lens, [edits[row] for row in rows])

    recalled = recall(lens, prompts, replay.answers, "edits", around)
    logs = recalled.log_probs.double()
    return judged(Outcomes(logs[:, 0] - logs[:, 1], recalled.top), pairs)


def patched_scores(replay: Replay, patch: Patch) -> Scores:
    """Probabilities of the source's (`new`) and the base's object (`true`) under a patch."""
    base, source = replay.base, replay.source
    delta = patch.delta(base, source)
    probs, top = torch.empty(len(delta), 2), torch.empty(len(delta), dtype=torch.long)
    with torch.no_grad():
        for piece in replay.pieces(gradients=False):
            logits = piece.logits(delta[piece.pairs.to(delta.device)][None])[0].float().cpu()
            probs[piece.pairs] = logits.softmax(-1).gather(1, piece.answers)
            top[piece.pairs] = logits.argmax(-1)
    return Scores(
        new=probs[:, 1].tolist(),
        true=probs[:, 0].tolist(),
        top=(top == replay.answers[:, 1]).tolist(),
    )


def judged(outcomes: Outcomes, pairs: PairSet) -> Tried:
    targets = torch.tensor([pair.target for pair in pairs.pairs])
    return Tried(
        flips=(outcomes.top == targets).tolist(), logit_diff=outcomes.logit_diff.double().tolist()
    )
