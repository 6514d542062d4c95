"""The one form in which every task hands over its data: pairs of a base and a source prompt."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, overload

from ..core.errors import TaskError
from ..core.format import counted
from ..core.statistics import Units
from .answers import Compared, Continuations, Tokens

Value = str | int
"""One value of a feature."""


@dataclass(frozen=True)
class Prompt:
    """A tokenised prompt. `columns` says at which token column each label falls; `END` is always
    there and is the last column, unless what a pair's answers begin with alike follows it.

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
    feature z has the source's value. Where answers are of several tokens, or several are accepted,
    `continuations` has them all, and these two are the first tokens of the first of either side.
    `z` is the feature's value in base and source, 0 and 1 or any two labels. `variables` are the
    values of several features by name, in base and source, and `predictions` the tokens of which
    one is expected first if what is patched carries that feature alone. Pairs of one `group`, such
    as an entity, are no independent draws. `where` says where the pair was written, such as a file
    and its line.

    >>> pair = ioi(lens.tokenizer).test[0]
    >>> pair.base.text, lens.tokenizer.decode(pair.answer)
    """

    base: Prompt
    source: Prompt
    answer: int
    target: int
    template: str = ""
    z: tuple[Value, Value] | None = None
    group: str = ""
    continuations: Continuations | None = None
    variables: Mapping[str, tuple[Value, Value]] = field(default_factory=dict)
    predictions: Mapping[str, Tokens] = field(default_factory=dict)
    where: str = field(default="", compare=False, repr=False)

    @classmethod
    def comparing(
        cls, compared: Compared, beginning: str, base: Prompt, source: Prompt, **rest: Any
    ) -> Pair:
        """A pair whose answers are compared where they part; both prompts go on with what they
        begin with alike, `beginning` as a text. `rest` are other fields."""
        base, source = (
            replace(p, text=p.text + beginning, ids=p.ids + compared.beginning)
            for p in (base, source)
        )
        accepted = compared.accepted
        return cls(
            base=base,
            source=source,
            answer=accepted.answers[0][0],
            target=accepted.targets[0][0],
            continuations=None if accepted.plain else accepted,
            predictions=compared.predictions,
            **rest,
        )

    @property
    def accepted(self) -> Continuations:
        """Answers and targets as token ids, however many."""
        return self.continuations or Continuations(((self.answer,),), ((self.target,),))

    @property
    def reads(self) -> tuple[Prompt, ...]:
        """What the model has to read for the base: the prompt itself, or one text for each of the
        passes that its continuations take."""
        if self.continuations is None:
            return (self.base,)
        return tuple(
            replace(self.base, ids=self.base.ids + more) for more in self.continuations.passes
        )

    def first_tokens(self) -> Pair:
        """The same with no more of its answers than their first tokens. Raises `TaskError` where
        these are not different on either side."""
        if self.continuations is None:
            return self
        sides = (self.continuations.answers, self.continuations.targets)
        answers, targets = (tuple(dict.fromkeys(x[:1] for x in side)) for side in sides)
        if not {*answers}.isdisjoint(targets):
            raise TaskError(
                f"{self.where or 'a pair'}: an answer and a target begin with the same token: "
                "compare the whole answers"
            )
        cut = Continuations(answers, targets)
        return replace(self, continuations=None if cut.plain else cut)

    def exchanged(self) -> Pair:
        """Answer and target exchanged."""
        turned = self.continuations and self.continuations.exchanged()
        return replace(self, answer=self.target, target=self.answer, continuations=turned)


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
        """Content hash over token ids, columns, answers, targets and features, in order."""
        record = [
            [
                [pair.base.ids, sorted(pair.base.columns.items())],
                [pair.source.ids, sorted(pair.source.columns.items())],
                pair.answer,
                pair.target,
                pair.z,
                *([pair.group] if pair.group else ()),
                *([pair.continuations.answers, pair.continuations.targets]
                  if pair.continuations else ()),
                *([sorted(pair.variables.items()), sorted(pair.predictions.items())]
                  if pair.variables else ()),
            ]
            for pair in self.pairs
        ]  # fmt: skip
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
        (see `exchanged`). What single features predict there is not known."""
        pairs = tuple(
            replace(
                p,
                base=p.source,
                source=p.base,
                z=p.z and (p.z[1], p.z[0]),
                variables={name: (b, a) for name, (a, b) in p.variables.items()},
                predictions={},
            )
            for p in self.pairs
        )
        return PairSet(self.name, f"{self.split}, reversed", pairs)

    def exchanged(self) -> PairSet:
        """Answer and target exchanged."""
        return PairSet(self.name, self.split, tuple(pair.exchanged() for pair in self.pairs))

    @cached_property
    def classes(self) -> tuple[Value, ...]:
        """The values of z, of bases and sources, in order, numbers first; none where a pair has no
        z."""
        known = [pair.z for pair in self.pairs if pair.z is not None]
        if len(known) < len(self):
            return ()
        values = {value for both in known for value in both}
        return tuple(sorted(values, key=lambda value: (isinstance(value, str), value)))

    def first_tokens(self) -> PairSet:
        """Of longer answers the first tokens where they part (`Pair.first_tokens`)."""
        return PairSet(self.name, self.split, tuple(pair.first_tokens() for pair in self.pairs))

    @cached_property
    def continued(self) -> bool:
        """Whether a pair has answers of several tokens, or several answers."""
        return any(pair.continuations is not None for pair in self.pairs)

    def where(self, number: int) -> str:
        """Where pair `number` was written, or else which one it is."""
        return self.pairs[number].where or f"task {self.name}, {self.split} pair {number}"

    def __repr__(self) -> str:
        count, labels = counted(len(self), "pair"), " ".join(self.labels)
        return f"PairSet({self.name}, {self.split}: {count}, labels {labels})"


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

    @property
    def splits(self) -> tuple[PairSet, ...]:
        return (self.train, self.test, *((self.held_out,) if self.held_out else ()))

    @property
    def longer_answers(self) -> int:
        """How many pairs have an answer of several tokens."""
        return sum(pair.accepted.longest > 1 for split in self.splits for pair in split)

    def first_tokens(self) -> Task:
        """Of longer answers the first tokens where they part (`Pair.first_tokens`).

        >>> task = pairs_task(lens.tokenizer, "pairs.jsonl").first_tokens()
        """
        return Task(self.name, *(split.first_tokens() for split in self.splits))

    def __repr__(self) -> str:
        held_out = "" if self.held_out is None else f", {len(self.held_out)} held out"
        return f"Task({self.name}: {len(self.train)} train, {len(self.test)} test{held_out})"
