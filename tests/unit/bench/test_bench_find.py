"""Searches of models in which the place of z is known."""

from __future__ import annotations

from subspacelens.bench import bench_find


def test_the_trained_place_is_looked_at_and_rows_are_kept(tmp_path, monkeypatch):
    result = bench_find(tmp_path, ["stream"], pairs=96)
    (row,) = result["models"]
    assert row["site"] in row["looked_at"] and row["outcome"] == "found"
    named = any(each["true_site"] for each in row["found"])
    assert result["rates"]["named"]["value"] == named
    assert result["rates"]["illusory"]["value"] == 0
    monkeypatch.setattr("subspacelens.bench.find.find", None)
    assert bench_find(tmp_path, ["stream"], pairs=96) == result
