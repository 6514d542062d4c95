"""Tasks in which one contrasted word decides the answer.

`agreement`: "The keys near the bank" goes on with " are", "The key near the bank" with " is"; z is
the number of the subject (label SUBJ). `pronoun`: "Then Mary left the bank because" goes on with
" she", with John it goes on with " he"; z is the gender that the name (label NAME) is usual for.
`animacy`: "They told me about the teacher at the bank," goes on with " who", with the lamp it goes
on with " which"; z is whether the noun (label NOUN) is a person. `sentiment`: "At the bank the
lovely day made her feel very" goes on with " happy", the awful day with " sad"; z is whether the
adjective (label ADJ) is a good one. `food`: "At the bakery the woman gave me some bread to" goes on
with " eat", some water with " drink". `warmth`: "At the castle they talked about the fire, because
it was very" goes on with " hot", about the ice with " cold"; z is the kind of noun (label NOUN) in
both. Base and source differ in that word alone: answer = what is right for the base, target = for
the source.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from ..core.errors import TaskError
from .pairset import Pair, PairSet, Task
from .tokens import answer_token, encode, tokenize_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONTRASTS = ("agreement", "pronoun", "animacy", "sentiment", "food", "warmth")
_MIN_WORDS = 4


def contrast(
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    *,
    train: int = 192,
    test: int = 200,
    held_out: int = 64,
    seed: int = 0,
) -> Task:
    """Pairs of the contrast `name`, one of `CONTRASTS`, with its label and END.

    Train and test share templates, but no contrasted word and no place; the held-out pairs have
    the test's words in templates of their own (`held_out=0`: none). z alternates. A split depends
    on the seed, its size and the tokenizer's vocabulary, on nothing else.

    Raises `TaskError` for an unknown name, a size that is too small or larger than the words allow,
    or a tokenizer to which too few words are single tokens.

    >>> contrast(lens.tokenizer, "pronoun").train[0].base.text
    """
    if name not in CONTRASTS:
        raise TaskError(f"unknown contrast '{name}': one of {', '.join(CONTRASTS)}")
    for which, size, least in (("train", train, 1), ("test", test, 1), ("held_out", held_out, 0)):
        if size < least:
            raise TaskError(f"{name}: {which}={size}: give at least {least}")
    data = _data()[name]
    classes = _usable(tokenizer, data)
    if min(map(len, classes)) < 2 * _MIN_WORDS:
        raise TaskError(
            f"{name}: to this tokenizer only {min(map(len, classes))} of the contrasted words are "
            f"one token, {2 * _MIN_WORDS} are needed: use another model, or pairs of your own"
        )
    answers = [answer_token(tokenizer, text, name) for text in data["answers"]]

    def split(of: str, half: int, templates: Mapping[str, str], size: int) -> PairSet:
        words = [words[half::2] for words in classes]
        fillers = data["fillers"][half::2]
        rng = random.Random(f"{name}/{of}/{seed}")
        most = len(templates) * len(fillers) * min(map(len, words))
        if size > most:
            raise TaskError(f"{name}: {of}={size}: the words make {most} different pairs at most")
        pairs: list[Pair] = []
        drawn: set[tuple[str, str, str]] = set()
        while len(pairs) < size:
            template, text = list(templates.items())[len(pairs) // 2 % len(templates)]
            z, filler = len(pairs) % 2, rng.choice(fillers)
            first = rng.randrange(min(map(len, words)))
            other = first if data["paired"] else rng.randrange(len(words[1 - z]))
            chosen = words[z][first], words[1 - z][other]
            if (template, filler, chosen[0]) in drawn:
                continue
            drawn.add((template, filler, chosen[0]))
            base, source = (
                _prompt(tokenizer, text, word, filler, data["label"], f"{name}: {template}")
                for word in chosen
            )
            if len(base.ids) != len(source.ids):
                raise TaskError(
                    f"{name}: {template}: this tokenizer splits '{chosen[0]}' or '{chosen[1]}' "
                    "otherwise inside a sentence: use another model, or pairs of your own"
                )
            pairs.append(
                Pair(
                    base=base, source=source, answer=answers[z], target=answers[1 - z],
                    template=template, z=(z, 1 - z),
                )
            )  # fmt: skip
        return PairSet(name, of, tuple(pairs))

    return Task(
        name,
        split("train", 0, data["train"], train),
        split("test", 1, data["train"], test),
        split("held_out", 1, data["held_out"], held_out) if held_out else None,
    )


@cache
def _data() -> dict[str, Any]:
    path = files("subspacelens.tasks").joinpath("data/contrasts.json")
    return json.loads(path.read_text(encoding="utf-8"))


def _usable(tokenizer: PreTrainedTokenizerBase, data: dict[str, Any]) -> list[list[str]]:
    """The words of either class that are one token; with `paired`, those whose partner is too."""

    def single(word: str) -> bool:
        return len(encode(tokenizer, f"the {word}")) == len(encode(tokenizer, "the")) + 1

    if not data["paired"]:
        return [[word for word in words if single(word)] for words in data["words"]]
    both = [pair for pair in zip(*data["words"], strict=True) if all(map(single, pair))]
    return [list(words) for words in zip(*both, strict=True)] or [[], []]


def _prompt(
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    word: str,
    filler: str,
    label: str,
    where: str,
):
    before, after = template.split("{X}")
    before, after = (part.format(filler=filler) for part in (before, after))
    span = len(before), len(before) + len(word)
    return tokenize_prompt(tokenizer, before + word + after, {label: span}, where)
