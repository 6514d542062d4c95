"""What a check says of pairs before a model runs."""

from __future__ import annotations

import json

from helpers_tokenizer import bpe_tokenizer
from subspacelens.tasks.inspection import inspected, remarks
from subspacelens.tasks.pairs import read_lines

WORDS = " The big capital of France Italy is Paris Rome"
TOKENIZER = bpe_tokenizer(WORDS + "\nParis", bos=True)


def reading(tmp_path, *lines: dict):
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))
    return read_lines(path, TOKENIZER)


def pair(base: str, source: str, answer=" Paris", target=" Rome", **more) -> dict:
    return {"base": base, "source": source, "answer": answer, "target": target, **more}


def test_labels_lengths_and_classes(tmp_path):
    places = {"OF": "of", "LAND": {"base": "France", "source": "Italy"}}
    lines = [
        pair("The capital of France is", "The capital of Italy is", tokens=places),
        pair("The big capital of France is", "The capital of Italy is", tokens=places, group="a"),
    ]
    found = inspected(reading(tmp_path, *lines).pairs("mine"))
    assert (found.pairs, found.lengths, found.unequal, found.groups) == (2, (7, 8), 1, 1)
    assert found.classes == {0: 2, 1: 2}
    facts = {each.label: each for each in found.labels}
    assert list(facts) == ["OF", "LAND", "END"]
    assert (facts["OF"].same, facts["OF"].shifted, facts["OF"].columns) == (1, 1, (4, 5))
    assert (facts["LAND"].same, facts["LAND"].shifted) == (0, 1)
    assert facts["LAND"].units == 1
    lines[0] |= {"answer": " is"}
    assert inspected(reading(tmp_path, *lines).pairs("mine")).classes == {}


def test_nothing_is_remarked_of_pairs_as_they_should_be(tmp_path):
    good = pair("The capital of France is", "The capital of Italy is")
    assert list(remarks(reading(tmp_path, good), TOKENIZER)) == []


def test_a_doubled_beginning_is_said(tmp_path):
    (said,) = remarks(reading(tmp_path, pair("<s>The capital", "The big capital")), TOKENIZER)
    assert (
        said
        == "at the beginning of 1 prompt is <s>, which the tokenizer adds itself: it is there once"
    )


def test_spaces_that_make_an_answer_another_token_are_said(tmp_path):
    ending, other = remarks(
        reading(tmp_path, pair("The capital is ", "The big capital is ", "Paris")), TOKENIZER
    )
    assert ending.startswith("at the end of 2 prompts is a space")
    assert other.startswith("1 answers or targets are other tokens") and "'Paris' (" in other
    (said,) = remarks(reading(tmp_path, pair("The capital is", "The big is", "Paris")), TOKENIZER)
    assert said.startswith("1 answers") and said.endswith("line 1): write ' Paris'")
