"""The one form in which every task hands over its data: pairs of a base and a source prompt."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import overload

from ..core.errors import TaskError
from ..core.statistics import Units


@dataclass(frozen=True)
class Prompt:
    """A tokenised prompt. `columns` says at which token column each label falls; `END` is always
    there and is the last column.

    >>> Prompt("Then, Mary", (10, 11, 12), {"NAME": 2, "END": 2}).columns["NAME"]
    2
    """

    text: str
    ids: tuple[int, ...]
    columns: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A base prompt and the source prompt that an activation is taken from.

    `answer` is the token id that is right for the base, `target` the one expected once the
    feature z has the source's value. `z` is the feature's value (0 or 1) in base and source.
    Pairs of one `group`, such as an entity, are no independent draws. `where` says where the pair
    was written, such as a file and its line.

    >>> pair = ioi(lens.tokenizer).test[0]
    >>> pair.base.text, lens.tokenizer.decode(pair.answer)
    """

    base: Prompt
    source: Prompt
    answer: int
    target: int
    template: str = ""
    z: tuple[int, int] | None = None
    group: str = ""
    where: str = field(default="", compare=False, repr=False)


@dataclass(frozen=True)
class PairSet(Sequence[Pair]):
    """Pairs of one split of one task. Raises `TaskError` when there are none.

    >>> pairs = ioi(lens.tokenizer).test[:64]  # slices are pair sets too
    >>> len(pairs), pairs.labels
    (64, ('IO', 'S1', 'S2', 'END'))
    """

    name: str
    split: str
    pairs: tuple[Pair, ...]

    def __post_init__(self) -> None:
        if not self.pairs:
            raise TaskError(f"task {self.name}: the {self.split} split has no pairs")

    def __len__(self) -> int:
        return len(self.pairs)

    @overload
    def __getitem__(self, index: int) -> Pair: ...

    @overload
    def __getitem__(self, index: slice) -> PairSet: ...

    def __getitem__(self, index: int | slice) -> Pair | PairSet:
        if isinstance(index, slice):
            return PairSet(self.name, self.split, self.pairs[index])
        return self.pairs[index]

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Labels that every prompt of every pair has."""
        common = set(self.pairs[0].base.columns)
        for pair in self.pairs:
            common &= set(pair.base.columns) & set(pair.source.columns)
        return tuple(label for label in self.pairs[0].base.columns if label in common)

    @cached_property
    def sha256(self) -> str:
        """Content hash over token ids, columns, answers and targets, in order."""
        record = [
            [
                [pair.base.ids, sorted(pair.base.columns.items())],
                [pair.source.ids, sorted(pair.source.columns.items())],
                pair.answer,
                pair.target,
                pair.z,
                *([pair.group] if pair.group else ()),
            ]
            for pair in self.pairs
        ]
        return hashlib.sha256(json.dumps(record).encode()).hexdigest()

    @cached_property
    def units(self) -> Units:
        """What could have come out otherwise: pairs that share a base prompt are one unit."""
        return Units.of(pair.base.ids for pair in self.pairs)

    def units_at(self, label: str) -> Units:
        """The same at a site of `label`, where an activation depends on the tokens up to there
        alone: pairs are one unit if they share these, of base or source, or a group."""
        return Units.joined(self._keys_at(label))

    def apart_from(self, other: PairSet, label: str) -> list[int]:
        """Which pairs share neither tokens up to `label`, of base or source, nor a group with any
        pair of `other`: positions, in order."""
        known = {key for keys in other._keys_at(label) for key in keys}
        return [i for i, keys in enumerate(self._keys_at(label)) if known.isdisjoint(keys)]

    def _keys_at(self, label: str) -> Iterator[tuple[Hashable, ...]]:
        for pair in self.pairs:
            prompts = (pair.base, pair.source)
            keys = tuple(prompt.ids[: prompt.columns[label] + 1] for prompt in prompts)
            yield (*keys, pair.group) if pair.group else keys

    def at(self, indices: Iterable[int]) -> PairSet:
        """The pairs at `indices`, in that order."""
        return PairSet(self.name, self.split, tuple(self.pairs[i] for i in indices))

    def swapped(self) -> PairSet:
        """Base and source exchanged; which of the two tokens is now right is for the model to say
        (see `exchanged`)."""
        pairs = tuple(
            replace(p, base=p.source, source=p.base, z=p.z and (p.z[1], p.z[0])) for p in self.pairs
        )
        return PairSet(self.name, f"{self.split}, reversed", pairs)

    def exchanged(self) -> PairSet:
        """Answer and target exchanged."""
        pairs = tuple(replace(p, answer=p.target, target=p.answer) for p in self.pairs)
        return PairSet(self.name, self.split, pairs)

    def where(self, number: int) -> str:
        """Where pair `number` was written, or else which one it is."""
        return self.pairs[number].where or f"task {self.name}, {self.split} pair {number}"

    def __repr__(self) -> str:
        return (
            f"PairSet({self.name}, {self.split}: {len(self)} pairs, labels {' '.join(self.labels)})"
        )


@dataclass(frozen=True)
class Task:
    """What a fit and an audit need: pairs to fit on, pairs to judge on, and, where the task has
    them, pairs of templates that the fit never saw.

    >>> ioi(lens.tokenizer)
    Task(ioi: 192 train, 200 test, 64 held out)
    """

    name: str
    train: PairSet
    test: PairSet
    held_out: PairSet | None = None

    def __repr__(self) -> str:
        held_out = "" if self.held_out is None else f", {len(self.held_out)} held out"
        return f"Task({self.name}: {len(self.train)} train, {len(self.test)} test{held_out})"
