from __future__ import annotations

import os
import shutil
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from helpers_models import hub_folder
from subspacelens.bench.tiny import tiny_model, tiny_pairs
from subspacelens.cli import main

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


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


@pytest.fixture(scope="module")
def browser():
    """Closed at the end of a file: while it is open no other event loop may run."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


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
