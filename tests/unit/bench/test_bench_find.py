"""Searches of models in which the place of z is known."""

from __future__ import annotations

from subspacelens.bench import bench_find


def test_the_trained_place_is_found_and_rows_are_kept(tmp_path, monkeypatch):
    result = bench_find(tmp_path, ["stream"], pairs=96)
    (row,) = result["models"]
    assert any(each["true_site"] and each["truth"] != "illusory" for each in row["found"])
    assert result["rates"]["named"] == {"value": 1.0, "low": 0.025, "high": 1.0}
    assert result["rates"]["illusory"]["value"] == 0
    monkeypatch.setattr("subspacelens.bench.find.find", None)
    assert bench_find(tmp_path, ["stream"], pairs=96) == result
