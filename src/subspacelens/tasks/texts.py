"""Two lists of texts that differ in what a vector shall add, without answers. A line of a JSON
Lines file has some of either, or one:

    {"positive": ["I love this film", "What a day"], "negative": ["I hate this film", "Not again"]}
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from ..core.errors import TaskError
from ..core.files import regular
from .pairset import Pair, PairSet, Prompt, Task
from .tokens import tokenize_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    positive: list[str] | str = []
    negative: list[str] | str = []


def are_texts(path: Path | str) -> bool:
    """Whether the first line of a file has a list of texts, and not a pair."""
    try:
        with regular(Path(path)).open(encoding="utf-8") as file:
            first = json.loads(next(line for line in file if line.strip()))
    except (OSError, StopIteration, ValueError):
        return False
    return isinstance(first, dict) and bool({"positive", "negative"} & first.keys())


def texts_task(
    tokenizer: PreTrainedTokenizerBase, path: Path | str, *, pairs: int | None = None
) -> Task:
    """A task from such a file: z is 1 in texts of the positive list, and 0 in the others. One of
    either, in their order, is a pair, with the negative one as its base in every other; the first,
    the third and so on are there to say what is natural, the others to judge on, at most `pairs` of
    each. There are no answers: answer and target are one and the same token.

    Raises `TaskError`, with file and line, for a file that cannot be read, a line of another form,
    a text in both lists, and fewer than four of either.

    >>> task = texts_task(lens.tokenizer, "love.jsonl")
    """
    path = Path(path)
    lists: dict[int, dict[str, Prompt]] = {0: {}, 1: {}}
    for where, line in _lines(path):
        for z, texts in ((1, line.positive), (0, line.negative)):
            for text in [texts] if isinstance(texts, str) else texts:
                if text in lists[1 - z]:
                    raise TaskError(f"{where}: {text[:60]!r} is in both lists")
                lists[z].setdefault(text, tokenize_prompt(tokenizer, text, {}, where))
    count = min(len(texts) for texts in lists.values())
    if count < 4:
        raise TaskError(
            f"{path}: {len(lists[1])} positive and {len(lists[0])} negative texts: four of either "
            "at least, of which half are there to judge on"
        )
    both = zip(lists[0].values(), lists[1].values(), strict=False)
    made = [_pair(negative, positive, i // 2 % 2) for i, (negative, positive) in enumerate(both)]
    train, test = (tuple(made[start::2][:pairs]) for start in (0, 1))
    name = path.stem
    return Task(name, PairSet(name, "train", train), PairSet(name, "test", test))


def _pair(negative: Prompt, positive: Prompt, z: int) -> Pair:
    base, source = (negative, positive) if z == 0 else (positive, negative)
    return Pair(base=base, source=source, answer=0, target=0, z=(z, 1 - z))


def _lines(path: Path) -> list[tuple[str, _Line]]:
    try:
        content = regular(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise TaskError(f"{path}: cannot be read ({error.strerror}): give a file") from None
    except UnicodeDecodeError as error:
        raise TaskError(f"{path}: not UTF-8 (byte {error.start + 1})") from None
    lines = []
    for number, text in enumerate(content.split("\n"), start=1):
        if text.strip():
            where = f"{path}, line {number}"
            try:
                lines.append((where, _Line.model_validate_json(text)))
            except ValidationError:
                raise TaskError(
                    f'{where}: not of the form {{"positive": [texts], "negative": [texts]}}'
                ) from None
    return lines
