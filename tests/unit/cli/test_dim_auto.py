"""`--dim auto`: chosen on pairs that neither the fit nor the audit sees."""

from __future__ import annotations

import pytest
import torch

import subspacelens as sl
from helpers_knowing import knowing_lens, knowing_task
from subspacelens.engine.capture import capture
from subspacelens.fit import auto_dim
from subspacelens.fit.dimensions import divided
from subspacelens.fit.subspace import Subspace

SITE = "L0.resid_post@END"
ASKED = ("--site", SITE, "--fit", "pca")


@pytest.fixture
def knowing(monkeypatch):
    lens, task = knowing_lens(), knowing_task(train=72, test=48)
    monkeypatch.setattr("subspacelens.cli.audit.prepared", lambda *_, **__: (lens, task))
    monkeypatch.setattr("subspacelens.cli.audit.say_task", lambda *_: None)
    return lens, task


def test_fit_takes_the_fewest_dimensions_that_do_as_well(run, knowing, tmp_path):
    lens, task = knowing
    assert run("fit", *ASKED, "--dim", "auto", "--out", tmp_path)[0] == 0
    saved = Subspace.load(tmp_path / SITE / "subspace.safetensors")
    expected = auto_dim("pca", capture(lens, task.train, [SITE]), SITE, seed=0)
    assert torch.equal(saved.basis, expected.subspace.basis)
    assert list(saved.fit["tried"]) == ["1", "2", "4", "8"]


def test_the_audit_is_on_other_pairs_and_goes_on(run, knowing, tmp_path):
    _, task = knowing
    line = ("audit", *ASKED, "--budget", "fast", "--out", tmp_path, "--dim")
    assert run(*line, "auto")[0] == 0
    record = sl.load_audit(tmp_path / SITE / "audit.json")
    fit_on, choose_on = (task.train.at(part) for part in divided(task.train))
    assert record.subspace.fit["chosen_on"] == choose_on.sha256
    held = Subspace.load(tmp_path / SITE / "subspace.safetensors")
    assert held.data_sha256 == fit_on.sha256
    assert record.task.test_sha256 == task.test.sha256
    assert run(*line, "auto")[0] == 0
    code, _, err = run(*line, 1)
    assert code == 2 and "the hash of its pairs is" in err
