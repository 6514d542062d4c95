"""Searches of models in which the place of z is known."""

from __future__ import annotations

import json

from subspacelens.bench import bench_find
from subspacelens.bench.find import RATES
from subspacelens.report.results import results_below


def test_the_trained_place_is_looked_at_and_rows_are_kept(tmp_path, monkeypatch):
    result = bench_find(tmp_path, ["stream"], planted=1, pairs=96)
    trained, planted = result["models"]
    assert trained["site"] in trained["looked_at"] and trained["outcome"] == "found"
    assert planted["part"] == "planted" and planted["model"].startswith("planted-")
    for row in (trained, planted):
        rates, found = result["rates"][row["part"]], row["found"]
        assert rates["models"]["value"] == 1
        assert rates["named"]["value"] == any(each["true_site"] for each in found)
        assert rates["first"]["value"] == found[0]["carries"]
        assert rates["recovered"]["value"] == ((found[0]["cosine"] or 0) >= 0.9)
        assert rates["illusory"]["value"] == 0
    monkeypatch.setattr("subspacelens.bench.find.find", None)
    assert bench_find(tmp_path, ["stream"], planted=1, pairs=96) == result


def test_the_command_says_how_often_and_writes_no_search(run, tmp_path, monkeypatch):
    always = {"value": 1.0, "low": 0.03, "high": 1.0}
    rates = {"models": {"value": 1}} | {name: dict(always) for name in RATES}
    place = {"site": "L1.attn_out@SEP", "carries": True, "cosine": None, "truth": "faithful"}
    row = {"model": "stream", "site": "L1.resid_post@SEP", "found": [place], "outcome": "found"}
    result = {"rates": {"trained": rates}, "models": [row, row | {"found": []}]}
    monkeypatch.setattr("subspacelens.bench.bench_find", lambda *_, **__: result)
    code, out, _ = run("bench", "find", "--planted", 0, "--out", tmp_path)
    assert code == 0 and "trained, carries: " in out and "of 1" in out
    assert json.loads((tmp_path / "bench-find.json").read_text()) == result
    assert results_below(tmp_path) == ([], [])
