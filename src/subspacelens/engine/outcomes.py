"""What the model answers, with and without a patch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..tasks.pairset import PairSet


@dataclass(frozen=True)
class Outcomes:
    """What the model answers. `logit_diff`: logit(answer) - logit(target) in nats. `top`: the most
    likely token over the whole vocabulary. Both (..., n)."""

    logit_diff: Tensor
    top: Tensor

    def __getitem__(self, index: int | slice | Tensor) -> Outcomes:
        return Outcomes(self.logit_diff[index], self.top[index])

    @classmethod
    def of(cls, logits: Tensor, answers: Tensor) -> Outcomes:
        """From logits (..., n, vocabulary) and token ids of answer and target (n, 2)."""
        picked = logits.gather(-1, answers.expand(*logits.shape[:-1], 2))
        return cls(picked[..., 0] - picked[..., 1], logits.argmax(-1))


def answers_of(pairs: PairSet) -> Tensor:
    """Token ids of answer and target, (n, 2)."""
    return torch.tensor([(pair.answer, pair.target) for pair in pairs.pairs])
