"""Prompts that a model cannot read are refused before it runs, or left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

from ..core.errors import TaskError
from ..core.format import counted
from ..core.progress import note
from ..model.lens import LensModel
from ..tasks.pairset import Pair, PairSet, Task

Some = TypeVar("Some", Task, PairSet)


def check_fits(lens: LensModel, pairs: PairSet) -> None:
    """Raises `TaskError`, naming the pair by its file and line where it has them, for a prompt that
    is longer than the model's context, and for token ids that the model does not know."""
    for _, problem in misfits(lens, pairs):
        raise TaskError(problem)


def misfits(lens: LensModel, pairs: PairSet) -> Iterator[tuple[int, str]]:
    """The pairs that `check_fits` refuses, by number, each with what is wrong with it."""
    context, known = context_of(lens), lens.model.get_input_embeddings().get_parameter("weight")
    vocabulary = min(len(known), len(lens.map.tail.head.weight))
    for number, pair in enumerate(pairs.pairs):
        if problem := _problem(pair, context, vocabulary):
            yield number, f"{pairs.where(number)}: {problem}"


def fitting(lens: LensModel, pairs: Some) -> Some:
    """The pairs that the model can read, of a set or of each split of a task; a line counts the
    others. Raises `TaskError` for a split of which none is left, but leaves out held-out templates
    of which none is.

    >>> task = fitting(lens, pairs_task(lens.tokenizer, "pairs.jsonl", skip=True))
    """
    return without(partial(_problems, lens), pairs, "not fitting the model")


def without(problems: Callable[[PairSet], dict[int, str]], pairs: Some, what: str) -> Some:
    """The pairs, of a set or of each split of a task, in which `problems`, by number, finds none; a
    line counts the others, left out for `what`. Raises as `fitting`."""
    if isinstance(pairs, PairSet):
        kept, bad = _parted(problems, pairs)
        _count(pairs.name, bad, what)
        return pairs.at(kept)
    (train, first), (test, second) = (_parted(problems, p) for p in (pairs.train, pairs.test))
    held_out, third = _parted(problems, pairs.held_out) if pairs.held_out else ([], [])
    _count(pairs.name, [*first, *second, *third], what)
    return Task(
        pairs.name,
        pairs.train.at(train),
        pairs.test.at(test),
        pairs.held_out.at(held_out) if pairs.held_out and held_out else None,
    )


def _problems(lens: LensModel, pairs: PairSet) -> dict[int, str]:
    return dict(misfits(lens, pairs))


def _parted(
    problems: Callable[[PairSet], dict[int, str]], pairs: PairSet
) -> tuple[list[int], list[str]]:
    bad = problems(pairs)
    return [number for number in range(len(pairs)) if number not in bad], [*bad.values()]


def _count(name: str, problems: list[str], what: str) -> None:
    if problems:
        note(f"{name}: {counted(len(problems), 'pair')} left out for {what}, such as {problems[0]}")


def _problem(pair: Pair, context: int | None, vocabulary: int) -> str | None:
    if context is not None:
        for role, prompt in (("base", pair.base), ("source", pair.source)):
            if len(prompt.ids) > context:
                return (
                    f"the {role} has {len(prompt.ids)} tokens, and the model's context is "
                    f"{context}: shorten it"
                )
        whole = len(pair.base.ids) + max(map(len, pair.accepted.passes))
        if whole > context:
            return (
                f"base and answers have {whole} tokens, and the model's context is {context}: "
                "shorten them"
            )
    answers = (token for tokens in pair.accepted.all for token in tokens)
    predicted = (token for tokens in pair.predictions.values() for token in tokens)
    largest = max(*pair.base.ids, *pair.source.ids, *answers, *predicted)
    if largest >= vocabulary:
        return (
            f"token id {largest} is beyond the model's vocabulary of {vocabulary}: use the model's "
            "own tokenizer"
        )
    return None


def context_of(lens: LensModel) -> int | None:
    """How many columns the model was made for, or None where its configuration does not say."""
    config = lens.model.config.get_text_config(decoder=True)
    for name in ("max_position_embeddings", "max_seq_len"):
        if isinstance(size := getattr(config, name, None), int):
            return size
    return None
