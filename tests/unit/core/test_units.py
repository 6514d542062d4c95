"""What is resampled is a unit with all its pairs, never a pair."""

from __future__ import annotations

import numpy as np
import pytest

from subspacelens.core.statistics import Units, median


def width(estimate) -> float:
    return estimate.high - estimate.low


def test_draws_take_whole_units():
    units = Units.of(["a", "b", "a", "c", "b"])
    draws = units.draws(200)
    assert draws.shape == (200, 5)
    assert (draws[:, 0] == draws[:, 2]).all() and (draws[:, 1] == draws[:, 4]).all()
    assert (draws[:, 0] + draws[:, 1] + draws[:, 3] == 3).all()
    assert len(np.unique(draws, axis=0)) > 5


@pytest.mark.parametrize("count", [7, 8])
def test_the_median_of_a_draw_is_that_of_its_pairs_repeated(monkeypatch, count):
    rng = np.random.default_rng(1)
    values = rng.normal(size=count)
    units = Units(rng.permutation(count) % 4)
    draws = units.draws(50)
    expected = [np.median(np.repeat(values, times)) for times in draws]
    monkeypatch.setattr("subspacelens.core.statistics.RESAMPLES", 50)
    estimate = median(values, units)
    low, high = np.quantile(expected, [0.025, 0.975])
    assert estimate.value == np.median(values)
    assert (estimate.low, estimate.high) == pytest.approx((low, high))


def test_pairs_that_repeat_their_unit_narrow_no_median():
    values = np.random.default_rng(0).normal(size=20)
    alone = median(values, Units(np.arange(20)))
    repeated = median(np.repeat(values, 9), Units(np.repeat(np.arange(20), 9)))
    assert width(repeated) == pytest.approx(width(alone), rel=0.1)
    assert width(median(np.repeat(values, 9), Units(np.arange(180)))) < width(alone) / 2


def test_a_median_of_one_unit_has_no_interval():
    assert median(np.array([1.0, 2.0, 3.0]), Units(np.zeros(3, int))).low is None
    assert median(np.ones(3), Units(np.arange(3))).low is None
