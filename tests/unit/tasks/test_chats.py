"""Chats are read as the tokenizer's own template has it, and no token is added twice."""

from __future__ import annotations

import json
import re

import pytest

from helpers_tokenizer import bpe_tokenizer, chat_tokenizer
from subspacelens.core.errors import TaskError
from subspacelens.tasks import read_pairs
from subspacelens.tasks.tokens import doubles_bos, tokenize_prompt

WORDS = "The capital of France Italy is Paris Rome word"
TOKENIZER = chat_tokenizer(f" {WORDS}")


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def line(base: list, source: list, **more) -> dict:
    return {
        "base": {"messages": base}, "source": {"messages": source}, "answer": " Paris",
        "target": " Rome", **more,
    }  # fmt: skip


def read(tmp_path, *lines: dict, tokenizer=TOKENIZER):
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))
    return read_pairs(path, tokenizer)


FRANCE, ITALY = user("The capital of France is"), user("The capital of Italy is")


def test_a_chat_is_what_the_template_makes_of_it(tmp_path):
    places = {"LAND": {"base": "France", "source": "Italy"}, "OF": " of"}
    (pair,) = read(tmp_path, line([FRANCE], [ITALY], tokens=places))
    expected = TOKENIZER.apply_chat_template([FRANCE], add_generation_prompt=True)
    assert list(pair.base.ids) == expected["input_ids"]
    assert pair.base.ids.count(TOKENIZER.bos_token_id) == 1
    said = {name: TOKENIZER.decode([pair.base.ids[c]]) for name, c in pair.base.columns.items()}
    assert said == {"LAND": " France", "OF": " of", "END": ":"}
    assert pair.base.text.endswith("assistant:")


def test_a_chat_that_ends_with_the_assistant_goes_on_there(tmp_path):
    begun = {"role": "assistant", "content": "The capital is"}
    (pair,) = read(tmp_path, line([FRANCE, begun], [ITALY, begun]))
    assert pair.base.text.endswith("assistant: The capital is")
    assert TOKENIZER.decode([pair.base.ids[-1]]) == " is"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"base": [{"role": "other", "content": ""}]},
            "template refuses these messages: TemplateError: no such role",
        ),
        ({"tokens": {"X": {"base": [0, 3], "source": "is"}}}, "label X: in a chat give a piece"),
        ({"tokens": {"X": "a"}}, "base: label X: 'a' is there "),
    ],
)
def test_refuses(tmp_path, changes, message):
    base = changes.pop("base", [FRANCE])
    with pytest.raises(TaskError, match=re.escape(message)):
        read(tmp_path, line(base, [ITALY], **changes))


def test_refuses_a_tokenizer_without_a_template(tmp_path):
    with pytest.raises(TaskError, match="no chat template: write the prompt as text"):
        read(tmp_path, line([FRANCE], [ITALY]), tokenizer=bpe_tokenizer(f" {WORDS}"))


def test_a_beginning_of_text_that_is_written_is_there_once():
    plain = tokenize_prompt(TOKENIZER, "The capital", {"X": (4, 11)}, "here")
    written = tokenize_prompt(TOKENIZER, "<s>The capital", {"X": (7, 14)}, "here")
    assert written.ids == plain.ids and written.columns == plain.columns
    assert doubles_bos(TOKENIZER, "<s>The") and not doubles_bos(TOKENIZER, "The")
    assert not doubles_bos(bpe_tokenizer(" The"), "<s>The")
