"""What the model answers, with and without a patch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..model.mapping.values import Tail
from ..tasks.pairset import PairSet
from .reading import Reading, first_tokens


@dataclass(frozen=True)
class Outcomes:
    """What the model answers. `logit_diff`: logit(answer) - logit(target) in nats, which is
    log p(answers) - log p(targets) where they are longer or several. `top`: the most likely token
    over the whole vocabulary, where the answers part. `metric`: another metric, times its sign, so
    that it falls as the model turns to the target; None where the logit difference is the metric.
    All (..., n)."""

    logit_diff: Tensor
    top: Tensor
    metric: Tensor | None = None

    def __getitem__(self, index: int | slice | Tensor) -> Outcomes:
        metric = None if self.metric is None else self.metric[index]
        return Outcomes(self.logit_diff[index], self.top[index], metric)

    @property
    def measured(self) -> Tensor:
        """What effects are differences of: the metric, or the logit difference."""
        return self.logit_diff if self.metric is None else self.metric

    @classmethod
    def of(cls, logits: Tensor, answers: Tensor) -> Outcomes:
        """From logits (..., n, vocabulary) and token ids of answer and target (n, 2)."""
        picked = logits.gather(-1, answers.expand(*logits.shape[:-1], 2))
        return cls(picked[..., 0] - picked[..., 1], logits.argmax(-1))

    @classmethod
    def read(cls, reading: Reading, tail: Tail, hidden: Tensor) -> Outcomes:
        """From the hidden states (..., q, d) at the places of a reading."""
        sides = reading.scores(tail, hidden).float()
        top = tail.logits(hidden[..., : reading.pairs, :]).argmax(-1)
        return cls(sides[..., 0] - sides[..., 1], top)

    def says(self, side: Literal["answer", "target"], pairs: PairSet) -> Tensor:
        """Whether the model says what a side accepts, bool (..., n): its most likely token is one
        with which that begins, and, where there is more to say than one token, all of it together
        is likelier than the other side's."""
        if not pairs.continued:
            return self.top == answers_of(pairs)[:, 0 if side == "answer" else 1]
        first, answers = first_tokens(pairs.pairs)
        wanted = first.masked_fill(~answers if side == "answer" else answers, -1)
        begun = ((self.top[..., None] == wanted) & (wanted >= 0)).any(-1)
        ahead = self.logit_diff > 0 if side == "answer" else self.logit_diff < 0
        single = torch.tensor([pair.continuations is None for pair in pairs])
        return begun & (ahead | single)


def answers_of(pairs: PairSet) -> Tensor:
    """Token ids of answer and target, (n, 2)."""
    return torch.tensor([(pair.answer, pair.target) for pair in pairs.pairs])
