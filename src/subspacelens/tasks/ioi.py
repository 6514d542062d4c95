"""Indirect object identification (Wang et al. 2022; arXiv 2311.17030, section on IOI).

"Then, Mary and John met at the park. John gave the ring to" goes on with " Mary", the indirect
object (IO), because the subject (S) is the name that is repeated. Base and source differ only in
the order of the first two names, so they hold the same words in the same number of tokens:

    ABB, z = 0   Then, Mary(IO) and John(S1) met at the park. John(S2) gave the ring to(END)
    BAB, z = 1   Then, John(S1) and Mary(IO) met at the park. John(S2) gave the ring to(END)

z is the *position* of the repeated name, not which name it is. At S2 the model notes that the
name there repeats the second (z = 0) or the first (z = 1), and later heads inhibit the name in
that position. With z taken from the source, the base's IO stands where the repeated name is said
to be, so the model is expected to say the base's S: answer = IO, target = S.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files
from math import prod
from typing import TYPE_CHECKING

from ..core.errors import TaskError
from .pairset import Pair, PairSet, Task
from .tokens import encode, tokenize_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PATTERNS = ({"A": "IO", "B": "S1", "C": "S2"}, {"A": "S1", "B": "IO", "C": "S2"})  # ABB, BAB
_LABELS = ("IO", "S1", "S2")
_MIN_NAMES = 4
_MIN_WORDS = 4
_SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Words:
    """Names that are one token, and objects and places that need not be."""

    names: tuple[str, ...]
    objects: tuple[str, ...]
    places: tuple[str, ...]

    def half(self, which: int) -> Words:
        return Words(*(getattr(self, field.name)[which::2] for field in fields(self)))


@dataclass(frozen=True)
class IoiData:
    """The file of words, and of templates to fit on and to hold out."""

    words: Words
    train: Mapping[str, str]
    held_out: Mapping[str, str]


def ioi(
    tokenizer: PreTrainedTokenizerBase,
    *,
    train: int = 192,
    test: int = 200,
    held_out: int = 64,
    seed: int = 0,
) -> Task:
    """IOI pairs with labels IO, S1, S2 and END, `train`, `test` and `held_out` of them.

    Train and test share templates, but no name, object or place; the held-out pairs have the
    test's words in templates of their own (`held_out=0`: none). Pairs alternate between an ABB
    base with a BAB source and the reverse. No two pairs of a task share a prompt. Every name is
    one token after a space; objects and places are too where the tokenizer has enough of them.
    A split depends on the seed, its size and the tokenizer's vocabulary, on nothing else, and a
    smaller one is the beginning of a larger one.

    Raises `TaskError` if a size is too small or larger than the words allow, or if the tokenizer
    has fewer than four single-token names a split.

    >>> task = ioi(lens.tokenizer, train=64, test=64)
    >>> task.train[0].base.text
    """
    for name, size, least in (("train", train, 1), ("test", test, 1), ("held_out", held_out, 0)):
        if size < least:
            raise TaskError(f"ioi: {name}={size}: give at least {least}")
    data = ioi_data()
    tokens, words = known_words(tokenizer)

    def split(name: str, half: int, templates: Mapping[str, str], size: int) -> PairSet:
        rng = random.Random(f"ioi/{name}/{seed}")
        return PairSet(
            "ioi", name, pairs_of(tokenizer, name, tokens, words.half(half), templates, size, rng)
        )

    return Task(
        "ioi",
        split("train", 0, data.train, train),
        split("test", 1, data.train, test),
        split("held_out", 1, data.held_out, held_out) if held_out else None,
    )


@cache
def ioi_data() -> IoiData:
    raw = json.loads(
        files("subspacelens.tasks").joinpath("data/ioi.json").read_text(encoding="utf-8")
    )
    words = Words(*(tuple(raw[field.name]) for field in fields(Words)))
    return IoiData(words, raw["templates"]["train"], raw["templates"]["held_out"])


def known_words(tokenizer: PreTrainedTokenizerBase) -> tuple[dict[str, int], Words]:
    """The names that are one token, with their tokens, and all words to be used. Raises `TaskError`
    for too few names."""
    data = ioi_data()
    tokens = _single_tokens(tokenizer, data.words.names)
    if len(tokens) < 2 * _MIN_NAMES:
        raise TaskError(
            f"ioi: {len(tokens)} of {len(data.words.names)} names are one token to this tokenizer, "
            f"{2 * _MIN_NAMES} are needed ({_MIN_NAMES} a split): "
            "use another model, or pairs of your own"
        )
    words = Words(
        tuple(tokens),
        _preferred(tokenizer, data.words.objects),
        _preferred(tokenizer, data.words.places),
    )
    return tokens, words


def _single_tokens(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> dict[str, int]:
    tokens = {word: _token(tokenizer, word) for word in words}
    return {word: token for word, token in tokens.items() if token is not None}


def _preferred(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> tuple[str, ...]:
    single = tuple(_single_tokens(tokenizer, words))
    return single if len(single) >= _MIN_WORDS else tuple(words)


def _token(tokenizer: PreTrainedTokenizerBase, word: str) -> int | None:
    """The token that continues "... to" by `word`, or None if that takes more than one."""
    before, after = encode(tokenizer, "to"), encode(tokenizer, f"to {word}")
    if len(after) != len(before) + 1 or after[:-1] != before:
        return None
    return None if after[-1] == tokenizer.unk_token_id else after[-1]


def pairs_of(
    tokenizer: PreTrainedTokenizerBase,
    split: str,
    tokens: Mapping[str, int],
    words: Words,
    templates: Mapping[str, str],
    size: int,
    rng: random.Random,
) -> tuple[Pair, ...]:
    """`size` pairs of `split`, the templates by turns, two of each in a row: one of either
    direction. No base comes twice; raises `TaskError` where a template has too few words."""
    ids = tuple(templates)
    plan = [ids[index // 2 % len(ids)] for index in range(size)]
    for template, uses in Counter(plan).items():
        if uses > (most := _capacity(templates[template], words)):
            raise TaskError(
                f"ioi: {split}={size}: template {template} makes only {most} different pairs of "
                f"this tokenizer's words, and {uses} are needed: ask for fewer"
            )
    pairs: list[Pair] = []
    drawn: set[str] = set()
    for index, template in enumerate(plan):
        while True:
            io, subject = rng.sample(words.names, 2)
            slots = {
                "IO": io,
                "S1": subject,
                "S2": subject,
                "object": rng.choice(words.objects),
                "place": rng.choice(words.places),
            }
            if "{third}" in templates[template]:
                others = [name for name in words.names if name not in (io, subject)]
                slots["third"] = rng.choice(others)
            texts = [_fill(templates[template], slots, pattern) for pattern in _PATTERNS]
            if texts[0][0] not in drawn:
                break
        drawn.add(texts[0][0])
        prompts = [tokenize_prompt(tokenizer, *filled, f"ioi: {template}") for filled in texts]
        z = index % 2
        pair = Pair(
            base=prompts[z], source=prompts[1 - z], answer=tokens[io], target=tokens[subject],
            template=template, z=(z, 1 - z),
        )  # fmt: skip
        _check_names(pair)
        pairs.append(pair)
    return tuple(pairs)


def _capacity(template: str, words: Words) -> int:
    choices = {"object": len(words.objects), "place": len(words.places)}
    slots = set(_SLOT.findall(template))
    names = len(words.names)
    return names * (names - 1) * prod(n for slot, n in choices.items() if slot in slots)


def _fill(
    template: str, slots: Mapping[str, str], pattern: Mapping[str, str]
) -> tuple[str, dict[str, tuple[int, int]]]:
    text, spans = "", {}
    for index, part in enumerate(_SLOT.split(template)):
        if index % 2:
            label = pattern.get(part, part)
            part = slots[label]
            if label in _LABELS:
                spans[label] = (len(text), len(text) + len(part))
        text += part
    return text, {label: spans[label] for label in _LABELS}


def _check_names(pair: Pair) -> None:
    expected = {"IO": pair.answer, "S1": pair.target, "S2": pair.target}
    for prompt in (pair.base, pair.source):
        tokens = {label: prompt.ids[prompt.columns[label]] for label in expected}
        if tokens != expected or len(prompt.ids) != len(pair.base.ids):
            raise TaskError(
                f"ioi: {pair.template}: this tokenizer splits names otherwise inside a sentence "
                f"({prompt.text!r}): use another model, or pairs of your own"
            )
