"""The scores of audited cases: rates, AUROC and power, with intervals over planted models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from ..audit.controls.words import USED
from ..core.statistics import Units, proportion

if TYPE_CHECKING:
    from .audit import Result

RESAMPLES = 1000
ENOUGH = 0.3
"""The share of undetermined verdicts is also given of cases with at least this FLDD."""
SHARES = ("full_component", "row_effect", "covariation", "natural", "acting", "comovement")
"""Tests whose value is high for a faithful subspace; the others are ranked by their value."""


def summary(results: Sequence[Result]) -> dict:
    """The scores of some cases.

    `auroc`: of the score, illusory against faithful, among cases whose effect is large enough for a
    verdict, with a 95 % bootstrap interval over planted models; `by_test`: of each test alone,
    where it exists. `miss_rate`: illusory cases called faithful; `false_alarm_rate`: faithful cases
    called illusory; `undetermined_rate`: of both, with an FLDD of `ENOUGH`; `undetermined_for`: how
    many of these for which code; `inactive`: sensors and dormants called faithful. Intervals are
    over planted models (`low`, `high`) and over places (`places`). `right`: cases of either kind
    called what they are. `spearman_mixed`: of the score and the true share of mixed cases; `mixed`:
    how often each verdict was theirs. `power`: share of cases that are called what they are, by
    kind and by how many pairs they were judged on.
    """
    judged = [r for r in results if r.kind in ("faithful", "illusory") and not r.degenerate]
    large = [r for r in judged if (r.fldd or 0) >= ENOUGH]
    why = Counter(r.code for r in large if r.verdict == "undetermined")
    illusory = [r for r in judged if r.kind == "illusory"]
    faithful = [r for r in judged if r.kind == "faithful"]
    mixed = [r for r in results if r.kind == "mixed" and not r.degenerate]
    inactive = [r for r in results if r.kind in ("sensor", "dormant")]
    names = sorted({name for r in judged for name in r.tests})
    return {
        "auroc": auroc(judged),
        "by_test": {
            name: auroc([r for r in judged if r.tests.get(name) is not None], _of_test(name))
            for name in names
        },
        "miss_rate": rate(illusory, lambda r: r.verdict in USED),
        "false_alarm_rate": rate(faithful, lambda r: r.verdict == "illusory"),
        "undetermined_rate": rate(large, lambda r: r.verdict == "undetermined"),
        "undetermined_for": dict(why.most_common()),
        "right_illusory": rate(illusory, lambda r: r.verdict == "illusory"),
        "right_faithful": rate(faithful, lambda r: r.verdict in USED),
        "inactive_called_faithful": rate(inactive, lambda r: r.verdict in USED),
        "spearman_mixed": _spearman(mixed),
        "mixed": {
            verdict: sum(r.verdict == verdict for r in mixed)
            for verdict in sorted({r.verdict for r in mixed})
        },
        "power": _power(judged),
        "count": len(results),
    }


def auroc(
    results: Sequence[Result], score: Callable[[Result], float] = lambda r: r.score
) -> dict[str, float | None]:
    """Illusory against faithful, with a bootstrap interval over planted models."""
    chosen = [r for r in results if r.kind in ("faithful", "illusory")]
    truth = np.array([r.kind == "illusory" for r in chosen], dtype=int)
    if not 0 < truth.sum() < len(truth):
        return {"value": None, "low": None, "high": None}
    ones, zeros = np.flatnonzero(truth == 1), np.flatnonzero(truth == 0)
    scores = np.array([score(r) for r in chosen])
    above = (1 + np.sign(scores[ones][:, None] - scores[zeros])) / 2
    units = _models(chosen)
    rng = np.random.default_rng(0)
    draws = []
    while len(draws) < RESAMPLES:
        drawn = np.bincount(rng.integers(units.count, size=units.count), minlength=units.count)
        times = drawn[units.of_pair]
        weight = np.outer(times[ones], times[zeros])
        if weight.any():
            draws.append((weight * above).sum() / weight.sum())
    low, high = np.quantile(draws, [0.025, 0.975])
    return {"value": float(above.mean()), "low": float(low), "high": float(high)}


def rate(results: Sequence[Result], hit: Callable[[Result], bool]) -> dict:
    """Share of cases, with an interval over planted models and, under `places`, one over places:
    cases of one are not independent."""
    if not results:
        none = {"value": None, "low": None, "high": None}
        return none | {"hits": 0, "of": 0, "models": 0, "places": none}
    hits, models = np.array([hit(r) for r in results]), _models(results)
    over_places = proportion(hits, Units.of((r.model, r.task, r.site) for r in results))
    return proportion(hits, models).model_dump() | {
        "hits": int(hits.sum()),
        "of": len(results),
        "models": models.count,
        "places": over_places.model_dump(),
    }


def _models(results: Sequence[Result]) -> Units:
    return Units.of((r.model, r.task, r.site, r.planted) for r in results)


def _of_test(name: str) -> Callable[[Result], float]:
    sign = -1.0 if name in SHARES else 1.0
    return lambda r: sign * float(r.tests[name] or 0.0)


def _spearman(mixed: Sequence[Result]) -> float | None:
    if len({r.share for r in mixed}) < 2 or len({r.score for r in mixed}) < 2:
        return None
    correlation = stats.spearmanr([r.share for r in mixed], [r.score for r in mixed])
    return float(correlation[0])  # type: ignore[arg-type]


def _power(judged: Sequence[Result]) -> dict[str, dict[str, dict]]:
    """By truth and number of pairs; only of cases that were judged on fewer pairs too."""
    power: dict[str, dict[str, dict]] = {}
    for kind, right in (("illusory", ("illusory",)), ("faithful", USED)):
        some = [r for r in judged if r.kind == kind and r.few]
        sizes = sorted({size for r in some for size in r.few}, key=int)
        power[kind] = {
            size: rate(some, lambda r, size=size, right=right: r.few.get(size) in right)
            for size in sizes
        }
    return power
