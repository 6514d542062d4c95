"""`sweep` and `results` on the command line."""

from __future__ import annotations

import polars as pl
import pytest


@pytest.fixture(scope="module")
def grid(place):
    path = place / "sweep.toml"
    path.write_text(
        'models = ["model"]\ntasks = ["pairs.jsonl"]\nkind = "fit"\npairs = 12\n'
        'sites = ["L*.mlp_act@END"]\nfits = ["random", "mean-difference"]\ndims = [1, 2]\n'
    )
    return path


def test_a_dry_run_prints_the_cells_and_the_time_and_writes_nothing(run, grid, tmp_path):
    out = tmp_path / "out"
    code, text, _ = run("sweep", grid, "--out", out, "--dry-run")
    assert code == 0 and not out.exists()
    lines = text.splitlines()
    assert len(lines) == 17 and "L3.mlp_act@END mean-difference dim 2 seed 0" in lines[-2]
    assert lines[-1].startswith("16 cells: 0 done, 0 failed, 16 to do; they take about")


def test_a_sweep_and_its_results(run, grid, tmp_path):
    out = tmp_path / "out"
    code, text, _ = run("sweep", grid, "--out", out, "--backend", "serial")
    assert code == 1 and "16 cells: 0 found, 12 done, 4 failed" in text
    code, text, _ = run("sweep", grid, "--out", out, "--dry-run")
    assert "16 cells: 12 done, 4 failed, 0 to do" in text
    csv, parquet = tmp_path / "t.csv", tmp_path / "t.parquet"
    code, text, _ = run(
        "results", out, "--where", "status = 'done'", "--csv", csv, "--parquet", parquet
    )
    assert code == 0 and "12 cells" in text
    assert len(pl.read_csv(csv)) == len(pl.read_parquet(parquet)) == 12


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("sweep", "{grid}", "--out", "o", "--address", "here"), "--backend ray"),
        (("sweep", "missing.toml", "--out", "o"), "cannot read the grid"),
        (("results", "missing"), "holds no sweep"),
    ],
)
def test_bad_input_is_one_line(run, grid, args, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(*(arg.format(grid=grid) for arg in args))
    assert code == 2 and says in err and "Traceback" not in err


def test_a_survey_draws_its_page(run, grid, tmp_path):
    out = tmp_path / "survey"
    model, pairs = grid.parent / "model", grid.parent / "pairs.jsonl"
    code, text, err = run(
        "survey", "--model", model, "--task", pairs, "--label", "END", "--pairs", 8, "--out", out
    )
    assert code == 0, err
    assert "| L3.mlp_act@END |" in text and (out / "report.html").exists()
    code, _, err = run("survey", "--model", model, "--task", pairs, "--label", "S9", "--out", out)
    assert code == 2 and "no label 'S9', only" in err
