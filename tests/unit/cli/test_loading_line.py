"""A command that loads a model says so, where loading takes long."""

from __future__ import annotations

import re
import time
from pathlib import Path

import subspacelens.cli
from subspacelens.core import progress
from subspacelens.model import loading


def test_a_log_says_that_a_model_is_loading(run, tiny_folder, monkeypatch):
    load = loading.load_model

    def slow(*args, **kwargs):
        time.sleep(0.2)
        return load(*args, **kwargs)

    monkeypatch.setattr(loading, "load_model", slow)
    monkeypatch.setattr(progress, "EVERY", 0.02)
    code, _, err = run("facts", "known", "--model", tiny_folder, "--limit", 2)
    assert code == 0 and f"load {tiny_folder}: 0 of 1, 0 s" in err, err


def test_every_command_loads_in_one_place():
    folder = Path(subspacelens.cli.__file__).parent
    loads = [p.name for p in folder.glob("*.py") if re.search(r"\bload_model\b", p.read_text())]
    assert loads == ["options.py"]
