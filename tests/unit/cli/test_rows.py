"""`--row 0-63`, and what `--out` holds already."""

from __future__ import annotations

import json

import numpy as np
import pytest

import subspacelens as sl
from subspacelens.cli.rows import rows_of

SITE = "L1.mlp_act@S2"


@pytest.mark.parametrize(
    ("text", "rows"),
    [("7", [7]), ("0-3", [0, 1, 2, 3]), ("0,3,7", [0, 3, 7]), ("5, 1-2,2", [5, 1, 2])],
)
def test_rows(text, rows):
    assert rows_of(text) == rows


@pytest.mark.parametrize("text", ["", "x", "3-1", "1,", "-1", "1-", "0-999999999", "1.5", "٣"])
def test_what_is_no_rows_is_refused(text):
    with pytest.raises(sl.LensError, match="give rows such as 7, 0-63 or 0,3,7"):
        rows_of(text)


@pytest.fixture
def command(run, tiny_folder, tmp_path):
    def call(*more: object, name: str = "audit") -> tuple[int, str, str]:
        fixed = ("--model", tiny_folder, "--pairs", 16, "--site", SITE, "--out", tmp_path / "run")
        return run(name, *fixed, *more)

    return call


@pytest.fixture
def decoder(tmp_path):
    rows = np.random.default_rng(0).normal(size=(6, 56))
    rows[4] = 0
    np.save(tmp_path / "decoder.npy", rows)
    return tmp_path / "decoder.npy"


def test_many_rows_are_one_page(command, decoder, tmp_path):
    code, out, err = command("--subspace", decoder, "--row", "1-4")
    assert code == 0, err
    found = sl.Screen.load(tmp_path / "run" / SITE / "screen.json")
    assert [each.row for each in found.rows] == [1, 2, 3] and list(found.failed) == [4]
    assert found.origin["file"] == "decoder.npy" and found.command.endswith("--row 1-4")
    assert str(tmp_path / "run" / SITE / "screen.html") in " ".join(out.split())
    assert "of 3 directions" in " ".join(out.split()) and "row 4: " in out
    np.save(decoder, np.load(decoder)[::-1])
    code, _, err = command("--subspace", decoder, "--row", "1-4")
    assert code == 2 and "the hash of its file is" in err and "--overwrite" in err
    assert command("--subspace", decoder, "--row", "1-4", "--overwrite")[0] == 0


def test_one_row_is_an_audit(command, decoder, tmp_path):
    code, _, err = command("--subspace", decoder, "--row", "3", "--budget", "fast")
    assert code == 0, err
    assert sl.load_audit(tmp_path / "run" / SITE / "audit.json").subspace.fit["row"] == 3


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--row", "0-3"), "Name its file with --subspace"),
        (("--row", "0-9", "--subspace"), "no row 6 in an array"),
        (("--row", "0-3", "--controls", "--subspace"), "several rows are judged fast"),
        (("--row", "0-3", "--site", "L2.mlp_act@S2", "--subspace"), "with one --site"),
        (("--row", "3-", "--subspace"), "give rows such as"),
    ],
)
def test_rows_that_cannot_be_judged(command, decoder, more, message):
    code, _, err = command(*more, *((decoder,) if more[-1] == "--subspace" else ()))
    assert code == 2 and message in err and "Traceback" not in err


def test_the_same_goes_on_and_something_else_is_not_replaced(command, tmp_path):
    quick = ("--fit", "pca", "--budget", "fast")
    assert command(*quick)[0] == 0
    assert command(*quick)[0] == 0
    assert command("--fit", "pca", name="fit")[0] == 0
    page = (tmp_path / "run" / "report.html").read_bytes()
    record = (tmp_path / "run" / SITE / "audit.json").read_bytes()
    for more, message in (
        (("--fit", "random", "--budget", "fast"), "the setting method is pca, now random"),
        ((*quick, "--dim", 2), "its number of dimensions is 1, now 2"),
        ((*quick, "--pairs", 12), "the hash of its pairs is "),
    ):
        code, _, err = command(*more)
        assert code == 2 and message in err and "--overwrite" in err, err
    assert command("--fit", "random", name="fit")[0] == 2
    assert (tmp_path / "run" / "report.html").read_bytes() == page
    assert (tmp_path / "run" / SITE / "audit.json").read_bytes() == record
    assert command("--fit", "random", "--budget", "fast", "--overwrite")[0] == 0
    assert sl.load_audit(tmp_path / "run" / SITE / "audit.json").subspace.fit["method"] == "random"


def test_a_page_of_another_command_is_not_replaced(command, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "report.html").write_text("a survey")
    code, _, err = command("--fit", "pca", "--budget", "fast")
    assert code == 2 and "its report.html was made by another command" in err
    assert (tmp_path / "run" / "report.html").read_text() == "a survey"


def test_a_map_and_a_survey_of_other_pairs_are_not_replaced(run, tiny_folder, tmp_path):
    for name, more in (("map", ("--stream", "mlp_act")), ("survey", ("--instant",))):
        fixed = ("--model", tiny_folder, "--label", "S2", "--out", tmp_path / name)
        assert run(name, *fixed, *more, "--pairs", 8)[0] == 0
        assert run(name, *fixed, *more, "--pairs", 8)[0] == 0
        code, _, err = run(name, *fixed, *more, "--pairs", 6)
        assert code == 2 and "the hash of its pairs is" in err and "--overwrite" in err
        assert run(name, *fixed, *more, "--pairs", 6, "--overwrite")[0] == 0
    (tmp_path / "survey" / "report.html").write_text("an audit")
    code, _, err = run("survey", *fixed, "--pairs", 8)
    assert code == 2 and "its report.html was made by another command" in err


def test_a_file_that_is_no_record_is_not_replaced(command, tmp_path):
    folder = tmp_path / "run" / SITE
    folder.mkdir(parents=True)
    (folder / "audit.json").write_text(json.dumps(["mine"]))
    code, _, err = command("--fit", "pca", "--budget", "fast")
    assert code == 2 and "is of something else: the model is not known" in err
