"""Answers of several tokens, several answers, and what variables predict, from lines of a file."""

from __future__ import annotations

import json

import pytest

from helpers_tokenizer import bpe_tokenizer, word_tokenizer
from subspacelens.core.errors import TaskError
from subspacelens.core.progress import showing_progress
from subspacelens.tasks.answers import Continuations
from subspacelens.tasks.named import named_task
from subspacelens.tasks.pairs import read_pairs
from subspacelens.tasks.tokens import answer_tokens

WORDS = bpe_tokenizer(
    " He lives she in New York Orleans Mexico City Paris paris Rome Mary Ann", bos=True
)
LINE = {"base": "He lives in", "source": "she lives in", "answer": " New York", "target": " Rome"}


def ids(text: str) -> tuple[int, ...]:
    return tuple(WORDS(text, add_special_tokens=False)["input_ids"])


def read(tmp_path, *lines):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(LINE | line) + "\n" for line in lines))
    return read_pairs(path, WORDS)


def test_an_answer_may_be_of_several_tokens_or_several(tmp_path):
    (one,) = read(tmp_path, {})
    assert one.continuations == Continuations((ids(" New York"),), (ids(" Rome"),))
    assert (one.answer, one.target) == (ids(" New")[0], ids(" Rome")[0])
    assert [p.ids for p in one.reads] == [one.base.ids + ids(" New")]
    (many,) = read(tmp_path, {"answer": [" Paris", " paris"], "target": [" Rome"]})
    assert many.continuations == Continuations((ids(" Paris"), ids(" paris")), (ids(" Rome"),))
    assert many.reads == (many.base,)
    (plain,) = read(tmp_path, {"answer": [" Paris"]})
    assert plain.continuations is None


def test_what_all_begin_with_conditions_all(tmp_path):
    (pair,) = read(tmp_path, {"target": " New Orleans"})
    assert pair.continuations is None
    assert (pair.answer, pair.target) == (ids(" York")[0], ids(" Orleans")[0])
    for prompt, text in ((pair.base, LINE["base"]), (pair.source, LINE["source"])):
        assert prompt.text == f"{text} New" and prompt.ids[-1:] == ids(" New")
        assert prompt.columns == {"END": len(prompt.ids) - 2}


def test_passes_predict_every_token_once():
    accepted = Continuations(((5, 6), (5, 7, 8)), ((9,), (4, 3, 2)))
    assert accepted.passes == ((4, 3), (5, 7))
    assert Continuations(((5, 6, 7),), ((8, 9),)).passes == ((5, 6), (8, 8))
    assert Continuations(((5,),), ((8,),)).passes == ((),)
    assert accepted.exchanged().passes == accepted.passes


@pytest.mark.parametrize(
    ("answer", "target", "message"),
    [
        ([" New", " New York"], " Rome", "answer ' New' is the beginning of answer ' New York'"),
        (" Rome", [" Paris", " Rome Paris"], "answer ' Rome' is the beginning of target ' Rome P"),
        ("York", " Rome", "'York' is 2 tokens"),
    ],
)
def test_refuses_answers_that_say_too_little(tmp_path, answer, target, message):
    with pytest.raises(TaskError, match=message):
        read(tmp_path, {"answer": answer, "target": target})


def test_a_space_that_is_evidently_missing_is_asked_for():
    with pytest.raises(TaskError, match="with a leading space, ' Rome', it is one; write it so"):
        answer_tokens(WORDS, "Rome", "He lives in", "here")
    assert len(answer_tokens(WORDS, "Rome", 'He lives in "', "here")) > 1
    with pytest.raises(TaskError, match="unknown to the tokenizer"):
        answer_tokens(word_tokenizer(["Paris"]), "Paris Rome", "in", "here")


def test_first_takes_one_token_and_says_of_how_many(tmp_path, capsys):
    path = tmp_path / "pairs.jsonl"
    lines = [
        LINE | {"base": f"He lives in {n} in", "source": f"she lives in {n} in"}
        | ({"answer": " Paris"} if n else {})
        for n in range(6)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    whole = named_task(WORDS, str(path))
    with showing_progress():
        first = named_task(WORDS, str(path), answers="first")
    said = " ".join(capsys.readouterr().err.split())
    assert whole.longer_answers == 1 and first.longer_answers == 0
    assert "of the answers of 1 pair the first tokens where they part are compared" in said
    assert all(pair.continuations is None for split in first.splits for pair in split)
    with pytest.raises(TaskError, match="--answers all: one of whole, first"):
        named_task(WORDS, str(path), answers="all")


def test_z_is_any_label_and_variables_predict(tmp_path):
    variables = {
        "city": {"base": "NY", "source": "R", "predicts": " Rome"},
        "who": {"base": "he", "source": "she", "predicts": " Paris"},
        "where": {"base": 1, "source": 1},
        "unknown": {"base": 1, "source": 2},
    }
    pairs = read(
        tmp_path,
        {"z": {"base": "a", "source": "b"}, "variables": variables},
        {"z": {"base": "b", "source": 7}, "base": "lives in", "answer": [" New York", " Mexico"]},
    )
    assert pairs.classes == (7, "a", "b")
    first = pairs[0]
    assert first.variables["who"] == ("he", "she")
    assert first.predictions == {
        "city": ids(" Rome"), "who": ids(" Paris"), "where": ids(" New")
    }  # fmt: skip
    turned = pairs.swapped()[0]
    assert turned.z == ("b", "a") and turned.variables["who"] == ("she", "he")
    assert turned.predictions == {}
    assert pairs.sha256 != pairs.swapped().sha256
