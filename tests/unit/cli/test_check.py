"""`check` and `pairs`: what the model sees, all that is bad, how many it gets right."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from subspacelens.cli.check import token_line
from subspacelens.tasks.pairset import Prompt

GOOD = {
    "base": "the ant sees the",
    "source": "the bee sees the",
    "answer": "red",
    "target": "blue",
    "tokens": {"NOUN": {"base": "ant", "source": "bee"}},
}
OTHER = GOOD | {"base": "the cat sees the", "tokens": {"NOUN": {"base": "cat", "source": "bee"}}}
BAD = (GOOD | {"answer": "green"}, GOOD | {"tokens": {"NOUN": "the"}}, GOOD)


@pytest.fixture
def file(tmp_path):
    def write(*lines: dict) -> Path:
        path = tmp_path / "mine.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return path

    return write


def words(out: str) -> str:
    return " ".join(out.split())


def test_tokens_stand_between_bars_and_labels_beside_them(run, place, file):
    code, out, err = run("check", file(GOOD), "--model", place / "model")
    assert code == 0, err
    assert "base: the|[ant]NOUN|sees|[the]END" in out
    assert "source: the|[bee]NOUN|sees|[the]END" in out
    assert "answer: 'red'" in out and "target: 'blue'" in out
    rows = [line.split() for line in out.splitlines() if "NOUN" in line and "|" not in line]
    assert any(row[:1] == ["NOUN"] or "NOUN" in row for row in rows)


def test_all_bad_lines_are_named_and_the_rest_is_shown(run, place, file):
    path = file(GOOD, *BAD, OTHER)
    code, out, _ = run("check", path, "--model", place / "model", "--show", 0)
    assert code == 1
    said = words(out)
    for number, what in ((2, "unknown to the tokenizer"), (3, "is there 2 times"), (4, "repeats")):
        assert re.search(rf"bad: \S+mine.jsonl, line {number}\b.*?{what}", said), number
    assert "2 pairs of 4 tokens, labels NOUN, END" in said and "base: the|" not in said
    assert "3 of 5 lines bad" in said
    assert run("check", path, "--model", place / "model", "--skip")[0] == 0


def test_a_prompt_that_is_too_long_is_a_bad_line(run, place, file):
    long = GOOD | {"base": "the ant sees the " * 20, "tokens": {}}
    code, out, _ = run("check", file(GOOD, long), "--model", place / "model")
    assert code == 1 and "line 2: the base has 80 tokens, and the model's context is 64" in out
    assert "1 pair of 4 tokens" in out


def test_a_file_without_a_good_line_is_refused(run, place, file):
    code, out, err = run("check", file(*BAD[:2]), "--model", place / "model")
    assert code == 2 and words(out).count("bad: ") == 2 and "has no pairs" in err


def test_how_many_the_model_gets_right(run, place, file):
    """Counted from what the model was found to say before."""
    path = file(GOOD, OTHER)
    out = words(run("check", path, "--model", place / "model")[1])
    (right,) = re.findall(r"says the answer in (\d) of 2 pairs", out)
    said = re.findall(r"'(\w+)' \((\d)\)", out)
    assert int(right) + sum(int(count) for _, count in said) == 2
    if said:
        lines = [line | {"answer": said[0][0]} for line in (GOOD, OTHER)]
        out = words(run("check", file(*lines), "--model", place / "model")[1])
        assert f"says the answer in {said[0][1]} of 2 pairs" in out


def test_bad_lines_are_skipped_where_that_is_asked_for(run, place, file, tmp_path):
    lines = [json.loads(line) for line in (place / "pairs.jsonl").read_text().splitlines()][:24]
    path = file(*lines, *BAD[:2])
    at = ("--site", "L1.mlp_act@END", "--fit", "pca", "--out", tmp_path / "out")
    for command in ("audit", "fit", "map"):
        options = at[-2:] if command == "map" else at
        given = (command, "--model", place / "model", "--task", path, *options)
        code, _, err = run(*given)
        assert code == 2 and "line 25" in err and "(1 more line is bad: see" in err
        code, out, err = run(*given, "--skip", *(("--budget", "fast") * (command == "audit")))
        assert code == 0, err
        if command == "audit":  # the same note is not said twice
            assert "2 lines left out, such as" in err
        assert command == "fit" or "24 pairs of 4 tokens" in out


def test_a_map_of_named_pairs_and_labels(run, place, file, tmp_path):
    test = file(GOOD, OTHER)
    code, out, err = run(
        "map", "--model", place / "model", "--task", place / "pairs.jsonl", "--test-pairs", test,
        "--stream", "resid_post", "--out", tmp_path,
    )  # fmt: skip
    assert code == 0, err
    assert "2 pairs of 4 tokens" in out and "NOUN: " in out and "END: " in out
    same = file(GOOD | {"base": "bee the ant", "source": "bee bee the ant", "tokens": {}})
    given = ("--model", place / "model", "--task", same, "--out", tmp_path)
    assert run("map", *given)[0] == 2
    assert run("map", *given, "--overwrite")[0] == 0


def test_a_dry_run_of_a_table_and_the_file_itself(run, place, tmp_path):
    table = tmp_path / "table.csv"
    table.write_text(
        "clean,corrupt,answer,target,noun,other\n"
        "the ant sees the,the bee sees the,red,blue,ant,bee\n"
        "the cat sees the,the dog sees the,blue,blue,cat,dog\n"
        "the elk sees the,the fox sees the,blue,red,elk,fox\n"
    )
    given = (
        "pairs", table, "--column", "base=clean", "--column", "source=corrupt",
        "--label", "NOUN=noun,other", "--as-written",
    )  # fmt: skip
    code, out, err = run(*given, "--model", place / "model")
    assert code == 0, err
    assert "base: the|[ant]NOUN|sees|[the]END" in out and "says the answer in" in words(out)
    assert "1 record left out, because answer and target are the same" in words(out)
    made = tmp_path / "made.jsonl"
    code, out, _ = run(*given, "--out", made)
    assert code == 0 and str(made) in out
    assert run("check", made, "--model", place / "model")[0] == 0
    assert "is there already" in run(*given, "--out", made)[2]
    assert json.loads(made.read_text().splitlines()[1])["answer"] == "blue"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--column", "base"), "--column base: write it as NAME=COLUMN"),
        (("--label", "=x"), "--label =x: write it as NAME=COLUMN"),
        (("--layout", "x"), "unknown layout 'x'"),
        (("--column", "base=clean"), "no column 'clean' for base, there are a"),
    ],
)
def test_bad_options_of_pairs(run, tmp_path, more, message):
    table = tmp_path / "table.csv"
    table.write_text("a\n1\n")
    code, _, err = run("pairs", table, *more)
    assert code == 2 and message in err


def test_line_ends_and_escapes_are_seen():
    class Tokenizer:
        def convert_ids_to_tokens(self, token):
            return "x"

        def decode(self, tokens):
            return "\n\x1b[31m"

    line = token_line(Tokenizer(), Prompt("", (0,), {"END": 0}), "base").plain
    assert line == r"base: [\n\x1b[31m]END"
