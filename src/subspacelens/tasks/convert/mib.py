"""The data sets of the Mechanistic Interpretability Benchmark (Mueller et al. 2025,
arXiv 2504.13151): a record with a prompt and, by name, its counterfactuals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...core.errors import TaskError
from .choices import SAME_ANSWER, Choices, nth

COUNTERFACTUAL = "_counterfactual"


def mib(records: Sequence[Mapping[str, Any]], choices: Choices) -> Iterator[dict[str, Any] | str]:
    """The source is the counterfactual that `choices` names, or the only one, and the target is its
    answer; of RAVEL, its value of the attribute that the base asks for. Labels: IO, S1 and S2 of
    `ioi`, ENTITY of `ravel`."""
    name = choices.counterfactual or _only([key for key in records[0] if _is_one(key)])
    if name not in records[0]:
        name = f"{name}{COUNTERFACTUAL}"
    if name not in records[0]:
        _only([key for key in records[0] if _is_one(key)])
    for record in records:
        source = record[name]
        if not source or not source.get("prompt"):
            yield f"it has no {name}"
            continue
        attribute = record.get("attribute")
        base, other = _answer(record, attribute), _answer(source, attribute)
        if base == other:
            yield SAME_ANSWER
            continue
        prompt = record["prompt"]
        line = {"base": prompt, "source": source["prompt"]}
        line |= {"answer": choices.answer(prompt, base), "target": choices.answer(prompt, other)}
        ours, theirs = _labels(record, base), _labels(source, other)
        tokens = {n: {"base": ours[n], "source": theirs[n]} for n in ours if n in theirs}
        if tokens:
            line["tokens"] = tokens
        if record.get("template"):
            line["template"] = str(record["template"])
        if record.get("entity"):
            line["group"] = str(record["entity"])
        yield line


def _is_one(key: str) -> bool:
    return key.endswith(COUNTERFACTUAL)


def _only(names: list[str]) -> str:
    if len(names) != 1:
        raise TaskError(
            f"there are {len(names)} counterfactuals ({', '.join(names)}): choose the source with "
            "--counterfactual NAME"
        )
    return names[0]


def _answer(record: Mapping[str, Any], attribute: str | None) -> str:
    if attribute is not None:
        return str(record[attribute])
    if "answerKey" in record:
        choices = record["choices"]
        choices = choices["label"] if isinstance(choices, Mapping) else choices
        return str(choices[int(record["answerKey"])])
    return str(record["label"])


def _labels(record: Mapping[str, Any], answer: str) -> dict[str, str]:
    prompt, choices = record["prompt"], record.get("choices")
    pieces: dict[str, str] = {}
    if isinstance(choices, Sequence) and len(choices) == 2:
        (subject,) = [choice for choice in choices if choice != answer]
        if prompt.count(answer) == 1 and prompt.count(subject) == 2:
            pieces = {"IO": answer, "S1": nth(prompt, subject, 1), "S2": nth(prompt, subject, 2)}
    if record.get("entity"):
        pieces["ENTITY"] = nth(prompt, record["entity"], -1)
    return {name: piece for name, piece in pieces.items() if piece}
