"""Several sites in one run: an error at one of them is a line and a file, and stops no other."""

from __future__ import annotations

import json

import pytest

from subspacelens import Site, SubspaceError
from subspacelens.fit import random

GOOD, LATER = "L1.mlp_act@S2", "L2.resid_post@END"
NO_HEAD, NO_LABEL, NARROW = "L1.head_z.7@END", "L1.mlp_act@S9", "L3.resid_post@END"


@pytest.fixture
def several(run, tiny_folder, tmp_path):
    def call(command: str, *arguments: object):
        return run(
            command, "--model", tiny_folder, "--pairs", 16, "--fit", "pca", "--out", tmp_path,
            *arguments,
        )  # fmt: skip

    return call


def sites(*texts: str) -> list[str]:
    return [part for text in texts for part in ("--site", text)]


def complaints(err: str) -> list[str]:
    return [line for line in err.splitlines() if line.startswith("subspacelens: ")]


def test_the_other_sites_and_the_page_are_written(several, tmp_path):
    code, out, err = several("audit", *sites(NO_HEAD, GOOD, NO_LABEL))
    first, second = complaints(err)
    assert code == 2 and "Traceback" not in err
    assert first.startswith(f"subspacelens: {NO_HEAD}: ") and "heads 0 to 3" in first
    assert second.startswith(f"subspacelens: {NO_LABEL}: ") and "no label 'S9'" in second
    failure = json.loads((tmp_path / NO_LABEL / "failure.json").read_text())
    assert failure["schema"] == "subspacelens.failure/1" and failure["site"] == NO_LABEL
    assert "no label 'S9'" in failure["error"] and failure["command"].startswith("subspacelens ")
    assert (tmp_path / GOOD / "audit.json").is_file() and GOOD in out
    page = (tmp_path / "report.html").read_text()
    assert all(text in page for text in (GOOD, NO_HEAD, "no label &#39;S9&#39;"))


def test_a_fit_that_fails_at_one_site_leaves_the_others(several, tmp_path, monkeypatch):
    def failing(captured, site):
        if site == Site.parse(GOOD):
            raise SubspaceError("nothing [/b] to\nfind")
        return random(captured.lens, captured, site)

    monkeypatch.setattr("subspacelens.cli.audit.chosen_fit", lambda *_: failing)
    code, _, err = several("audit", *sites(GOOD, LATER))
    assert code == 2 and complaints(err) == [f"subspacelens: {GOOD}: nothing [/b] to find"]
    assert not (tmp_path / GOOD / "audit.json").exists()
    assert (tmp_path / LATER / "audit.json").is_file() and (tmp_path / "report.html").is_file()


def test_a_site_that_succeeds_later_is_no_failure_any_more(several, tmp_path):
    assert several("fit", *sites(GOOD, NARROW), "--dim", 40, "--fit", "random")[0] == 2
    assert (tmp_path / NARROW / "failure.json").is_file()
    assert (tmp_path / GOOD / "subspace.safetensors").is_file()
    assert several("fit", *sites(NARROW))[0] == 0
    assert [path.name for path in (tmp_path / NARROW).iterdir()] == ["subspace.safetensors"]


def test_where_no_site_can_be_captured_nothing_is_written(several, tmp_path):
    code, _, err = several("audit", *sites(NO_HEAD, NO_LABEL))
    assert code == 2 and len(complaints(err)) == 1
    assert not list(tmp_path.iterdir())
