"""The user's own pairs, from a JSON Lines file or as dicts of the same form. A line is one pair:

    {"base": "The capital of France is", "source": "The capital of Italy is",
     "answer": " Paris", "target": " Rome",
     "tokens": {"subject": {"base": "France", "source": "Italy"}},
     "template": "capital", "z": {"base": 0, "source": 1}, "group": "Europe"}

`answer` is right for the base, `target` is expected once the feature z comes from the source;
each is written with its leading space if the prompt ends without one, and may be of several tokens,
or a list of all that is accepted, [" Paris", " paris"] (`answers`). A prompt is text, or
{"messages": [{"role": "user", "content": "..."}]}, which the model's chat template turns into text
(`chats`). `tokens` says where each label is, on either side, or on both with one text: a piece of
the prompt's text (`labels`) or characters [start, end) of it. The label names the last token that
these touch; `END`, the last token, is always there. Pairs of one `group` are no independent draws
and stay on one side of a split. z is a whole number or a text. `tokens`, `template`, `z` and
`group` may be left out. Where no pair has z, the answers tell it, if they are but two, or if each
of them is the answer of many bases or the target of many sources.

Where several features could be what a patch carries, `variables` names them, with their values, and
what the model should then say if what is patched carries that one alone:

    "variables": {"position": {"base": "first", "source": "second", "predicts": " Rome"},
                  "name": {"base": "Paris", "source": "Rome", "predicts": " Paris"}}

`predicts` may be left out: a variable that is the same in base and source predicts the answer, of
another nothing is known. `sl.agreement` counts who is right where they predict different answers.
"""

from __future__ import annotations

import reprlib
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainValidator,
    Tag,
    ValidationError,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from ..core.errors import TaskError
from ..core.files import regular
from ..core.format import counted
from ..core.progress import note
from .answers import Compared
from .chats import chat_text
from .dicts import Source, dict_lines, in_memory, name_of
from .dividing import (
    Row,
    divide_prompts,
    divide_templates,
    refuse_shared_prompts,
    refuse_shared_templates,
)
from .labels import span_of
from .pairset import Pair, PairSet, Prompt, Task, Value
from .tokens import answer_tokens, tokenize_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


