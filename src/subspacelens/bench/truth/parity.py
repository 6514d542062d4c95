"""The task of the trained models: `BOS n0 n1 a b c SEP QRY` goes on with name n_z in form w.

z is the parity of the bits of a and b, w is the bit of c; eight words carry each bit by turns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from ...tasks.pairset import Pair, PairSet, Prompt, Task

NAMES, OPERANDS = 16, 8
MARKS = ("BOS", "SEP", "QRY")
FIRST_OPERAND = len(MARKS)
FIRST_NAME = FIRST_OPERAND + OPERANDS
FIRST_ANSWER = FIRST_NAME + NAMES
WORDS = (
    *MARKS,
    *(f"d{number}" for number in range(OPERANDS)),
    *(f"n{number}" for number in range(NAMES)),
    *(f"{form}{number}" for form in "xy" for number in range(NAMES)),
)
COLUMNS = {"B": 4, "SEP": 6, "END": 7}


@dataclass(frozen=True)
class Draw:
    """Prompts at random: token `ids` (n, 8), the two `names` (n, 2), and z and w (n,)."""

    ids: Tensor
    names: Tensor
    z: Tensor
    w: Tensor

    @classmethod
    def of(cls, count: int, generator: torch.Generator, even: float = 0.5) -> Draw:
        """`count` prompts; each bit is 0 with probability `even`."""
        names = torch.rand(count, NAMES, generator=generator).argsort(dim=1)[:, :2]
        bits = (torch.rand(count, 3, generator=generator) >= even).long()
        words = 2 * torch.randint(OPERANDS // 2, (count, 3), generator=generator) + bits
        marks = torch.arange(len(MARKS)).expand(count, -1)
        ids = torch.cat([marks[:, :1], FIRST_NAME + names, FIRST_OPERAND + words, marks[:, 1:]], 1)
        return cls(ids, names, bits[:, 0] ^ bits[:, 1], bits[:, 2])

    def answers(self, z: Tensor | None = None) -> Tensor:
        """Token ids (n,) of what is right, or of what would be if z were this."""
        name = self.names.gather(1, (self.z if z is None else z)[:, None])[:, 0]
        return FIRST_ANSWER + NAMES * self.w + name


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word of `WORDS`."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="BOS"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="BOS")


def parity_task(train: int = 128, test: int = 128, seed: int = 0) -> Task:
    """Pairs whose base and source differ in z; names, form and words are drawn anew for each.

    >>> parity_task(train=64, test=64).test[0].base.text
    """
    generator = torch.Generator().manual_seed(seed)
    pairs = tuple(_pairs(train + test, generator))
    splits = (PairSet("parity", "train", pairs[:train]), PairSet("parity", "test", pairs[train:]))
    return Task("parity", *splits)


def _pairs(count: int, generator: torch.Generator) -> Iterator[Pair]:
    base, source = (Draw.of(4 * count + 64, generator) for _ in range(2))
    different = (base.z != source.z).nonzero()[:count, 0].tolist()
    answers, targets = base.answers().tolist(), base.answers(source.z).tolist()
    for row in different:
        yield Pair(
            base=prompt(base.ids[row]),
            source=prompt(source.ids[row]),
            answer=answers[row],
            target=targets[row],
            template="parity",
            z=(int(base.z[row]), int(source.z[row])),
        )


def prompt(ids: Tensor) -> Prompt:
    """The prompt of these token ids (8,)."""
    numbers = tuple(ids.tolist())
    return Prompt(" ".join(WORDS[number] for number in numbers), numbers, COLUMNS)
