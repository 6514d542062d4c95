"""The user's own pairs, from a JSON Lines file or as dicts of the same form. A line is one pair:

    {"base": "The capital of France is", "source": "The capital of Italy is",
     "answer": " Paris", "target": " Rome",
     "tokens": {"subject": {"base": [15, 21], "source": [15, 20]}},
     "template": "capital", "z": {"base": 0, "source": 1}, "group": "Europe"}

`answer` is right for the base, `target` is expected once the feature z comes from the source;
each is written with its leading space if the prompt ends without one, and may be of several tokens,
or a list of all that is accepted, [" Paris", " paris"] (`answers`). `tokens` gives
characters [start, end) for each label, which names the last token that they touch; `END`, the
last token, is always there. Pairs of one `group` are no independent draws and stay on one side of a
split. z is a whole number or a text. `tokens`, `template`, `z` and `group` may be left out; z is
told by the answers where no pair has z and these are but two.

Where several features could be what a patch carries, `variables` names them, with their values, and
what the model should then say if what is patched carries that one alone:

    "variables": {"position": {"base": "first", "source": "second", "predicts": " Rome"},
                  "name": {"base": "Paris", "source": "Rome", "predicts": " Paris"}}

`predicts` may be left out: a variable that is the same in base and source predicts the answer, of
another nothing is known. `sl.agreement` counts who is right where they predict different answers.
"""

from __future__ import annotations

import hashlib
import reprlib
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, PlainValidator, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError
from scipy.cluster.hierarchy import DisjointSet

from ..core.errors import TaskError
from ..core.files import regular
from .answers import Compared
from .dicts import Source, dict_lines, in_memory, name_of
from .pairset import Pair, PairSet, Task, Value
from .tokens import answer_tokens, tokenize_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def _texts(value: Any) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if isinstance(texts, list) and texts and all(isinstance(each, str) for each in texts):
        return tuple(texts)
    raise PydanticCustomError("texts", "neither text nor texts")


class _Span(_Strict):
    base: tuple[int, int]
    source: tuple[int, int]


class _Z(_Strict):
    base: Value
    source: Value


class _Variable(_Z):
    predicts: str | None = None


_Texts = Annotated[tuple[str, ...], PlainValidator(_texts)]


class _Line(_Strict):
    base: str
    source: str
    answer: _Texts
    target: _Texts
    tokens: Mapping[str, _Span] = {}
    template: str = ""
    z: _Z | None = None
    group: str = ""
    variables: Mapping[str, _Variable] = {}


@dataclass(frozen=True)
class _Row:
    where: str
    pair: Pair

    @property
    def prompts(self) -> tuple[Hashable, ...]:
        """What no two splits may share."""
        prompts = (self.pair.base.ids, self.pair.source.ids)
        return (*prompts, ("group", self.pair.group)) if self.pair.group else prompts

    @property
    def beginnings(self) -> tuple[Hashable, ...]:
        """The same, with the prompts up to each label where base and source differ by then."""
        base, source = self.pair.base, self.pair.source
        ends = {
            label: (c + 1, source.columns.get(label, c) + 1) for label, c in base.columns.items()
        }
        cut = [(base.ids[:b], source.ids[:s]) for b, s in ends.values()]
        return (*self.prompts, *(ids for both in cut if both[0] != both[1] for ids in both))


def read_pairs(source: Source, tokenizer: PreTrainedTokenizerBase, split: str = "train") -> PairSet:
    """Every pair of a JSON Lines file, or of dicts of the same form, in order, as the split
    `split`; blank lines are skipped.

    Raises `TaskError`, with file and line, or `pairs[3]` for the fourth dict, for a file that
    cannot be read or has no pairs and for a line that is not the form above, repeats a pair, or
    does not fit the tokenizer.

    >>> read_pairs("pairs.jsonl", lens.tokenizer).labels
    >>> pair = {"base": "2 and 2 is", "source": "2 and 3 is", "answer": " 4", "target": " 5"}
    >>> read_pairs([pair], lens.tokenizer)
    """
    return _pair_set(name_of(source), split, _with_z(_read(source, tokenizer)))


