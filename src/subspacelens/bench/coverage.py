"""How often the library's 95 % intervals hold the truth, by simulation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from scipy.stats import norm

from ..core.progress import track
from ..core.records import Estimate
from ..core.statistics import Units, auroc_interval, mean, proportion, quotient, ratio

SCHEMA = "subspacelens.bench.coverage/1"
COUNTS = (16, 32, 64, 200)
Draw = Callable[[np.random.Generator, int], Estimate]


def bench_coverage(repeat: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Simulates `repeat` samples of each of `COUNTS` units for every case of `CASES`. A row each:
    `covered`, the share of bounded intervals that hold the truth, and `unbounded`, the share of
    samples without an interval.

    >>> bench_coverage(repeat=100)["rows"][0]["covered"]
    """
    rows = []
    for number, (name, (truth, draw)) in enumerate(track(list(CASES.items()), "coverage")):
        for count in COUNTS:
            rng = np.random.default_rng([seed, number, count])
            estimates = [draw(rng, count) for _ in range(repeat)]
            bounded = [e for e in estimates if e.low is not None and e.high is not None]
            held = [e.low <= truth <= e.high for e in bounded]  # type: ignore[operator]
            rows.append(
                {
                    "case": name,
                    "units": count,
                    "covered": float(np.mean(held)) if held else None,
                    "unbounded": 1 - len(bounded) / repeat,
                }
            )
    return {"schema": SCHEMA, "repeat": repeat, "seed": seed, "rows": rows}


def _units(count: int, each: int = 1) -> Units:
    return Units(np.repeat(np.arange(count), each))


def _share(rng: np.random.Generator, count: int) -> Estimate:
    """A share of effects: both noisy, of which one is the other's half."""
    whole = rng.normal(1, 1, count)
    return ratio(0.5 * whole + rng.normal(0, 0.3, count), whole, _units(count))


def _faint(rng: np.random.Generator, count: int) -> Estimate:
    whole = rng.normal(1, 4, count)
    return ratio(0.5 * whole + rng.normal(0, 1, count), whole, _units(count))


def _of_two_samples(rng: np.random.Generator, count: int) -> Estimate:
    """FLDD on new templates over that on as many pairs of known ones: .5 over 1."""

    def fldd(share: float) -> Estimate:
        clean = rng.lognormal(1, 0.5, count)
        return ratio(share * clean + rng.normal(0, 2, count), clean, _units(count))

    return quotient(fldd(0.5), fldd(1.0))


def _clustered(share: float, alike: float, each: int) -> Draw:
    """Hits of `each` cases a unit, of which two have the correlation `alike`."""
    strength = 1 / alike - 1

    def draw(rng: np.random.Generator, count: int) -> Estimate:
        own = rng.beta(share * strength, (1 - share) * strength, count)
        hits = rng.random((count, each)) < own[:, None]
        return proportion(hits.ravel().astype(float), _units(count, each))

    return draw


def _auroc(truth: float) -> Draw:
    apart = norm.ppf(truth) * 2**0.5

    def draw(rng: np.random.Generator, count: int) -> Estimate:
        z = np.repeat([0, 1], count)
        return auroc_interval(rng.normal(size=2 * count) + apart * z, z, np.tile(range(count), 2))

    return draw


CASES: Mapping[str, tuple[float, Draw]] = {
    "mean, normal": (0.0, lambda rng, count: mean(rng.normal(size=count), _units(count))),
    "mean, lognormal": (
        np.exp(0.5), lambda rng, count: mean(rng.lognormal(size=count), _units(count))
    ),
    "ratio, denominator's CV 1": (0.5, _share),
    "ratio, denominator's CV 4": (0.5, _faint),
    "quotient of two samples": (0.5, _of_two_samples),
    "proportion .9": (
        0.9, lambda rng, count: proportion(rng.random(count) < 0.9, _units(count))
    ),
    "proportion .5, 4 a unit": (0.5, _clustered(0.5, 0.2, 4)),
    "proportion .98, 8 a unit": (0.98, _clustered(0.98, 0.5, 8)),
    "AUROC .8": (0.8, _auroc(0.8)),
    "AUROC .98": (0.98, _auroc(0.98)),
    "AUROC .999": (0.999, _auroc(0.999)),
}  # fmt: skip
"""By name the truth, and what draws a sample of so many units and estimates it."""
