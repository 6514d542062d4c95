"""A table with a column for each field of a pair."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...core.errors import TaskError
from .choices import SAME_ANSWER, Choices

NEEDED = ("base", "source", "answer", "target")
FIELDS = (*NEEDED, "template", "group", "z.base", "z.source")


def table(records: Sequence[Mapping[str, Any]], choices: Choices) -> Iterator[dict[str, Any] | str]:
    """Columns base, source, answer and target, and template, group, z.base and z.source where they
    are there, or those that `choices.columns` names instead."""
    unknown = [name for name in choices.columns if name not in FIELDS]
    if unknown:
        raise TaskError(f"unknown field '{unknown[0]}': there are {', '.join(FIELDS)}")
    there = records[0]
    columns = {name: choices.columns.get(name, name) for name in FIELDS}
    wanted = {
        **{name: columns[name] for name in (*NEEDED, *choices.columns)},
        **{name: column for name, both in choices.labels.items() for column in both},
    }
    for name, column in wanted.items():
        if column not in there:
            raise TaskError(
                f"no column '{column}' for {name}, there are {', '.join(map(str, there))}: say "
                f"which with --column {name}=COLUMN (--label NAME=COLUMN for a label)"
            )
    for record in records:
        value = {name: record[column] for name, column in columns.items() if column in there}
        if any(value[name] in (None, "") for name in NEEDED):
            yield "base, source, answer or target is empty"
            continue
        if value["answer"] == value["target"]:
            yield SAME_ANSWER
            continue
        line = {name: value[name] for name in ("base", "source")}
        line |= {name: choices.answer(value["base"], value[name]) for name in ("answer", "target")}
        if choices.labels:
            line["tokens"] = {
                name: {"base": record[base], "source": record[source]}
                for name, (base, source) in choices.labels.items()
            }
        line |= {name: str(value[name]) for name in ("template", "group") if value.get(name)}
        if "z.base" in value and "z.source" in value:
            line["z"] = {side: int(value[f"z.{side}"]) for side in ("base", "source")}
        yield line
