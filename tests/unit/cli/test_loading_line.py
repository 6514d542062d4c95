"""A command that loads a model says so, where loading takes long."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

import subspacelens.cli
from subspacelens.core import progress
from subspacelens.model import loading
from subspacelens.sweep import plan


@pytest.fixture
def slow(monkeypatch) -> None:
    """Loading takes longer than it takes until a log has its next line."""
    load = loading.load_model

    def slowly(*args, **kwargs):
        time.sleep(0.2)
        return load(*args, **kwargs)

    monkeypatch.setattr(loading, "load_model", slowly)
    monkeypatch.setattr(plan, "load_model", slowly)
    monkeypatch.setattr(progress, "EVERY", 0.02)


def test_a_log_says_that_a_model_is_loading(run, tiny_folder, slow):
    code, _, err = run("facts", "known", "--model", tiny_folder, "--limit", 2)
    assert code == 0 and f"load {tiny_folder}: 0 of 1, 0 s" in err, err


def test_a_sweep_says_so_while_it_is_planned(run, place, slow, tmp_path):
    grid = tmp_path / "grid.toml"
    grid.write_text(
        f'models = ["{place}/model"]\ntasks = ["{place}/pairs.jsonl"]\nkind = "fit"\npairs = 12\n'
        'sites = ["L1.mlp_act@END"]\nfits = ["random"]\n'
    )
    code, _, err = run("sweep", grid, "--out", tmp_path / "out", "--dry-run")
    assert code == 0 and f"load {place}/model: 0 of 1, 0 s" in err, err


def test_every_command_loads_in_one_place():
    folder = Path(subspacelens.cli.__file__).parent
    loads = [p.name for p in folder.glob("*.py") if re.search(r"\bload_model\b", p.read_text())]
    assert loads == ["options.py"]
