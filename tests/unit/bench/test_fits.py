"""`bench fits` on a tiny model: both recipes run, and each says what it took."""

from __future__ import annotations

import pytest

from subspacelens import load_model
from subspacelens.bench import bench_fits
from subspacelens.bench import fits as module


def test_both_recipes_are_compared(tiny_folder):
    result = bench_fits(
        load_model(tiny_folder), [("L1.mlp_act@S2", 1), ("L1.resid_post@S2", 2)], quick=True
    )
    assert [(row["site"], row["dim"]) for row in result["rows"]] == [
        ("L1.mlp_act@S2", 1),
        ("L1.resid_post@S2", 2),
    ]
    for row in result["rows"]:
        assert row["adam"]["passes"] == 2 and 4 < row["lbfgs"]["passes"] <= 6
        assert row["ratio"] == pytest.approx(row["lbfgs"]["fldd"] / row["adam"]["fldd"])
        assert 0 <= row["cosine"] <= 1 + 1e-6


def test_the_command_prints_a_row_a_site(tiny_folder, tmp_path, run, monkeypatch):
    where = (("L1.mlp_act@S2", 1),)
    monkeypatch.setattr(module.bench_fits, "__defaults__", (where,))
    path = tmp_path / "fits.json"
    code, out, _ = run("bench", "fits", "--model", tiny_folder, "--quick", "--json", path)
    assert code == 0 and "L1.mlp_act@S2" in out and path.exists()
