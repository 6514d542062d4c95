"""`--skip` leaves out what cannot be read, of the file and of the model, and counts it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers_models import hub_folder
from helpers_tokenizer import bpe_tokenizer

WORDS = "red blue warm cold up down left right near far old new big small thin wide soft hard"
LONG, BAD = 7, 3
SITE = "L1.resid_post@END"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model of 64 columns, `model`, and `pairs.jsonl`: one line is no pair, one is too long."""
    folder = tmp_path_factory.mktemp("skipping")
    hub_folder(folder / "model", "llama", bpe_tokenizer(f" {WORDS} is York Rome New"))
    words = WORDS.split()
    lines = []
    for n, word in enumerate(words):
        more = " red" * 80 if n == LONG else ""
        pair = {"base": f" {word}{more} up is", "source": f" {word}{more} down is"}
        lines.append(json.dumps(pair | {"answer": " New York", "target": " Rome Rome"}))
    lines[BAD] = "{}"
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    return folder


def of(folder: Path) -> tuple:
    return "--model", folder / "model", "--task", folder / "pairs.jsonl"


@pytest.mark.parametrize("command", ["audit", "patch", "map"])
def test_bad_lines_and_pairs_that_do_not_fit_are_counted(run, folder, tmp_path, command):
    where = {
        "audit": ("--site", SITE, "--fit", "pca", "--budget", "fast", "--out", tmp_path),
        "patch": ("--site", SITE),
        "map": ("--stream", "resid_post", "--out", tmp_path),
    }[command]
    code, _, err = run(command, *of(folder), *where)
    assert code == 2 and f"line {BAD + 1}" in err
    code, out, err = run(command, *of(folder), *where, "--skip")
    assert code == 0 and "pairs: 1 pair left out for not fitting the model, such as" in err, err
    if command != "patch":
        assert f"{len(WORDS.split()) - 2} pairs of " in " ".join(out.split())


def test_a_line_says_which_were_left_out(folder):
    import subspacelens as sl
    from subspacelens.core.errors import TaskError
    from subspacelens.engine.fitting_prompts import fitting, misfits

    lens = sl.load_model(str(folder / "model"))
    task = sl.pairs_task(lens.tokenizer, folder / "pairs.jsonl", skip=True)
    kept = fitting(lens, task)
    whole = (*task.train, *task.test)
    assert len(whole) - 1 == len(kept.train) + len(kept.test) == len(WORDS.split()) - 2
    problems = [text for pairs in (task.train, task.test) for _, text in misfits(lens, pairs)]
    assert len(problems) == 1 and f"line {LONG + 1}: the base has" in problems[0]
    long = next(pair for pair in whole if len(pair.base.ids) > 64)
    with pytest.raises(TaskError, match="no pairs"):
        fitting(lens, sl.PairSet("mine", "all", (long,)))


def test_first_tokens_are_compared_where_asked(run, folder):
    code, _, err = run("patch", *of(folder), "--site", SITE, "--skip", "--answers", "first")
    assert code == 0 and "the first tokens where they part are compared" in err, err
    code, _, err = run("patch", *of(folder), "--site", SITE, "--answers", "last")
    assert code == 2 and "--answers last: one of whole, first" in err
