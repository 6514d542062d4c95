"""Where answers of several tokens, or several answers, are read, and how likely they are together.

A continuation c₁…c_m is scored by the model's own pass over the prompt followed by c₁…c_{m-1}: the
log-probability of c₁ at the prompt's last column, of c₂ at the next, and so on. The normaliser of
the first column is common to all answers and targets of a pair, so that the logit of c₁ stands for
it. Of several that are accepted none begins with another: their probabilities add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..model.mapping.values import Tail
from ..tasks.answers import starts
from ..tasks.pairset import Pair
from .prefix import widened


@dataclass(frozen=True, eq=False)
class Reading:
    """What is read of n pairs, each of which the model reads in one or more rows, as `Pair.reads`.

    `rows` (r,) has the pair of each row. Hidden states are read at q places, in row `row` (q,) and
    `back` (q,) columns before that row's last: first, for each pair, where its answers part, then
    where later tokens are predicted. `first` (n, a) are the first tokens of what is accepted,
    answers where `answers` (n, a), targets where `targets`. Later tokens: the place `at` (t,), the
    token (t,) and which (t, 2) of the pairs and of the accepted it belongs to.
    """

    rows: Tensor = field(repr=False)
    row: Tensor = field(repr=False)
    back: Tensor = field(repr=False)
    first: Tensor = field(repr=False)
    answers: Tensor = field(repr=False)
    targets: Tensor = field(repr=False)
    at: Tensor = field(repr=False)
    token: Tensor = field(repr=False)
    of: Tensor = field(repr=False)

    @classmethod
    def to(cls, pairs: Sequence[Pair]) -> Reading:
        rows: list[int] = []
        decisive: list[tuple[int, int]] = []
        places: dict[tuple[int, int], int] = {}
        later: list[tuple[int, int, int, int]] = []
        for number, pair in enumerate(pairs):
            accepted, begin = pair.accepted, len(rows)
            passes = accepted.passes
            rows += [number] * len(passes)
            decisive.append((begin, len(passes[0])))
            for which, tokens in enumerate(accepted.all):
                turn = next(i for i, x in enumerate(passes) if starts(x, tokens[:-1]))
                for column, token in enumerate(tokens[1:], 1):
                    place = (begin + turn, len(passes[turn]) - column)
                    later.append((places.setdefault(place, len(places)), token, number, which))
        every = torch.tensor([*decisive, *places])
        first, answers = first_tokens(pairs)
        columns = torch.tensor(later, dtype=torch.long).view(-1, 4).T
        return cls(
            torch.tensor(rows), every[:, 0], every[:, 1], first, answers, (first >= 0) & ~answers,
            columns[0], columns[1], columns[2:].T,
        )  # fmt: skip

    @property
    def pairs(self) -> int:
        return len(self.first)

    def scores(self, tail: Tail, hidden: Tensor) -> Tensor:
        """(..., n, 2): log p(answers) and log p(targets), both less the log-normaliser of the
        column where they part, in nats, of the hidden states (..., q, d) at the places to read."""
        n = self.pairs
        first = widened(tail.logits_of(hidden[..., :n, :], self.first.clamp(min=0)))
        if len(self.at):
            logits = widened(tail.logits(hidden[..., n:, :]))
            rows, tokens = self.at.to(logits.device), self.token.to(logits.device)
            logs = logits[..., rows, tokens] - logits.logsumexp(-1)[..., rows]
            flat = (self.of[:, 0] * self.first.shape[1] + self.of[:, 1]).to(logits.device)
            first = first.flatten(-2).index_add(-1, flat, logs.to(first)).view(first.shape)
        sides = [
            first.masked_fill(~mask.to(first.device), -torch.inf).logsumexp(-1)
            for mask in (self.answers, self.targets)
        ]
        return torch.stack(sides, dim=-1)


def first_tokens(pairs: Sequence[Pair]) -> tuple[Tensor, Tensor]:
    """The first token of all that is accepted, answers before targets, (n, a), -1 where a pair has
    no more, and which of them are answers, bool (n, a)."""
    accepted = [pair.accepted for pair in pairs]
    width = max(len(each.all) for each in accepted)
    first = torch.full((len(pairs), width), -1)
    for row, each in enumerate(accepted):
        first[row, : len(each.all)] = torch.tensor([tokens[0] for tokens in each.all])
    counts = torch.tensor([[len(each.answers)] for each in accepted])
    return first, torch.arange(width) < counts
