"""Intervals and controls. Whatever is resampled is a base prompt: pairs that share one are one
unit."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import numpy as np
from scipy import stats
from torch import Tensor

from .records import Estimate

RESAMPLES = 2000
AUROC_RESAMPLES = 500


@dataclass(frozen=True)
class Units:
    """The unit, a number from 0, that each pair belongs to."""

    of_pair: np.ndarray

    @classmethod
    def of(cls, keys: Iterable[Hashable]) -> Units:
        """One unit for every distinct key, a key a pair."""
        numbers: dict[Hashable, int] = {}
        return cls(np.array([numbers.setdefault(key, len(numbers)) for key in keys]))

    @property
    def count(self) -> int:
        return int(self.of_pair.max()) + 1

    @property
    def of_prompts(self) -> np.ndarray:
        """The units of all bases and then all sources, (2n,)."""
        return np.tile(self.of_pair, 2)

    def sums(self, values: np.ndarray | Tensor) -> np.ndarray:
        """Sum over the pairs of each unit, (units,)."""
        return np.bincount(self.of_pair, weights=np.asarray(values, dtype=np.float64))

    def halves(self, strata: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions of the pairs in two random halves that share no unit. Units of one stratum
        (`strata`, one a pair, alike within a unit) are spread over both evenly."""
        _, first = np.unique(self.of_pair, return_index=True)
        shuffled = np.random.default_rng(seed).permutation(self.count)
        ordered = shuffled[np.argsort(strata[first][shuffled], kind="stable")]
        in_first = np.isin(self.of_pair, ordered[::2])
        return np.flatnonzero(in_first), np.flatnonzero(~in_first)

    def draws(self, count: int, seed: int = 0) -> np.ndarray:
        """How often each pair is there in `count` bootstrap samples of whole units, (count, n).

        >>> Units.of(["Ann", "Ann", "Bob"]).draws(1, seed=4).tolist()  # Ann twice
        [[2, 2, 0]]
        """
        rng = np.random.default_rng(seed)
        times = rng.multinomial(self.count, np.full(self.count, 1 / self.count), size=count)
        return times[:, self.of_pair]


def ratio(
    numerator: np.ndarray | Tensor,
    denominator: np.ndarray | Tensor,
    units: Units,
) -> Estimate:
    """Σ numerator / Σ denominator over pairs, (n,) each, with a 95 % BCa bootstrap interval
    over units. No value where the denominator is zero, no interval for a single unit or where
    resampling gives none."""
    n, d = units.sums(numerator), units.sums(denominator)
    if abs(d.sum()) < 1e-12:
        return Estimate(value=None)
    value = n.sum() / d.sum() + 0.0  # no minus before a zero
    share = n / np.where(d == 0, 1, d)
    if len(n) < 2:
        return Estimate(value=value)
    if np.ptp(share) < 1e-12 and np.ptp(d) < 1e-12:
        return Estimate(value=value, low=value, high=value)

    low, high = _bootstrapped(n, d)
    return Estimate(value=value, low=low, high=high)


def mean(values: np.ndarray | Tensor, units: Units) -> Estimate:
    """Mean over pairs with a 95 % BCa interval over units."""
    values = np.asarray(values, dtype=np.float64)
    return ratio(values, np.ones_like(values), units)


def proportion(hits: np.ndarray | Tensor, units: Units) -> Estimate:
    """Share of hits (n,), 0 to 1 each, with a BCa interval over units; Wilson's over as many units
    where all have the same share and resampling cannot show how unsure that leaves us.

    Hits that depend on one another, such as all cases of one planted model, belong to one unit:

    >>> model = [0, 0, 0, 1, 1, 1, 2, 2, 2]
    >>> proportion(np.array([1, 1, 1, 0, 1, 1, 1, 1, 1]), Units.of(model)).value
    0.8888888888888888
    """
    hits = np.asarray(hits, dtype=np.float64)
    shares = units.sums(hits) / units.sums(np.ones_like(hits))
    if np.ptp(shares) > 1e-12:
        return mean(hits, units)
    share, count = float(hits.mean()), len(shares)
    low, high = _wilson(share, count)
    return Estimate(value=share, low=low, high=high)


