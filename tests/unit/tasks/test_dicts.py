"""Pairs in memory are read as lines of a file are."""

from __future__ import annotations

import json
import re

import pytest

from helpers_tokenizer import bpe_tokenizer
from subspacelens.core.errors import TaskError
from subspacelens.tasks import pairs_task, read_pairs

TOKENIZER = bpe_tokenizer(" The capital of France is Paris Italy Rome Spain Madrid word other")
PAIR = {
    "base": "The capital of France is",
    "source": "The capital of Italy is",
    "answer": " Paris",
    "target": " Rome",
    "tokens": {"LAND": {"base": (15, 21), "source": (15, 20)}},
}


def numbered(n: int) -> dict:
    return {"base": f"word {n}", "source": f"other {n}", "answer": " Paris", "target": " Rome"}


def test_dicts_are_the_lines_of_a_file(tmp_path):
    pairs = [PAIR, *(numbered(n) for n in range(6))]
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(f"{json.dumps(pair)}\n" for pair in pairs))
    ours, theirs = read_pairs(iter(pairs), TOKENIZER), read_pairs(path, TOKENIZER)
    assert ours.pairs == theirs.pairs and (ours.name, theirs.name) == ("pairs", "mine")
    ours, theirs = pairs_task(TOKENIZER, pairs, name="mine"), pairs_task(TOKENIZER, path)
    assert ours == theirs
    test = [numbered(n) for n in range(9, 12)]
    assert [pair.where for pair in pairs_task(TOKENIZER, path, test).test] == [
        "test[0]", "test[1]", "test[2]",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], "pairs: no pairs"),
        (PAIR, "pairs: one dict is no list of pairs: write [pair]"),
        ([PAIR, 3], "pairs[1]: 3 is no dict"),
        ([PAIR, PAIR], "pairs[1]: repeats the base and source of pairs[0]"),
        ([PAIR | {"answer": ""}], "pairs[0], answer: '' is no token"),
        ([PAIR | {"group": object()}], "pairs[0]: JSON cannot hold it"),
        ([{"base": "x"}], "pairs[0]: field 'source' is missing"),
    ],
)
def test_bad_ones_are_told_by_their_number(pairs, message):
    with pytest.raises(TaskError, match=f"^{re.escape(message)}[^\n]*$"):
        read_pairs(pairs, TOKENIZER)