def pairs_task(
    tokenizer: PreTrainedTokenizerBase,
    train: Source,
    test: Source | None = None,
    held_out: Source | None = None,
    *,
    name: str | None = None,
) -> Task:
    """A task from one file of pairs a split, or from one file alone; dicts of the same form may
    stand in place of any file. `name`: the file's stem.

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
    rows = _read(train, tokenizer, "train")
    held_out_rows = [] if held_out is None else _read(held_out, tokenizer, "held_out")
    _refuse_shared_templates(rows, held_out_rows)
    test_rows = [] if test is None else _read(test, tokenizer, "test")
    told = _with_z([*rows, *test_rows, *held_out_rows])
    rows, told = told[: len(rows)], told[len(rows) :]
    test_rows, held_out_rows = told[: len(test_rows)], told[len(test_rows) :]
    if test is None:
        if held_out is None:
            rows, held_out_rows = _divide_templates(rows)
        rows, test_rows = _divide_prompts(rows, "the pairs" if in_memory(train) else train)
    _refuse_shared_prompts(rows, test_rows, held_out_rows)
    return Task(
        task,
        _pair_set(task, "train", rows),
        _pair_set(task, "test", test_rows),
        _pair_set(task, "held_out", held_out_rows) if held_out_rows else None,
    )


def _pair_set(name: str, split: str, rows: Sequence[_Row]) -> PairSet:
    return PairSet(name, split, tuple(row.pair for row in rows))


def _read(source: Source, tokenizer: PreTrainedTokenizerBase, name: str = "pairs") -> list[_Row]:
    """The pairs of a source; `name` is that of dicts in messages."""
    rows: list[_Row] = []
    first: dict[Hashable, str] = {}
    for where, text in dict_lines(source, name) if in_memory(source) else _lines(Path(source)):
        row = _Row(where, _pair(_parse(text, where), tokenizer, where))
        if (earlier := first.setdefault((row.pair.base.ids, row.pair.source.ids), where)) != where:
            raise TaskError(f"{where}: repeats the base and source of {earlier}: remove one")
        rows.append(row)
    if not rows:
        where = name if in_memory(source) else source
        raise TaskError(f"{where}: no pairs: write one JSON object a line, or give a dict for each")
    return rows


def _with_z(rows: list[_Row]) -> list[_Row]:
    """Where no pair of a task has z and all its answers and targets are but two, z is 1 for the one
    with the larger token ids."""
    if any(row.pair.z for row in rows):
        return rows
    sides = [(row.pair.accepted.answers, row.pair.accepted.targets) for row in rows]
    z = {side: value for value, side in enumerate(sorted({x for both in sides for x in both}))}
    if len(z) != 2:
        return rows
    return [
        replace(row, pair=replace(row.pair, z=(z[answers], z[targets])))
        for row, (answers, targets) in zip(rows, sides, strict=True)
    ]


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    try:
        content = regular(path).read_bytes()
    except OSError as error:
        raise TaskError(
            f"{path}: cannot be read ({error.strerror}): give a JSON Lines file of pairs"
        ) from None
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        where = f"{path}, line {number}"
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise TaskError(
                f"{where}: not UTF-8 (byte {error.start + 1}): save the file as UTF-8"
            ) from None
        if text.strip():
            yield where, text


def _parse(text: str, where: str) -> _Line:
    try:
        line = _Line.model_validate_json(text)
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
    span = "give [start, end) in characters, such as [5, 9]"
    match problem["type"], problem["loc"]:
        case "json_invalid", _:
            what = problem["msg"].removeprefix("Invalid JSON: ")
            return f"not JSON ({what}): write one JSON object a line"
        case "model_type", ():
            return "not a JSON object: write base, source, answer and target"
        case _, ("tokens", label, side, *_) if problem["type"] not in (
            "missing",
            "extra_forbidden",
        ):
            return f"field 'tokens.{label}.{side}' is not a span: {span}"
        case "missing", ("tokens", label, side, _):
            return f"field 'tokens.{label}.{side}' is not a span: {span}"
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


def _pair(line: _Line, tokenizer: PreTrainedTokenizerBase, where: str) -> Pair:
    base = tokenize_prompt(
        tokenizer,
        line.base,
        {label: span.base for label, span in line.tokens.items()},
        f"{where}, base",
    )
    source = tokenize_prompt(
        tokenizer,
        line.source,
        {label: span.source for label, span in line.tokens.items()},
        f"{where}, source",
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


def _divide_templates(rows: Sequence[_Row]) -> tuple[list[_Row], list[_Row]]:
    """Rows of the first templates, rows of the last third (none with fewer than 3 templates)."""
    roots = _joined((("template", row.pair.template), *row.prompts) for row in rows)
    order = list(dict.fromkeys(roots))
    last = set(order[len(order) - len(order) // 3 :])
    return (
        [row for row, root in zip(rows, roots, strict=True) if root not in last],
        [row for row, root in zip(rows, roots, strict=True) if root in last],
    )


def _divide_prompts(rows: Sequence[_Row], path: Path | str) -> tuple[list[_Row], list[_Row]]:
    """About two thirds of the rows, and the rest, without a prompt in common."""
    for keys in ([row.beginnings for row in rows], [row.prompts for row in rows]):
        roots = _joined(keys)
        groups: dict[Hashable, list[_Row]] = {}
        for row, root in zip(rows, roots, strict=True):
            groups.setdefault(root, []).append(row)
        if 3 * max(map(len, groups.values())) <= 2 * len(rows):
            break
    if len(groups) < 2:
        raise TaskError(
            f"{path}: the pairs cannot be divided into train and test, for all of them share "
            "prompts: add pairs with other prompts, or give a test file"
        )
    order = sorted(groups, key=lambda root: min(map(_digest, groups[root])))
    order.remove(max(order, key=lambda root: len(groups[root])))
    chosen: set[Hashable] = set()
    count = 0
    while order and 3 * count < len(rows):
        chosen.add(order[0])
        count += len(groups[order.pop(0)])
    return (
        [row for row, root in zip(rows, roots, strict=True) if root not in chosen],
        [row for row, root in zip(rows, roots, strict=True) if root in chosen],
    )


def _digest(row: _Row) -> str:
    return min(
        hashlib.sha256(text.encode()).hexdigest()
        for text in (row.pair.base.text, row.pair.source.text)
    )


def _joined(items: Iterable[Sequence[Hashable]]) -> list[Hashable]:
    """One representative per item, equal where items are linked by keys that they share."""
    items = list(items)
    linked = DisjointSet(key for keys in items for key in keys)
    for first, *others in items:
        for other in others:
            linked.merge(first, other)
    return [linked[first] for first, *_ in items]


def _refuse_shared_prompts(*splits: Sequence[_Row]) -> None:
    earlier: dict[Hashable, str] = {}
    for rows in splits:
        for row in rows:
            for prompt in row.prompts:
                if prompt in earlier:
                    what = "group" if prompt == ("group", row.pair.group) else "prompt"
                    raise TaskError(
                        f"{row.where}: shares a {what} with {earlier[prompt]}, which is in another "
                        f"split: keep a {what} in one split only"
                    )
        earlier |= {prompt: row.where for row in rows for prompt in row.prompts}


def _refuse_shared_templates(train: Sequence[_Row], held_out: Sequence[_Row]) -> None:
    known = {row.pair.template for row in train}
    for row in held_out:
        if row.pair.template in known:
            raise TaskError(
                f"{row.where}: held-out pairs need a template that no train pair has, not "
                f"'{row.pair.template}': give them a template of their own"
            )
