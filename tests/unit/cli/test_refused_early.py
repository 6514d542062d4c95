"""What can be told to be wrong without the model is told before it is loaded."""

from __future__ import annotations

import pytest

from subspacelens.model import loading

AT = ("--site", "L1.mlp_act@END")


@pytest.fixture
def never(monkeypatch) -> None:
    def loaded(*args, **kwargs):
        raise AssertionError("the model is loaded")

    monkeypatch.setattr(loading, "load_model", loaded)


@pytest.fixture
def bad_line(place, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text((place / "pairs.jsonl").read_text() + '{"base": 1}\n')
    return path


@pytest.mark.parametrize("command", ["audit", "fit", "find", "map", "patch"])
@pytest.mark.parametrize("which", ["missing", "empty", "bad"])
def test_a_file_of_pairs(command, which, run, place, bad_line, never, tmp_path):
    empty, missing = tmp_path / "empty.jsonl", tmp_path / "missing.jsonl"
    empty.write_text("\n")
    path = {"missing": missing, "empty": empty, "bad": bad_line}[which]
    at = AT if command in ("audit", "fit", "patch") else ()
    code, _, err = run(command, "--model", place / "model", "--task", path, *at)
    said = {"missing": "cannot be read", "empty": "no pairs", "bad": "line "}[which]
    assert code == 2 and err.startswith(f"subspacelens: {path}") and said in err, err


def test_a_file_to_check(run, place, never, tmp_path):
    code, _, err = run("check", "--model", place / "model", tmp_path / "missing.jsonl")
    assert code == 2 and "missing.jsonl: cannot be read" in err, err


def test_pairs_to_judge_on(run, place, bad_line, never):
    given = ("--model", place / "model", "--task", place / "pairs.jsonl", *AT)
    code, _, err = run("audit", *given, "--test-pairs", bad_line)
    assert code == 2 and err.startswith(f"subspacelens: {bad_line}, line "), err


@pytest.mark.parametrize(
    "command, given, said",
    [
        ("audit", ("--site", "L1.mlp@END"), "unknown stream 'mlp': one of resid_pre,"),
        ("fit", ("--site", "L1"), "is not of the form"),
        ("find", ("--stream", "mlp"), "--stream: unknown stream 'mlp'"),
        ("find", ("--fit", "best"), "unknown fit 'best'"),
        ("map", ("--stream", "mlp"), "--stream: unknown stream 'mlp'"),
        ("survey", ("--instant", "--stream", "mlp"), "--stream: unknown stream 'mlp'"),
        ("audit", ("--subspace", "nowhere.safetensors", *AT), "nowhere.safetensors: there is no"),
    ],
)
def test_names(command, given, said, run, place, never, tmp_path):
    given = ("--model", place / "model", "--task", place / "pairs.jsonl", *given)
    code, _, err = run(command, *given, "--out", tmp_path / "out")
    assert code == 2 and err.startswith("subspacelens: ") and said in err, err


def test_lines_that_are_to_be_skipped_are_not_refused(run, place, bad_line, tmp_path):
    given = ("--model", place / "model", "--task", bad_line, *AT, "--fit", "random")
    code, _, err = run("fit", *given, "--skip", "--out", tmp_path / "out")
    assert code == 0 and "1 line left out" in err, err
