"""Simulated coverage: near .95 where theory says so, and a broken interval is seen."""

from __future__ import annotations

import numpy as np

from subspacelens.bench import bench_coverage, coverage
from subspacelens.core.records import Estimate


def covered(name: str, repeat: int = 300) -> dict[int, float]:
    rows = bench_coverage(repeat)["rows"]
    return {row["units"]: row["covered"] for row in rows if row["case"] == name}


def test_intervals_hold_the_truth_as_often_as_they_say(monkeypatch):
    few = {
        "mean, normal", "ratio, denominator's CV 1", "AUROC .98", "quotient of two samples",
        "proportion .5, 4 a unit", "proportion .98, 8 a unit",
    }  # fmt: skip
    monkeypatch.setattr(coverage, "COUNTS", (16, 64))
    monkeypatch.setattr(coverage, "CASES", {n: coverage.CASES[n] for n in few})
    for row in bench_coverage(300)["rows"]:
        assert 0.9 < row["covered"] <= 1 and row["unbounded"] < 0.2, row
    assert bench_coverage(20) == bench_coverage(20) != bench_coverage(20, seed=1)


def test_an_interval_that_is_too_narrow_is_seen(monkeypatch):
    def narrow(rng: np.random.Generator, count: int) -> Estimate:
        x = rng.normal(size=count).mean()
        return Estimate(value=x, low=x - 0.01, high=x + 0.01)

    monkeypatch.setattr(coverage, "CASES", {"narrow": (0.0, narrow)})
    assert max(covered("narrow").values()) < 0.5
