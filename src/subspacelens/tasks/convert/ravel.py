"""Instances of RAVEL (Huang et al. 2024, arXiv 2402.17700): an input, a source input of another
entity, and the label that is expected once the attribute is the source entity's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .choices import SAME_ANSWER, Choices, nth


def ravel(records: Sequence[Mapping[str, Any]], choices: Choices) -> Iterator[dict[str, Any] | str]:
    """The target is the `inv_label`. Label: ENTITY, its last mention. The template is the record's
    `split`, its prompt without the entity, and the entity is the group."""
    for record in records:
        base, source = record["input"], record["source_input"]
        if record["label"] == record["inv_label"]:
            yield SAME_ANSWER
            continue
        line: dict[str, Any] = {"base": base, "source": source}
        line |= {
            name: choices.answer(base, record[key])
            for name, key in (("answer", "label"), ("target", "inv_label"))
        }
        entities = {
            "base": nth(base, str(record.get("entity") or ""), -1),
            "source": nth(source, str(record.get("source_entity") or ""), -1),
        }
        if all(entities.values()):
            line["tokens"] = {"ENTITY": entities}
        line |= {
            name: str(record[key])
            for name, key in (("template", "split"), ("group", "entity"))
            if record.get(key)
        }
        yield line
