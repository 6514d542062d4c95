"""Answers of any length: what of them is compared, and after what.

Each accepted answer or target is a continuation, the tokens of one text. What all of a pair begin
with says nothing of either: it goes to the prompts, and the continuations begin where they part.
log p(answers) - log p(targets) is the same with it and without, each side the sum over what it
accepts; of two single tokens it is their logit difference.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations

from ..core.errors import TaskError

Tokens = tuple[int, ...]
EXTENTS = ("whole", "first")
"""What of an answer counts: all of it, or its first token where the answers part."""


@dataclass(frozen=True)
class Continuations:
    """What is accepted as answer and as target after the prompts of a pair: token ids of each, none
    of which is the beginning of another.

    >>> Continuations(answers=((5, 6), (7,)), targets=((8, 9),)).passes
    ((5,), (8,))
    """

    answers: tuple[Tokens, ...]
    targets: tuple[Tokens, ...]

    @property
    def all(self) -> tuple[Tokens, ...]:
        """Answers, then targets."""
        return (*self.answers, *self.targets)

    @property
    def plain(self) -> bool:
        """Whether there is one token on either side."""
        return len(self.all) == 2 and self.longest == 1

    @cached_property
    def passes(self) -> tuple[Tokens, ...]:
        """What is put behind the prompt so that every token is predicted once: all continuations
        less their last tokens, but for those that another begins with, in the order of the ids and
        of one length: what repeats the last token is not read."""
        before = sorted({each[:-1] for each in self.all})
        kept = [x for x in before if not any(x != y and starts(y, x) for y in before)]
        longest = max(map(len, kept))
        return tuple(x + x[-1:] * (longest - len(x)) for x in kept)

    @property
    def longest(self) -> int:
        """Tokens of the longest."""
        return max(map(len, self.all))

    def exchanged(self) -> Continuations:
        return Continuations(self.targets, self.answers)


def starts(tokens: Tokens, beginning: Tokens) -> bool:
    """Whether `tokens` begin so."""
    return tokens[: len(beginning)] == beginning


def common_beginning(texts: Iterable[Tokens]) -> Tokens:
    """The tokens with which all begin, at most all but the last of each."""
    each = tuple(texts)
    length = 0
    while all(len(x) > length + 1 for x in each) and len({x[length] for x in each}) == 1:
        length += 1
    return each[0][:length]


@dataclass(frozen=True)
class Compared:
    """What of the answers of a pair is compared (`accepted`), after which tokens that all of them
    begin with (`beginning`), and with which tokens that goes on which each variable predicts."""

    beginning: Tokens
    accepted: Continuations
    predictions: Mapping[str, Tokens]

    @classmethod
    def of(
        cls,
        answers: Mapping[str, Tokens],
        targets: Mapping[str, Tokens],
        where: str,
        predicted: Mapping[str, tuple[str, Tokens]] | None = None,
    ) -> Compared:
        """From the tokens of each accepted text, and the text, with its tokens, that each variable
        predicts.

        Raises `TaskError` if an accepted text is the beginning of another, so that who says one
        says the other too, or if two texts, of which a variable predicts one, begin alike.
        """
        predicted = predicted or {}
        texts = [*answers.items(), *targets.items()]
        _refuse_nested([*["answer"] * len(answers), *["target"] * len(targets)], texts, where)
        every = [tokens for _, tokens in (*texts, *predicted.values())]
        beginning = common_beginning(every)
        cut = len(beginning)
        sides = [{tokens[cut:] for tokens in side.values()} for side in (answers, targets)]
        first: dict[Tokens, set[str]] = {}
        for text, tokens in (*texts, *predicted.values()):
            first.setdefault(tokens[cut : cut + 1], set()).add(text)
        predictions: dict[str, Tokens] = {}
        for name, (text, tokens) in predicted.items():
            alike = first[tokens[cut : cut + 1]] - {text}
            side = next((side for side in sides if tokens[cut:] in side), None)
            if alike and (side is None or not alike <= {*answers, *targets}):
                raise TaskError(
                    f"{where}: {text!r}, which variable {name} predicts, begins with the same "
                    f"token as {min(alike)!r}: choose others"
                )
            firsts = sorted({tokens[0] for tokens in side}) if side else [tokens[cut]]
            predictions[name] = tuple(firsts)
        return cls(
            beginning,
            Continuations(
                tuple(tokens[cut:] for tokens in answers.values()),
                tuple(tokens[cut:] for tokens in targets.values()),
            ),
            predictions,
        )


def _refuse_nested(sides: Sequence[str], texts: Sequence[tuple[str, Tokens]], where: str) -> None:
    for i, j in permutations(range(len(texts)), 2):
        (short, beginning), (long, tokens) = texts[i], texts[j]
        if not starts(tokens, beginning):
            continue
        if tokens == beginning:
            kind = "token" if len(tokens) == 1 else "tokens"
            raise TaskError(
                f"{where}: {sides[i]} {short!r} and {sides[j]} {long!r} are the same {kind}: "
                "choose others"
            )
        raise TaskError(
            f"{where}: {sides[i]} {short!r} is the beginning of {sides[j]} {long!r}, so that who "
            "says the second says the first too: leave one out, or let the first go on"
        )
