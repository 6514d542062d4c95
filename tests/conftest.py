from __future__ import annotations

import os
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from helpers_models import hub_folder
from subspacelens.bench.tiny import tiny_model, tiny_pairs
from subspacelens.cli import main


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> str:
    """A tiny random llama in hub layout, with a tokenizer that knows the words of IOI."""
    return hub_folder(tmp_path_factory.mktemp("hub") / "tiny", "llama")


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Path:
    """A folder with a tiny random llama, `model`, and pairs for it, `pairs.jsonl`."""
    folder = tmp_path_factory.mktemp("place")
    tiny_model(folder / "model")
    tiny_pairs(folder / "pairs.jsonl")
    return folder


@pytest.fixture
def run(monkeypatch, capsys):
    """The command line, run here: exit code, what it printed, what it said of errors."""

    def call(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["subspacelens", *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return call
