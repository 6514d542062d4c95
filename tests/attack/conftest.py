from __future__ import annotations

import pytest

from helpers_attack import hostile_files, judged
from subspacelens.sweep import read_grid, run_sweep


@pytest.fixture(scope="session")
def hostile(tiny_folder, tmp_path_factory) -> dict[str, str]:
    return hostile_files(tmp_path_factory.mktemp("hostile"), tiny_folder) | {"tiny": tiny_folder}


@pytest.fixture
def attack(run, hostile, tmp_path, monkeypatch):
    """Runs one command line, `{name}` in it being a hostile file, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str]:
        names = sorted(hostile, key=len, reverse=True)
        resolved = []
        for argument in arguments:
            for name in names:
                argument = argument.replace("{" + name + "}", hostile[name])
            resolved.append(argument.replace("{out}", str(tmp_path)))
        return judged(run, resolved, tmp_path)

    return call


@pytest.fixture(scope="session")
def sweep_store(tiny_folder, tmp_path_factory):
    """A sweep of one cell."""
    folder = tmp_path_factory.mktemp("sweep")
    grid = folder / "grid.toml"
    grid.write_text(
        f'models = ["{tiny_folder}"]\ntasks = ["ioi"]\nsites = ["L1.mlp_act@S2"]\n'
        'fits = ["random"]\nkind = "fit"\npairs = 8\n'
    )
    run_sweep(read_grid(grid), folder / "out", backend="serial")
    return folder / "out"
