"""A task by its name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import TaskError
from .ioi import ioi
from .pairs import pairs_task
from .pairset import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def named_task(
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    test: Path | str | None = None,
    *,
    pairs: int | None = None,
    seed: int = 0,
) -> Task:
    """`ioi`, or a task from a `.jsonl` file of pairs (`test`: another file to judge on).

    `pairs`: at most that many to fit and to judge on. Raises `TaskError` for an unknown name and
    for what the task itself refuses.
    """
    if pairs is not None and pairs < 1:
        raise TaskError(f"pairs={pairs}: at least one pair is needed")
    if name == "ioi":
        if test is not None:
            raise TaskError("a file to test on goes with a file of pairs, not with the task ioi")
        sizes = {} if pairs is None else {"train": pairs, "test": pairs}
        return ioi(tokenizer, seed=seed, **sizes)
    if not name.endswith((".jsonl", ".json")):
        raise TaskError(f"unknown task '{name}': `ioi`, or a JSON Lines file ending in .jsonl")
    task = pairs_task(tokenizer, Path(name), test)
    if pairs is None:
        return task
    return Task(task.name, task.train[:pairs], task.test[:pairs], task.held_out)