def _wilson(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a share of `count` draws (Wilson 1927)."""
    z = stats.norm.ppf(0.975)
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * np.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def median(values: np.ndarray | Tensor, units: Units) -> Estimate:
    """Median over pairs with a 95 % percentile bootstrap interval over units; no interval where
    there is but one unit or all values agree."""
    values = np.asarray(values, dtype=np.float64)
    value = float(np.median(values))
    if units.count < 2 or np.ptp(values) == 0:
        return Estimate(value=value)
    order = np.argsort(values)
    until = np.cumsum(units.draws(RESAMPLES)[:, order], axis=1)
    half = until[:, -1:] / 2
    below = values[order][(until >= half).argmax(axis=1)]
    above = values[order][(until > half).argmax(axis=1)]
    low, high = np.quantile((below + above) / 2, [0.025, 0.975])
    return Estimate(value=value, low=float(low), high=float(high))


def _bootstrapped(n: np.ndarray, d: np.ndarray) -> tuple[float, float] | tuple[None, None]:
    """95 % interval of Σ n / Σ d over units: BCa, percentile where that has none, or none."""

    def statistic(top, bottom, axis=-1):
        return top.sum(axis=axis) / bottom.sum(axis=axis)

    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        for method in ("BCa", "percentile"):
            low, high = stats.bootstrap(
                (n, d),
                statistic,
                paired=True,
                vectorized=True,
                n_resamples=RESAMPLES,
                method=method,
                rng=np.random.default_rng(0),
            ).confidence_interval
            if np.isfinite(low) and np.isfinite(high):
                return float(low), float(high)
    return None, None


def auroc(scores: np.ndarray | Tensor, z: np.ndarray | Tensor) -> float:
    """Chance that a prompt with z = 1 scores above one with z = 0, ties counting half."""
    scores, z = np.asarray(scores, dtype=np.float64), np.asarray(z)
    ones, zeros = scores[z == 1], scores[z == 0]
    return float(stats.mannwhitneyu(ones, zeros).statistic / (len(ones) * len(zeros)))


def auroc_interval(
    scores: np.ndarray | Tensor, z: np.ndarray | Tensor, units: np.ndarray
) -> Estimate:
    """AUROC with a 95 % percentile bootstrap interval over `units` (n,), the unit of each score."""
    scores, z = np.asarray(scores, dtype=np.float64), np.asarray(z)
    ones, zeros = np.flatnonzero(z == 1), np.flatnonzero(z == 0)
    above = (1 + np.sign(scores[ones][:, None] - scores[zeros][None])) / 2
    value, count = float(above.mean()), int(units.max()) + 1
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=AUROC_RESAMPLES).astype(float)
    left, right = drawn[:, units[ones]], drawn[:, units[zeros]]
    total = left.sum(axis=1) * right.sum(axis=1)
    draws = np.einsum("ri,ij,rj->r", left, above, right, optimize=True)[total > 0]
    if count < 2 or not len(draws):
        return Estimate(value=value)
    low, high = np.quantile(draws / total[total > 0], [0.025, 0.975])
    return Estimate(value=value, low=float(low), high=float(high))


def between_class_share(scores: np.ndarray | Tensor, z: np.ndarray | Tensor) -> float:
    """Share of the variance of `scores` that lies between the two classes (η²)."""
    scores, z = np.asarray(scores, dtype=np.float64), np.asarray(z)
    total = scores.var()
    if total == 0:
        return 0.0
    means = np.array([scores[z == c].mean() for c in (0, 1)])
    weights = np.array([(z == c).mean() for c in (0, 1)])
    return float((weights * (means - scores.mean()) ** 2).sum() / total)
