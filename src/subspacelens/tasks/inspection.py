"""What a set of pairs is like, before any model runs: labels, lengths, classes, spaces."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..core.format import counted
from .pairs import Lines
from .pairset import PairSet, Prompt, Value
from .tokens import doubles_bos, encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class LabelFacts:
    """Where a label stands. `columns`: the first and the last in the bases. `shifted` pairs have it
    in another column of the source; in `same` pairs all tokens up to it are those of the source, so
    that a patch there changes nothing. `units` is how many of the pairs are independent there."""

    label: str
    columns: tuple[int, int]
    shifted: int
    same: int
    units: int


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """`lengths`: tokens of the shortest and the longest prompt; `unequal` pairs have a base and a
    source of different lengths. `classes` counts prompts by z, empty where pairs lack it.

    >>> inspected(ioi(lens.tokenizer).test).labels
    """

    pairs: int
    labels: tuple[LabelFacts, ...]
    lengths: tuple[int, int]
    unequal: int
    classes: Mapping[Value, int]
    templates: int
    groups: int


def inspected(pairs: PairSet) -> Inspection:
    """What the pairs are like."""
    lengths = [(len(pair.base.ids), len(pair.source.ids)) for pair in pairs]
    z = [value for pair in pairs if pair.z for value in pair.z]
    return Inspection(
        pairs=len(pairs),
        labels=tuple(_facts(pairs, label) for label in pairs.labels),
        lengths=(min(map(min, lengths)), max(map(max, lengths))),
        unequal=sum(base != source for base, source in lengths),
        classes=dict(sorted(Counter(z).items(), key=str)) if len(z) == 2 * len(pairs) else {},
        templates=len({pair.template for pair in pairs}),
        groups=len({pair.group for pair in pairs if pair.group}),
    )


def _facts(pairs: PairSet, label: str) -> LabelFacts:
    def until(prompt: Prompt) -> tuple[int, ...]:
        return prompt.ids[: prompt.columns[label] + 1]

    columns = [pair.base.columns[label] for pair in pairs]
    return LabelFacts(
        label=label,
        columns=(min(columns), max(columns)),
        shifted=sum(pair.base.columns[label] != pair.source.columns[label] for pair in pairs),
        same=sum(until(pair.base) == until(pair.source) for pair in pairs),
        units=pairs.units_at(label).count,
    )


def remarks(reading: Lines, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """What in the text of the pairs may be meant otherwise: a beginning-of-text token that the
    tokenizer adds itself, and spaces that make an answer another token."""
    prompts = [prompt for row in reading.rows for prompt in (row.pair.base, row.pair.source)]
    doubled = sum(doubles_bos(tokenizer, prompt.text) for prompt in prompts)
    if doubled:
        yield (
            f"at the beginning of {counted(doubled, 'prompt')} is {tokenizer.bos_token}, which the "
            "tokenizer adds itself: it is there once"
        )
    spaced = sum(prompt.text.endswith(" ") for prompt in prompts)
    if spaced:
        yield (
            f"at the end of {counted(spaced, 'prompt')} is a space, which is part of the next "
            "word's token: take it away, and begin the answers with it"
        )
    odd = [
        (row.where, text)
        for row in reading.rows
        for text in row.texts
        if not _follows(tokenizer, row.pair.base.text, text)
    ]
    if odd:
        where, text = odd[0]
        bare = text.lstrip()
        yield (
            f"{len(odd)} answers or targets are other tokens where they follow their prompt, such "
            f"as {text!r} ({where}): write {bare if text != bare else f' {text}'!r}"
        )


def _follows(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str) -> bool:
    """Whether prompt and answer, with a space between where two words would run together, are
    tokenised as the one and the other alone: so they are by a tokenizer that adds the space."""
    words = prompt[-1:].isalnum() and answer[:1].isalnum()
    together = encode(tokenizer, prompt + " " * words + answer)
    return together == encode(tokenizer, prompt) + encode(tokenizer, answer)