MANY = 8
"""Of more than two answers each must be that of so many prompts, or they tell no z."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def _texts(value: Any) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if isinstance(texts, list) and texts and all(isinstance(each, str) for each in texts):
        return tuple(texts)
    raise PydanticCustomError("texts", "neither text nor texts")


def _piece(value: Any) -> str | tuple[int, int]:
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple) and [type(each) for each in value] == [int, int]:
        return value[0], value[1]
    raise PydanticCustomError("piece", "neither text nor a span")


_Piece = Annotated[str | tuple[int, int], PlainValidator(_piece)]


class _Place(_Strict):
    base: _Piece
    source: _Piece


def _place(value: Any) -> Any:
    """One text stands for both sides."""
    return {"base": value, "source": value} if isinstance(value, str) else value


class _Message(_Strict):
    role: str
    content: str


class _Chat(_Strict):
    messages: Annotated[tuple[_Message, ...], Field(strict=False, min_length=1)]


def _kind(value: Any) -> str:
    return "chat" if isinstance(value, dict | _Chat) else "text"


_Text = Annotated[Annotated[str, Tag("text")] | Annotated[_Chat, Tag("chat")], Discriminator(_kind)]


class _Z(_Strict):
    base: Value
    source: Value


class _Variable(_Z):
    predicts: str | None = None


_Texts = Annotated[tuple[str, ...], PlainValidator(_texts)]


class _Line(_Strict):
    base: _Text
    source: _Text
    answer: _Texts
    target: _Texts
    tokens: Mapping[str, Annotated[_Place, BeforeValidator(_place)]] = {}
    template: str = ""
    z: _Z | None = None
    group: str = ""
    variables: Mapping[str, _Variable] = {}


@dataclass(frozen=True)
class Lines:
    """What a file of pairs holds: the good lines as `rows`, and what is wrong with each of the
    others."""

    rows: tuple[Row, ...]
    problems: tuple[str, ...]

    def pairs(self, name: str, split: str = "train") -> PairSet:
        """All good lines, z told by the answers where it can be. Raises `TaskError` for none."""
        return _pair_set(name, split, _with_z(list(self.rows)))


def read_pairs(
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    split: str = "train",
    *,
    skip: bool = False,
) -> PairSet:
    """Every pair of a JSON Lines file, or of dicts of the same form, in order, as the split
    `split`; blank lines are skipped.

    Raises `TaskError`, with file and line, or `pairs[3]` for the fourth dict, for a file that
    cannot be read or has no pairs and, unless `skip` leaves them out, for the first line that is
    not the form above, repeats a pair, or
    does not fit the tokenizer.

    >>> read_pairs("pairs.jsonl", lens.tokenizer).labels
    >>> pair = {"base": "2 and 2 is", "source": "2 and 3 is", "answer": " 4", "target": " 5"}
    >>> read_pairs([pair], lens.tokenizer)
    """
    rows = _read(source, tokenizer, skip=skip)
    return _pair_set(name_of(source), split, _with_z(rows))


def check_lines(path: Path | str, *, skip: bool = False) -> None:
    """What of a file of pairs can be refused before a model is there: raises `TaskError` where it
    cannot be read or has no lines and, unless `skip` leaves them out, where lines are not of the
    form of a pair."""
    problems, lines = [], list(_lines(Path(path)))
    for where, text in [] if skip else lines:
        try:
            _parse(text, where)
        except TaskError as error:
            problems.append(str(error))
    _refuse(problems)
    if not lines:
        raise TaskError(f"{path}: no pairs: write one JSON object a line")


def read_lines(path: Path | str, tokenizer: PreTrainedTokenizerBase) -> Lines:
    """The good lines and all that is wrong with the others. Raises `TaskError` for a file that
    cannot be read."""
    return reading_of(_lines(Path(path)), tokenizer)


def reading_of(
    lines: Iterable[tuple[str, str | bytes]], tokenizer: PreTrainedTokenizerBase
) -> Lines:
    """The same of lines of JSON, each with where it is from."""
    rows: list[Row] = []
    problems: list[str] = []
    first: dict[Hashable, str] = {}
    for where, text in lines:
        try:
            line = _parse(text, where)
            texts = (line.answer[0], line.target[0])
            row = Row(where, _pair(line, tokenizer, where), texts)
            key = (row.pair.base.ids, row.pair.source.ids)
            if (earlier := first.setdefault(key, where)) != where:
                raise TaskError(f"{where}: repeats the base and source of {earlier}: remove one")
        except TaskError as error:
            problems.append(str(error))
        else:
            rows.append(row)
    return Lines(tuple(rows), tuple(problems))


def pairs_task(
    tokenizer: PreTrainedTokenizerBase,
    train: Source,
    test: Source | None = None,
    held_out: Source | None = None,
    *,
    name: str | None = None,
    skip: bool = False,
) -> Task:
    """A task from one file of pairs a split, or from one file alone; dicts of the same form may
    stand in place of any file. `name`: the file's stem. `skip` leaves out lines that cannot be read
    as a pair.

    Without `test`, the pairs of `train` are divided:

    - Pairs that share a base or source prompt, or its tokens up to a label, or a group, stay
      together. Such sets go to the test, in an order that depends on the prompts' text alone, until
      it has a third of the pairs; the largest always stays in train. Where tokens up to labels join
      more than two thirds of the pairs, whole prompts decide instead.
    - Before that, without `held_out` and with three templates or more, the last third of the
      templates, by first appearance and rounded down, becomes the held-out split. Templates that
      share a prompt count as one.

    No prompt is ever on two sides. Raises `TaskError` as `read_pairs` does, and if the files given
    share a prompt, the held-out file shares a template with train, or nothing is left to test on.

    >>> task = pairs_task(lens.tokenizer, "pairs.jsonl")  # a third of it becomes the test split
    >>> task = pairs_task(lens.tokenizer, [{"base": ..., "source": ..., ...}, ...], name="mine")
    """
    task = name_of(train) if name is None else name
    rows = _read(train, tokenizer, "train", skip=skip)
    held_out_rows = [] if held_out is None else _read(held_out, tokenizer, "held_out", skip=skip)
    refuse_shared_templates(rows, held_out_rows)
    test_rows = [] if test is None else _read(test, tokenizer, "test", skip=skip)
    told = _with_z([*rows, *test_rows, *held_out_rows])
    rows, told = told[: len(rows)], told[len(rows) :]
    test_rows, held_out_rows = told[: len(test_rows)], told[len(test_rows) :]
    if test is None:
        if held_out is None:
            rows, held_out_rows = divide_templates(rows)
        rows, test_rows = divide_prompts(rows, "the pairs" if in_memory(train) else str(train))
    refuse_shared_prompts(rows, test_rows, held_out_rows)
    return Task(
        task,
        _pair_set(task, "train", rows),
        _pair_set(task, "test", test_rows),
        _pair_set(task, "held_out", held_out_rows) if held_out_rows else None,
    )


def _pair_set(name: str, split: str, rows: Sequence[Row]) -> PairSet:
    return PairSet(name, split, tuple(row.pair for row in rows))


def _read(
    source: Source, tokenizer: PreTrainedTokenizerBase, name: str = "pairs", *, skip: bool
) -> list[Row]:
    """The pairs of a source; `name` is that of dicts in messages."""
    lines = dict_lines(source, name) if in_memory(source) else _lines(Path(source))
    reading, where = reading_of(lines, tokenizer), name if in_memory(source) else source
    if not skip:
        _refuse(reading.problems)
    if not reading.rows:
        raise TaskError(
            f"{where}: no pairs: write one JSON object a line, or give a dict for each"
            if not reading.problems
            else f"{where}: no line can be read as a pair: {reading.problems[0]}"
        )
    if reading.problems:
        count = counted(len(reading.problems), "line")
        note(f"{where}: {count} left out, such as {reading.problems[0]}")
    return list(reading.rows)


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        first, *others = problems
        more = f"{counted(len(others), 'more line')} {'is' if len(others) == 1 else 'are'} bad"
        more = f" ({more}: see `subspacelens check`, or --skip them)"
        raise TaskError(first + more * bool(others))


def _with_z(rows: list[Row]) -> list[Row]:
    """Where no pair of a task has z, and its answers and targets are but two, z is 1 for the one
    with the larger token ids; where they are more, each of `MANY` prompts, z is their text."""
    if any(row.pair.z for row in rows):
        return rows
    sides = [(row.pair.accepted.answers, row.pair.accepted.targets) for row in rows]
    two = {side: value for value, side in enumerate(sorted({x for both in sides for x in both}))}
    told: list[tuple[Value, Value]] = [row.texts for row in rows]
    if len(two) == 2:
        told = [(two[answers], two[targets]) for answers, targets in sides]
    elif min(Counter(text for both in told for text in both).values(), default=0) < MANY:
        return rows
    return [
        replace(row, pair=replace(row.pair, z=both)) for row, both in zip(rows, told, strict=True)
    ]


def _lines(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        content = regular(path).read_bytes()
    except OSError as error:
        raise TaskError(
            f"{path}: cannot be read ({error.strerror}): give a JSON Lines file of pairs"
        ) from None
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if line.strip():
            yield f"{path}, line {number}", line


def _parse(text: str | bytes, where: str) -> _Line:
    try:
        line = _Line.model_validate_json(text if isinstance(text, str) else text.decode())
    except UnicodeDecodeError as error:
        raise TaskError(
            f"{where}: not UTF-8 (byte {error.start + 1}): save the file as UTF-8"
        ) from None
    except ValidationError as error:
        problems = [_explain(problem) for problem in error.errors(include_url=False)[:3]]
        raise TaskError(f"{where}: {'; '.join(problems)}") from None
    if line.base == line.source:
        raise TaskError(f"{where}: base and source are the same text: they must differ in z")
    both = [text for text in line.answer if text in line.target]
    if both:
        raise TaskError(
            f"{where}: answer and target are both {both[0]!r}: "
            "target is what the source's z should bring out instead"
        )
    if line.z and line.z.base == line.z.source:
        raise TaskError(
            f"{where}: z is {line.z.base} in base and source: a pair must differ in z "
            "(or leave z out)"
        )
    return line


def _explain(problem: ErrorDetails) -> str:
    field = ".".join(map(str, problem["loc"]))
    shown = reprlib.repr(problem["input"])
    piece = "give a piece of the prompt's text, or [start, end) in characters, such as [5, 9]"
    match problem["type"], problem["loc"]:
        case "json_invalid", _:
            what = problem["msg"].removeprefix("Invalid JSON: ")
            return f"not JSON ({what}): write one JSON object a line"
        case "model_type", ():
            return "not a JSON object: write base, source, answer and target"
        case "piece", _:
            return f"field '{field}' is {shown}: {piece}"
        case _, ("tokens", _):
            return f"field '{field}' is {shown}: give base and source, or one text for both"
        case "string_type", ("base" | "source" as side, "text"):
            return f"field '{side}' is {shown}: write a string, or an object with messages"
        case _, ("base" | "source" as side, "chat", *inside):
            place = ".".join(map(str, inside))
            return (
                f"field '{side}{f'.{place}' if place else ''}': a chat is "
                '{"messages": [{"role": "user", "content": "..."}]}'
            )
        case "missing", _:
            return f"field '{field}' is missing: add it"
        case "extra_forbidden", (_,):
            return f"unknown field '{field}': there are {', '.join(_Line.model_fields)}"
        case "extra_forbidden", _:
            more = ", predicts" if problem["loc"][0] == "variables" else ""
            return f"unknown field '{field}': there are base, source{more}"
        case "texts", _:
            return f"field '{field}' is {shown}: write a string, or a list of strings"
        case _, ("z", side, *_):
            return f"field 'z.{side}' is {shown}: z is a whole number or a string"
        case _, ("variables", name, "base" | "source" as side, *_):
            return (
                f"field 'variables.{name}.{side}' is {shown}: a value is a whole number or a string"
            )
    wanted = "a string" if problem["type"] == "string_type" else "an object"
    return f"field '{field}' is {shown}: write {wanted}"


def _prompt(
    tokenizer: PreTrainedTokenizerBase,
    written: str | _Chat,
    pieces: Mapping[str, str | tuple[int, int]],
    where: str,
) -> Prompt:
    chat = isinstance(written, _Chat)
    text = (
        chat_text(tokenizer, [(each.role, each.content) for each in written.messages], where)
        if isinstance(written, _Chat)
        else written
    )
    spans: dict[str, tuple[int, int]] = {}
    for label, piece in pieces.items():
        if isinstance(piece, str):
            spans[label] = span_of(text, piece, f"{where}: label {label}")
        elif chat:
            raise TaskError(
                f"{where}: label {label}: in a chat give a piece of its text, not characters"
            )
        else:
            spans[label] = piece
    return tokenize_prompt(tokenizer, text, spans, where, special=not chat)


def _pair(line: _Line, tokenizer: PreTrainedTokenizerBase, where: str) -> Pair:
    tokens = line.tokens.items()
    base = _prompt(tokenizer, line.base, {n: each.base for n, each in tokens}, f"{where}, base")
    source = _prompt(
        tokenizer, line.source, {n: each.source for n, each in tokens}, f"{where}, source"
    )
    compared = _compared(line, tokenizer, base.text, where)
    return Pair.comparing(
        compared, str(tokenizer.decode([*compared.beginning])), base, source,
        template=line.template, z=line.z and (line.z.base, line.z.source), group=line.group,
        variables={name: (each.base, each.source) for name, each in line.variables.items()},
        where=where,
    )  # fmt: skip


def _compared(line: _Line, tokenizer: PreTrainedTokenizerBase, after: str, where: str) -> Compared:
    def tokens(text: str, what: str) -> tuple[int, ...]:
        return answer_tokens(tokenizer, text, after, f"{where}, {what}")

    answers, targets = (
        {text: tokens(text, what) for text in texts}
        for what, texts in (("answer", line.answer), ("target", line.target))
    )
    said = {
        name: line.answer[0] if each.predicts is None else each.predicts
        for name, each in line.variables.items()
        if each.predicts is not None or each.base == each.source
    }
    predicted = {
        name: (text, tokens(text, f"variables.{name}.predicts")) for name, text in said.items()
    }
    return Compared.of(answers, targets, where, predicted)
