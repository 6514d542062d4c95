"""A task by its name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import TaskError
from ..core.format import counted
from ..core.progress import note
from .answers import EXTENTS
from .contrast import CONTRASTS, contrast
from .ioi import ioi
from .pairs import check_lines, pairs_task, read_pairs
from .pairset import PairSet, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NAMES = ("ioi", *CONTRASTS)
MAP_PAIRS = 32


def check_task(
    name: str,
    test: Path | str | None = None,
    pairs: int | None = None,
    answers: str = "whole",
    skip: bool = False,
) -> None:
    """What can be refused before a model is there. Raises `TaskError`."""
    _check(name, test, pairs, answers)
    if name not in NAMES:
        for file in (name, test):
            if file is not None:
                check_lines(file, skip=skip)


def _check(name: str, test: Path | str | None, pairs: int | None, answers: str) -> None:
    if answers not in EXTENTS:
        raise TaskError(f"--answers {answers}: one of {', '.join(EXTENTS)}")
    if pairs is not None and pairs < 1:
        raise TaskError(f"--pairs {pairs}: at least one pair is needed")
    if name in NAMES and test is not None:
        raise TaskError(
            f"--test-pairs goes with --task FILE, not with the task {name}, "
            "of which --pairs N uses fewer pairs"
        )
    if name not in NAMES and not name.endswith((".jsonl", ".json")):
        known = ", ".join(f"`{name}`" for name in NAMES)
        raise TaskError(f"unknown task '{name}': {known}, or a JSON Lines file ending in .jsonl")


def named_task(
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    test: Path | str | None = None,
    *,
    pairs: int | None = None,
    seed: int = 0,
    answers: str = "whole",
    skip: bool = False,
) -> Task:
    """One of `NAMES`, or a task from a `.jsonl` file of pairs (`test`: another file to judge on).

    `pairs`: at most that many to fit and to judge on. `answers`: `first` compares of longer answers
    the first tokens where they part, and says so. `skip` leaves out bad lines of a file. Raises
    `TaskError` for an unknown name and for what the task itself refuses.
    """
    _check(name, test, pairs, answers)
    sizes = {} if pairs is None else {"train": pairs, "test": pairs}
    if name == "ioi":
        return ioi(tokenizer, seed=seed, **sizes)
    if name in CONTRASTS:
        return contrast(tokenizer, name, seed=seed, **sizes)
    task = pairs_task(tokenizer, Path(name), test, skip=skip)
    if answers == "first":
        longer = task.longer_answers
        if longer:
            many = counted(longer, "pair")
            note(f"of the answers of {many} the first tokens where they part are compared")
        task = task.first_tokens()
    if pairs is None:
        return task
    return Task(task.name, task.train[:pairs], task.test[:pairs], task.held_out)


def named_pairs(
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    test: Path | str | None = None,
    *,
    pairs: int | None = None,
    seed: int = 0,
    skip: bool = False,
    answers: str = "whole",
) -> PairSet:
    """Pairs to look at, with no split: all of a file (`test`, where there is one), or at most
    `pairs`; the test pairs of one of `NAMES`, by default 32. Raises what `named_task` does."""
    if name in NAMES:
        chosen = named_task(tokenizer, name, test, pairs=pairs or MAP_PAIRS, seed=seed).test
    else:
        _check(name, test, pairs, answers)
        chosen = read_pairs(test or name, tokenizer, "test" if test else "all", skip=skip)
        if answers == "first":
            chosen = chosen.first_tokens()
    return chosen[:pairs]
