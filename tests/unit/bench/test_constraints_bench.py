"""`bench constraints`: every choice is measured against truth, once, and the table says so."""

from __future__ import annotations

import pytest

from helpers_knowing import knowing_lens, knowing_task
from subspacelens.bench import bench_constraints, constraints_table
from subspacelens.bench import constraints as module
from subspacelens.bench.constraints import CHOICES, OUTSIDE, TRUTH, Asked
from subspacelens.fit import FITS

FEW = ("mean difference", "DAS", "row", "latent 64")


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(module, "CHOICES", {name: CHOICES[name] for name in FEW})


def test_every_choice_is_a_fit_with_options_that_it_has():
    for method, options in CHOICES.values():
        FITS[method].check_options(options)


def test_where_z_was_trained_to_live(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "sites_of_column", lambda trained: [trained.site, trained.behind])

    def rows() -> list[dict]:
        return bench_constraints(None, None, tmp_path, names=["mlp"], pairs=48)["rows"]

    first = rows()
    there = {row["fit"]: row for row in first if row["where"] == "trained"}
    assert list(there) == [TRUTH, *FEW]
    assert there[TRUTH]["cosine"] == pytest.approx(1) and there[TRUTH]["truth"] == "faithful"
    assert there[TRUTH]["written"] == pytest.approx(1)
    assert all(0 <= row["written"] <= 1 + 1e-6 for row in there.values())
    assert there["DAS"]["cosine"] < there["row"]["cosine"]
    assert {row["fit"] for row in first if row["where"] == OUTSIDE} == set(FEW) - {"row"}
    monkeypatch.setattr(module, "trained_row", lambda *args: pytest.fail("done again"))
    assert rows() == first


def test_planted_models_and_the_table(tmp_path):
    lens, task = knowing_lens(), knowing_task()
    result = bench_constraints(lens, task, tmp_path, asked=Asked(places=1, models=1), names=[])
    rows = [row for row in result["rows"] if row["part"] == "planted"]
    assert {row["where"] for row in rows} >= {"MLP", "residual"}
    assert {row["fit"] for row in rows if row["where"] == "residual"} == {TRUTH, *FEW} - {"row"}
    for row in rows:
        assert 0 <= row["cosine"] <= 1 + 1e-6
        if row["fit"] == TRUTH and row["clean"] is not None:
            assert row["cosine"] == pytest.approx(1)
            assert row["clean"] == pytest.approx(1, abs=1e-6)
    held = [r for r in rows if r["fit"] == "row" and r["where"] == "MLP" and r["clean"] is not None]
    assert held and all(row["verdict"] for row in held)
    table = constraints_table(result)
    assert "| channels planted: MLP | subspaces | cos² with the channel |" in table
    assert table.count("\n| DAS |") == len({row["where"] for row in rows})


def test_the_command_prints_a_line_a_choice(tmp_path, run, monkeypatch):
    monkeypatch.setattr(module, "sites_of_column", lambda trained: [trained.site])
    monkeypatch.setattr(module, "trained_names", lambda: ["stream"])
    code, out, _ = run("bench", "constraints", "--places", 0, "--out", tmp_path)
    assert code == 0 and "| where z was trained to live |" in out and "| latent 64 |" in out
    assert (tmp_path / "constraints.md").read_text().strip() in out
    assert (tmp_path / "constraints.json").exists()
