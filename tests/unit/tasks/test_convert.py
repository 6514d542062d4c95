"""Tables and the layouts of benchmarks become lines that can be read as pairs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import polars
import pytest

from helpers_tokenizer import bpe_tokenizer
from subspacelens.core.errors import TaskError
from subspacelens.tasks.convert import Choices, Conversion, convert
from subspacelens.tasks.pairs import reading_of

MIB_IOI = {
    "prompt": "As Ann and Bob left, Bob gave it to",
    "template": "As {A} and {B}",
    "choices": ["Ann", "Bob"],
    "answerKey": 0,
    "metadata": {"subject": "Bob", "indirect_object": "Ann", "object": None, "place": None},
    "s2_io_flip_counterfactual": {
        "prompt": "As Ann and Bob left, Ann gave it to", "choices": ["Ann", "Bob"], "answerKey": 1,
    },
    "abc_counterfactual": {
        "prompt": "As Ann and Bob left, Cy gave it to", "choices": ["Ann", "Bob"], "answerKey": 0,
    },
}  # fmt: skip
MIB_CHOICE = {
    "prompt": "The ant is red. A. red B. blue Answer:",
    "choices": {"label": ["A", "B"], "text": ["red", "blue"]},
    "answerKey": 0,
    "symbol_counterfactual": {
        "prompt": "The ant is red. B. red A. blue Answer:",
        "choices": {"label": ["B", "C"], "text": ["red", "blue"]},
        "answerKey": 0,
    },
}
MIB_SUM = {
    "prompt": "The sum of 2 and 3 is ", "label": "5", "operand1": 2,
    "random_counterfactual": {"prompt": "The sum of 4 and 3 is ", "label": "7"},
}  # fmt: skip
MIB_CITY = {
    "template": '{"city": "%s", "country": "',
    "prompt": '{"city": "Rome", "country": "',
    "entity": "Rome", "attribute": "Country", "Country": "Italy", "Language": "Italian",
    "attribute_counterfactual": {
        "prompt": '{"city": "Paris", "language": "', "entity": "Paris", "attribute": "Language",
        "Country": "France", "Language": "French",
    },
}  # fmt: skip
RAVEL = {
    "input": "Rome, Rome is in", "label": "Italy", "source_input": "Paris speaks",
    "source_label": "French", "inv_label": "France", "split": "%s, %s is in",
    "source_split": "%s speaks", "entity": "Rome", "source_entity": "Paris",
}  # fmt: skip
CAUSALGYM = {
    "base": ["<|endoftext|>The", " key", " near", " the bank"],
    "src": ["<|endoftext|>The", " keys", " near", " the bank"],
    "base_type": "singular", "src_type": "plural", "base_label": " is", "src_label": " are",
    "task": "agr",
}  # fmt: skip
TABLE = "base,source,answer,target,who\nAnn is,Bob is,good,bad,Ann\nCy is,Di is, bad,good,Cy\n"


def written(path: Path, *records: object) -> Path:
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return path


def converted(tmp_path: Path, record: dict, **choices) -> dict:
    found = convert(written(tmp_path / "p.jsonl", record), choices=Choices(**choices))
    (line,) = found.lines
    tokenizer = bpe_tokenizer(" ".join(("", *re.findall(r"\w+", json.dumps(line)))))
    reading = reading_of([("here", json.dumps(line))], tokenizer)
    fine = [problem for problem in reading.problems if "tokens (" not in problem]
    assert not fine, "only the answers may not be one token"
    return line


def test_mib_names(tmp_path):
    line = converted(tmp_path, MIB_IOI, counterfactual="s2_io_flip")
    assert (line["answer"], line["target"]) == (" Ann", " Bob")
    assert line["source"] == MIB_IOI["s2_io_flip_counterfactual"]["prompt"]
    assert line["tokens"] == {
        "IO": {"base": "Ann", "source": "Bob"},
        "S1": {"base": "Bob#1", "source": "Ann#1"},
        "S2": {"base": "Bob#2", "source": "Ann#2"},
    }
    assert line["template"] == "As {A} and {B}"
    with pytest.raises(TaskError, match=r"there are 2 counterfactuals \(s2_io_flip_"):
        converted(tmp_path, MIB_IOI)
    with pytest.raises(TaskError, match="because answer and target are the same"):
        converted(tmp_path, MIB_IOI, counterfactual="abc_counterfactual")


def test_mib_choices_and_labels(tmp_path):
    line = converted(tmp_path, MIB_CHOICE)
    assert (line["answer"], line["target"]) == (" A", " B") and "tokens" not in line
    line = converted(tmp_path, MIB_SUM)
    assert (line["answer"], line["target"]) == ("5", "7")


def test_mib_attributes(tmp_path):
    """The target is what the base's question would be answered by for the source's city."""
    line = converted(tmp_path, MIB_CITY)
    assert (line["answer"], line["target"], line["group"]) == ("Italy", "France", "Rome")
    assert line["tokens"] == {"ENTITY": {"base": "Rome", "source": "Paris"}}


def test_ravel(tmp_path):
    line = converted(tmp_path, RAVEL)
    assert line == {
        "base": "Rome, Rome is in", "source": "Paris speaks", "answer": " Italy",
        "target": " France", "tokens": {"ENTITY": {"base": "Rome#2", "source": "Paris"}},
        "template": "%s, %s is in", "group": "Rome",
    }  # fmt: skip
    by_split = tmp_path / "splits.json"
    by_split.write_text(json.dumps({"one": [RAVEL], "two": [RAVEL | {"inv_label": "Italy"}]}))
    found = convert(by_split)
    assert len(found.lines) == 1 and sum(found.left_out.values()) == 1


def test_causalgym(tmp_path):
    line = converted(tmp_path, CAUSALGYM)
    assert (line["base"], line["answer"]) == ("The key near the bank", " is")
    assert (line["target"], line["template"]) == (" are", "agr")
    assert line["z"] == {"base": 1, "source": 0}
    at = {name: line["base"][slice(*both["base"])] for name, both in line["tokens"].items()}
    assert at == {"R0": "The", "R1": " key", "R2": " near", "R3": " the bank"}
    other = CAUSALGYM | {"task": "other"}
    found = convert(written(tmp_path / "p.jsonl", CAUSALGYM, other))
    assert not any("z" in line for line in found.lines)


def test_a_table(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text(TABLE)
    found = convert(path, choices=Choices(labels={"NAME": ("base", "source"), "WHO": 2 * ("who",)}))
    assert (found.layout, len(found.lines)) == ("table", 2)
    first, second = found.lines
    assert (first["answer"], second["answer"], second["target"]) == (" good", " bad", " good")
    assert first["tokens"]["NAME"] == {"base": "Ann is", "source": "Bob is"}
    assert first["tokens"]["WHO"] == {"base": "Ann", "source": "Ann"}
    bare = convert(path, choices=Choices(as_written=True), limit=1)
    assert [line["answer"] for line in bare.lines] == ["good"]


def test_columns_by_other_names(tmp_path):
    names = {"base": "clean", "source": "corrupt", "answer": "good", "target": "bad"}
    record = {"clean": "a is", "corrupt": "b is", "good": "x", "bad": "y", "z0": 0, "z1": "1"}
    columns = names | {"z.base": "z0", "z.source": "z1"}
    (line,) = convert(written(tmp_path / "p.jsonl", record), choices=Choices(columns=columns)).lines
    assert line["z"] == {"base": 0, "source": 1} and line["base"] == "a is"
    with pytest.raises(TaskError, match="no column 'base' for base, there are clean, corrupt"):
        convert(tmp_path / "p.jsonl")
    with pytest.raises(TaskError, match="unknown field 'foil'"):
        convert(tmp_path / "p.jsonl", choices=Choices(columns={"foil": "bad"}))


@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_every_kind_of_file(tmp_path, kind):
    frame = polars.DataFrame({name: [f"{name} {n}" for n in range(3)] for name in
                              ("base", "source", "answer", "target")})  # fmt: skip
    path = tmp_path / f"p.{kind}"
    if kind in ("csv", "tsv"):
        frame.write_csv(path, separator="," if kind == "csv" else "\t")
    elif kind == "jsonl":
        frame.write_ndjson(path)
    else:
        getattr(frame, f"write_{kind}")(path)
    found = convert(path)
    assert isinstance(found, Conversion) and found.lines[2]["base"] == "base 2"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", "", "give a file that ends in .csv, .tsv"),
        ("p.csv", "", "no records"),
        ("p.json", "3", "no records"),
        ("p.json", "[3]", "no records"),
        ("p.jsonl", "{", "cannot be read as .jsonl"),
        ("p.parquet", "x", "cannot be read as .parquet"),
        ("p.csv", "base,source,answer,target\na,b,,c\n", "1 because base, source, answer or tar"),
        (
            "p.json",
            json.dumps([RAVEL, {"input": 3}]),
            "not of the layout 'ravel' (KeyError: ",
        ),
        ("p.json", json.dumps([RAVEL | {"label": None}]), "(ValueError: an answer is empty)"),
    ],
)
def test_refuses(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(TaskError, match=re.escape(message)) as caught:
        convert(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_refuses_an_unknown_layout_and_a_file_that_is_not_there(tmp_path):
    path = written(tmp_path / "p.jsonl", RAVEL)
    with pytest.raises(TaskError, match="unknown layout 'x': one of table, mib, ravel, causalgym"):
        convert(path, "x")
    with pytest.raises(TaskError, match="cannot be read"):
        convert(tmp_path / "none.csv")
