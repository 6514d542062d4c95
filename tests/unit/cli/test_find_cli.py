"""`find`: what it prints and writes, and how it refuses."""

from __future__ import annotations

import pytest

from helpers_find import make_find
from subspacelens.cli.find import _print_record
from subspacelens.find import load_find


def test_a_model_that_does_not_do_the_task_is_told(run, tiny_folder, tmp_path):
    code, out, _ = run(
        "find", "--model", tiny_folder, "--pairs", 40, "--budget", "fast", "--out", tmp_path
    )
    record = load_find(tmp_path / "find.json")
    assert code == 0 and record.outcome == "lacking" and record.command.startswith("subspacelens f")
    assert " ".join(out.split()).startswith(record.answer[:60])


def test_all_of_a_record_is_printed(capsys):
    _print_record(make_find())
    out = capsys.readouterr().out
    for told in ("The feature lives at", "L6.mlp_act@S2", "written by", "read by", "fool you here"):
        assert told in out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--budget", "full"], "unknown budget 'full'"),
        (["--dim", "many"], "--dim many: a number of dimensions, or auto"),
        (["--fit", "dass"], "unknown fit 'dass'"),
        (["--label", "S9", "--pairs", "60"], "S9"),
        (["--pairs", "9"], "are needed: give more pairs"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(run, tiny_folder, tmp_path, more, message):
    code, _, err = run("find", "--model", tiny_folder, "--out", tmp_path, *more)
    assert code == 2 and message in err and "\n" not in err.strip()


def test_the_search_of_something_else_is_not_replaced(run, tiny_folder, tmp_path):
    (tmp_path / "find.json").write_text(make_find().model_dump_json(by_alias=True))
    code, _, err = run("find", "--model", tiny_folder, "--pairs", 40, "--out", tmp_path)
    assert code == 2 and "find.json is of something else: the model is" in err
