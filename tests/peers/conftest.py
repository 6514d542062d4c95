"""Each peer runs in an environment of its own, which `make check-peers` makes once."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from helpers_models import hub_folder
from subspacelens import load_model
from subspacelens.bench.environments import environment
from subspacelens.core.files import cache_folder

HOSTS = {
    "pyvene": "pyvene==0.1.8",
    "transformer-lens": "transformer-lens==4.3.0",
    "sae-lens": "sae-lens==6.54.12",
    "repeng": "repeng==0.4.0",
    "nnsight": "nnsight==0.8.1",
    "llama.cpp": "llama-cpp-py-sync==0.11739,gguf,transformers",
    "checkouts": "pyvene==0.1.8,accelerate,einops,openai,python-dotenv",
}
"""Environments by name, and what is installed in each."""

GUESTS = {
    "pyreft": ("pyvene", "pyreft==0.1.0"),
    "concept-erasure": ("nnsight", "concept-erasure==0.2.4"),
    "dictionary-learning": ("sae-lens", "dictionary-learning==0.1.0"),
    "steering-vectors": ("repeng", "steering-vectors==0.12.2"),
}
"""Packages that run in another's environment, without what they ask to be installed with."""

CHECKOUTS = {
    "causalab": ("goodfire-ai/causalab", "29ee873e57c831ddce90191b38477d83b406754a"),
    "easyedit": ("zjunlp/EasyEdit", "14cea8245f06715684592ab55184939b99d70784"),
    "axbench": ("stanfordnlp/axbench", "e9b8cd4783c983e350d78af76f3fb2b8b15fc7d3"),
}
"""Tools that no package index has: their repository on GitHub, and the commit that was tried."""

PAIRS, LENGTH, COLUMN = 6, 9, 5


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> SimpleNamespace:
    """A tiny random llama on disk and as the library takes it, and prompts of equal length."""
    folder = tmp_path_factory.mktemp("peers") / "llama"
    hub_folder(folder, "llama")
    lens = load_model(str(folder), device="cpu")
    generator = torch.Generator().manual_seed(0)
    size = lens.map.tail.head.weight.shape[0]
    base, source = torch.randint(3, size, (2, PAIRS, LENGTH), generator=generator)
    return SimpleNamespace(folder=folder, lens=lens, base=base, source=source, column=COLUMN)


@pytest.fixture
def peer(place, tmp_path) -> Callable[..., dict[str, np.ndarray]]:
    """Runs a script of `scripts/` where a peer is installed. What it saves with `done` comes back;
    files lie in `tmp_path`."""

    def run(name: str, script: str, **more) -> dict[str, np.ndarray]:
        paths = [Path(__file__).parent / "scripts"]
        if name in CHECKOUTS:
            paths.append(_checkout(name))
        host, guest = GUESTS.get(name, ("checkouts" if name in CHECKOUTS else name, None))
        python = environment(HOSTS[host])
        if guest is not None:
            paths.append(_guest(python, guest))
        job = {
            "model": str(place.folder), "out": str(tmp_path), "base": place.base.tolist(),
            "source": place.source.tolist(), "column": place.column,
        } | more  # fmt: skip
        (tmp_path / "job.json").write_text(json.dumps(job))
        done = subprocess.run(
            [str(python), str(paths[0] / f"{script}.py"), str(tmp_path / "job.json")],
            env=os.environ | {
                "PYTHONPATH": os.pathsep.join(map(str, paths)), "HF_HUB_OFFLINE": "1",
                "WANDB_MODE": "disabled", "TOKENIZERS_PARALLELISM": "false",
            },
            capture_output=True, text=True, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-4000:]
        with np.load(tmp_path / "done.npz") as found:
            return dict(found)

    return run


def _checkout(name: str) -> Path:
    """The folder with the tool's own source. It is the reader's to bring: skips where it is not."""
    folder = cache_folder() / "peers" / "checkouts" / name
    if not folder.is_dir():
        repository, commit = CHECKOUTS[name]
        pytest.skip(f"no {folder}: check out {commit[:12]} of github.com/{repository} there")
    return folder


def _guest(python: Path, package: str) -> Path:
    """A folder with the package alone, which is made where it is missing."""
    folder = cache_folder() / "peers" / package
    if not (folder / "complete").exists():
        subprocess.run(
            [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet",
             "--no-deps", "--target", str(folder), package],
            check=True, capture_output=True,
        )  # fmt: skip
        (folder / "complete").touch()
    return folder
