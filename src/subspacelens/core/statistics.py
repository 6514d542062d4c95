"""Intervals over units: pairs that share what could have come out otherwise are one unit."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from scipy import optimize, stats
from scipy.cluster.hierarchy import DisjointSet
from torch import Tensor

from .records import Estimate

RESAMPLES = 2000


@dataclass(frozen=True)
class Units:
    """The unit, a number from 0, that each pair belongs to."""

    of_pair: np.ndarray

    @classmethod
    def of(cls, keys: Iterable[Hashable]) -> Units:
        """One unit for every distinct key, a key a pair."""
        numbers: dict[Hashable, int] = {}
        return cls(np.array([numbers.setdefault(key, len(numbers)) for key in keys]))

    @classmethod
    def joined(cls, keys: Iterable[Iterable[Hashable]]) -> Units:
        """Pairs with a key in common, directly or through others, are one unit.

        >>> Units.joined([("Ann", "Bob"), ("Bob", "Cy"), ("Di",)]).of_pair.tolist()
        [0, 0, 1]
        """
        own = [tuple(each) for each in keys]
        linked = DisjointSet(key for each in own for key in each)
        for first, *others in own:
            for other in others:
                linked.merge(first, other)
        return cls.of(linked[first] for first, *_ in own)

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
    """Σ numerator / Σ denominator over pairs, (n,) each, with Fieller's 95 % interval from the sums
    of each unit (Fieller 1954, t distribution). No value where the denominator is zero; no interval
    for a single unit, or where the denominator cannot be told from zero, so that none is bounded.
    """
    n, d = units.sums(numerator), units.sums(denominator)
    if abs(d.sum()) < 1e-12:
        return Estimate(value=None)
    value = n.sum() / d.sum() + 0.0  # no minus before a zero
    if len(n) < 2:
        return Estimate(value=value)
    low, high = _fieller(n, d)
    return Estimate(value=value, low=low, high=high)


def _fieller(n: np.ndarray, d: np.ndarray) -> tuple[float, float] | tuple[None, None]:
    """All r for which mean(n - r d) is not told from zero by a t test, if that is an interval."""
    count = len(n)
    t = stats.t.ppf(0.975, count - 1)
    (nn, nd), (_, dd) = np.cov(n, d) * t**2 / count
    top, bottom = n.mean(), d.mean()
    a, b, c = bottom**2 - dd, top * bottom - nd, top**2 - nn
    if a <= 1e-12 * bottom**2:
        return None, None
    half = np.sqrt(max(0.0, b**2 - a * c))
    return float((b - half) / a), float((b + half) / a)


def quotient(numerator: Estimate, denominator: Estimate) -> Estimate:
    """One estimate over that of an independent sample, with the 95 % interval that follows from
    theirs (MOVER-R, Newcombe 2016; Fieller's, where these are symmetric). No value where the
    denominator is zero; no interval where one of them has none, or the denominator's holds zero.

    >>> quotient(Estimate(value=1, low=1, high=1), Estimate(value=2, low=1, high=4))
    Estimate(value=0.5, low=0.25, high=1.0)
    """
    top, bottom = numerator, denominator
    if top.value is None or bottom.value is None or abs(bottom.value) < 1e-12:
        return Estimate(value=None)
    if bottom.value < 0:
        return quotient(top.scaled(-1), bottom.scaled(-1))
    value = top.value / bottom.value
    if top.low is None or top.high is None or bottom.low is None or bottom.high is None:
        return Estimate(value=value)
    if bottom.low <= 0:
        return Estimate(value=value)
    ends = bottom.value, bottom.low, bottom.high
    low = _least_quotient(top.value, top.low, *ends)
    return Estimate(value=value, low=low, high=-_least_quotient(-top.value, -top.high, *ends))


def _least_quotient(top: float, least: float, bottom: float, low: float, high: float) -> float:
    """The r < top / bottom at which top - r bottom is as far from zero as the root sum of squares
    of what `top` is above its least and r times what `bottom` is from that end that lowers r."""
    end = high if least > 0 else low
    square, cross, rest = end * (2 * bottom - end), top * bottom, least * (2 * top - least)
    root = max(0.0, cross**2 - square * rest) ** 0.5
    return rest / (cross + root) if least > 0 else (cross - root) / square


def mean(values: np.ndarray | Tensor, units: Units) -> Estimate:
    """Mean over pairs with Student's 95 % interval from the sums of each unit; none for a single
    unit."""
    values = np.asarray(values, dtype=np.float64)
    value, count = float(values.mean()), units.count
    if count < 2:
        return Estimate(value=value)
    rest = units.sums(values) - value * units.sums(np.ones_like(values))
    error = np.sqrt((rest**2).sum() * count / (count - 1)) / len(values)
    half = float(stats.t.ppf(0.975, count - 1) * error)
    return Estimate(value=value, low=value - half, high=value + half)


def proportion(hits: np.ndarray | Tensor, units: Units) -> Estimate:
    """Share of hits (n,), 0 to 1 each, with Wilson's 95 % score interval (Wilson 1927) over as many
    independent draws as they are worth: n over the design effect, which lies between 1 and what it
    is where all of a unit agree.

    It is estimated with one unit of hits and one of misses added, as Agresti and Coull (1998) add
    hits and misses: a few events alone tell nothing of how those of one unit hang together.

    >>> model = [0, 0, 0, 1, 1, 1, 2, 2, 2]  # all cases of one planted model are one unit
    >>> proportion(np.array([1, 1, 1, 0, 1, 1, 1, 1, 1]), Units.of(model)).value
    0.8888888888888888
    """
    hits = np.asarray(hits, dtype=np.float64)
    own = units.sums(np.ones_like(hits))
    sizes = np.append(own, [own.mean(), own.mean()])
    sums = np.append(units.sums(hits), [own.mean(), 0])
    count, total, middle = len(sizes), sizes.sum(), sums.sum() / sizes.sum()
    variance = ((sums - middle * sizes) ** 2).sum() / total**2 * count / (count - 1)
    of_independent = middle * (1 - middle) / total
    design = np.clip(variance / of_independent, 1, (own**2).sum() / len(hits))
    share = float(hits.mean())
    low, high = _wilson(share, len(hits) / design)
    return Estimate(value=share, low=low, high=high)


def exact_proportion(hits: int, count: int) -> Estimate:
    """`hits` of `count` independent draws, with Clopper and Pearson's exact 95 % interval; no value
    of no draws."""
    if count == 0:
        return Estimate(value=None)
    interval = stats.binomtest(hits, count).proportion_ci(0.95, method="exact")
    return Estimate(value=hits / count, low=float(interval.low), high=float(interval.high))


def _wilson(share: float, count: float) -> tuple[float, float]:
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


def auroc(scores: np.ndarray | Tensor, z: np.ndarray | Tensor) -> float:
    """Chance that a prompt with z = 1 scores above one with z = 0, ties counting half."""
    scores, z = np.asarray(scores, dtype=np.float64), np.asarray(z)
    ones, zeros = scores[z == 1], scores[z == 0]
    return float(stats.mannwhitneyu(ones, zeros).statistic / (len(ones) * len(zeros)))


def auroc_interval(
    scores: np.ndarray | Tensor, z: np.ndarray | Tensor, units: np.ndarray
) -> Estimate:
    """AUROC with Newcombe's 95 % score interval (Newcombe 2006, method 5), in which the `units`
    (n,) of the scores of either class are counted and not the scores. It has a width at 1 too; a
    single unit has none."""
    scores, z, units = np.asarray(scores, dtype=np.float64), np.asarray(z), np.asarray(units)
    value = auroc(scores, z)
    if len(np.unique(units)) < 2:
        return Estimate(value=value)
    ones, zeros = (len(np.unique(units[z == side])) for side in (1, 0))
    low, high = _newcombe(value, ones, zeros)
    return Estimate(value=value, low=low, high=high)


def _newcombe(value: float, ones: int, zeros: int) -> tuple[float, float]:
    """The AUROCs from which `value` lies at most 1.96 of their own standard errors away."""
    critical, larger = stats.norm.ppf(0.975), (ones + zeros) / 2 - 1

    def beyond(true: float) -> float:
        shape = 1 + larger * ((1 - true) / (2 - true) + true / (1 + true))
        return abs(true - value) - critical * np.sqrt(true * (1 - true) * shape / (ones * zeros))

    inner = min(max(value, 1e-12), 1 - 1e-12)
    low = 0.0 if value == 0 else optimize.root_scalar(beyond, bracket=(0.0, inner)).root
    high = 1.0 if value == 1 else optimize.root_scalar(beyond, bracket=(inner, 1.0)).root
    return float(low), float(high)


def within_classes(x: Tensor, z: np.ndarray | Tensor) -> Tensor:
    """Rows (n, d) less the mean of their class."""
    z, rest = np.asarray(z), x.clone()
    for value in np.unique(z):
        rows = torch.from_numpy(z == value)
        rest[rows] -= x[rows].mean(dim=0)
    return rest


def within_class_share(x: Tensor, z: np.ndarray | Tensor) -> float:
    """Share of the variance of the rows (n, d), over all dimensions, that lies within the classes;
    1 where there is none."""
    total = float((x - x.mean(dim=0)).square().sum())
    return float(within_classes(x, z).square().sum()) / total if total > 0 else 1.0


def between_class_share(scores: np.ndarray | Tensor, z: np.ndarray | Tensor) -> float:
    """Share of the variance of `scores` that lies between the two classes (η²)."""
    scores, z = np.asarray(scores, dtype=np.float64), np.asarray(z)
    total = scores.var()
    if total == 0:
        return 0.0
    means = np.array([scores[z == c].mean() for c in (0, 1)])
    weights = np.array([(z == c).mean() for c in (0, 1)])
    return float((weights * (means - scores.mean()) ** 2).sum() / total)
