"""Minimal pairs of CausalGym (Arora et al. 2024, arXiv 2402.12560): sentences in aligned pieces."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

from .choices import SAME_ANSWER, Choices

START = "<|endoftext|>"


def causalgym(
    records: Sequence[Mapping[str, Any]], choices: Choices
) -> Iterator[dict[str, Any] | str]:
    """Labels R0, R1 and so on are the pieces, by their number. The template is the task; z is the
    type, 1 for the later in the alphabet, where all records are of one task of two types. The
    beginning-of-text token that the first piece has is left to the tokenizer."""
    types: dict[str, set[str]] = defaultdict(set)
    for record in records:
        types[record.get("task", "")] |= {record["base_type"], record["src_type"]}
    kinds = sorted(set.union(*types.values()))
    numbered = len(types) == 1 and len(kinds) == 2
    for record in records:
        if record["base_label"] == record["src_label"]:
            yield SAME_ANSWER
            continue
        base, source = ([piece.removeprefix(START) for piece in record[s]] for s in ("base", "src"))
        line: dict[str, Any] = {"base": "".join(base), "source": "".join(source)}
        line |= {"answer": record["base_label"], "target": record["src_label"]}
        line["tokens"] = {
            f"R{number}": {"base": ours, "source": theirs}
            for number, (ours, theirs) in enumerate(zip(_spans(base), _spans(source), strict=True))
            if ours[0] < ours[1] and theirs[0] < theirs[1]
        }
        if record.get("task"):
            line["template"] = record["task"]
        if numbered and record["base_type"] != record["src_type"]:
            line["z"] = {
                "base": kinds.index(record["base_type"]),
                "source": kinds.index(record["src_type"]),
            }
        yield line


def _spans(pieces: Sequence[str]) -> list[list[int]]:
    ends = [0, *accumulate(map(len, pieces))]
    return [list(both) for both in pairwise(ends)]
