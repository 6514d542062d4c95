"""The likeliest next tokens, as text with their probabilities."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Likely(NamedTuple):
    """A next token, as text, and its probability over the whole vocabulary.

    >>> token, probability = sl.swap(lens, base=base, source=source, site="L9.mlp_out@END").after[0]
    """

    token: str
    probability: float


def likeliest(
    logits: Tensor, count: int, tokenizer: PreTrainedTokenizerBase | None
) -> list[tuple[Likely, ...]]:
    """The `count` likeliest tokens of each row of `logits` (n, vocabulary), likeliest first."""
    probabilities = logits.float().softmax(-1).topk(min(count, logits.shape[-1]), dim=-1)
    return [
        tuple(
            Likely(word, probability) for word, probability in zip(words, row.tolist(), strict=True)
        )
        for row, words in zip(
            probabilities.values,
            (token_texts(row, tokenizer) for row in probabilities.indices.tolist()),
            strict=True,
        )
    ]


def token_texts(tokens: Iterable[int], tokenizer: PreTrainedTokenizerBase | None) -> list[str]:
    """Each token as text; its number where there is no tokenizer or no such token."""
    return [
        str(token) if tokenizer is None or token < 0 else str(tokenizer.decode([token]))
        for token in tokens
    ]
