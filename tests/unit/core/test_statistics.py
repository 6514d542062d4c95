"""Intervals are over units, and what resampling cannot show is not taken for certainty."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from subspacelens.core.records import Estimate
from subspacelens.core.statistics import Units, mean, proportion, quotient, ratio


def apart(count: int) -> Units:
    return Units(np.arange(count))


def test_one_unit_gives_a_value_and_no_interval():
    one = Units(np.zeros(4, dtype=int))
    values = np.array([1.0, 2.0, 3.0, 4.0])
    for estimate in (mean(values, one), ratio(values, 2 * values, one)):
        assert estimate.value is not None and estimate.low is None and estimate.high is None


def test_units_that_all_agree_on_a_ratio_leave_no_doubt():
    values = np.array([1.0, 1.0, 1.0])
    assert ratio(values, 2 * values, apart(3)).model_dump() == dict(value=0.5, low=0.5, high=0.5)


def test_units_of_any_size_leave_a_mean_its_interval():
    sizes = [40, *[1] * 20]
    units = Units(np.repeat(np.arange(21), sizes))
    values = np.random.default_rng(0).normal(3, 1, 60)
    estimate = mean(values, units)
    assert estimate.low < values.mean() == estimate.value < estimate.high
    assert mean(np.arange(10.0), apart(10)).low == pytest.approx(
        4.5 - 2.2622 * np.arange(10).std(ddof=1) / 10**0.5, abs=1e-3
    )


def test_one_hit_tells_no_more_of_units_than_none():
    units = Units(np.repeat(np.arange(7), 8))
    none, one = (proportion(np.arange(56) < hits, units) for hits in (0, 1))
    assert one.high - one.low > 0.8 * (none.high - none.low)


def test_nothing_has_no_sign():
    zero = ratio(np.zeros(3), np.array([-1.0, -2.0, -1.0]), apart(3))
    assert f"{zero.value:.0%}" == "0%"


@pytest.mark.parametrize("hit", [0, 1])
def test_a_proportion_on_which_all_agree_is_as_wilson_says(hit):
    share = proportion(np.full(50, hit), apart(50))
    expected = binomtest(50 * hit, 50).proportion_ci(method="wilson")
    assert share.value == hit
    assert (share.low, share.high) == pytest.approx((expected.low, expected.high))


def test_hits_of_a_unit_that_are_no_more_alike_than_others_count_each():
    for share in (proportion(np.full(50, 0.5), apart(50)),
                  proportion(np.tile([0, 1], 25), Units(np.repeat(np.arange(25), 2)))):  # fmt: skip
        expected = binomtest(25, 50).proportion_ci(method="wilson")
        assert share.value == 0.5
        assert (share.low, share.high) == pytest.approx((expected.low, expected.high))


def test_hits_of_one_unit_are_one_hit():
    """Ten planted models of which each gives ten cases say as much as ten cases do."""
    hits = np.repeat([0, 1, 1, 1, 0, 1, 1, 1, 1, 1], 10)
    clustered = proportion(hits, Units(np.repeat(np.arange(10), 10)))
    single = proportion(hits[::10], apart(10))
    assert clustered.model_dump() == pytest.approx(single.model_dump())
    wide, narrow = (e.high - e.low for e in (clustered, proportion(hits, apart(100))))
    assert wide > 2 * narrow


def test_halves_share_no_unit_and_are_balanced():
    units = Units(np.repeat(np.arange(40), 3))
    z = np.repeat(np.arange(40) % 2, 3)
    first, second = units.halves(z, seed=0)
    assert sorted([*first, *second]) == list(range(120))
    assert not set(units.of_pair[first]) & set(units.of_pair[second])
    for half in (first, second):
        assert z[half].mean() == 0.5 and len(half) == 60
        assert list(half) == sorted(half)
    again, other = units.halves(z, seed=0)[0], units.halves(z, seed=1)[0]
    assert list(again) == list(first) != list(other)


def test_odd_strata_do_not_all_give_their_odd_unit_to_one_half():
    units, strata = apart(12), np.repeat([0, 1, 2, 3], 3)
    first, second = units.halves(strata, seed=0)
    assert len(first) == len(second) == 6


def around(value: float, below: float, above: float) -> Estimate:
    return Estimate(value=value, low=value - below, high=value + above)


def test_a_quotient_of_symmetric_estimates_is_fiellers():
    """The ends are the r at which (1 - 2 r)² = .2² + (.5 r)²."""
    found = quotient(around(1, 0.2, 0.2), around(2, 0.5, 0.5))
    ends = np.roots([2**2 - 0.5**2, -2 * 1 * 2, 1 - 0.2**2])
    assert (found.low, found.high) == pytest.approx((min(ends), max(ends)))
    assert found.value == 0.5


sizes = st.floats(0.01, 3)


@given(st.floats(-3, 3), sizes, sizes, st.floats(0.1, 3), sizes, sizes)
def test_ends_of_a_quotient_are_where_the_two_are_at_their_own(t, t_low, t_high, b, share, b_high):
    b_low = b * share / 3.01
    found = quotient(around(t, t_low, t_high), around(b, b_low, b_high))
    assert found.low < found.value == t / b < found.high
    for r, t_end, down, up in (
        (found.low, t_low, b_high, b_low), (found.high, t_high, b_low, b_high)
    ):  # fmt: skip
        b_end = down if r > 0 else up
        assert abs(t - r * b) == pytest.approx(np.hypot(t_end, r * b_end), rel=1e-6, abs=1e-9)
    turned = quotient(around(-t, t_high, t_low), around(b, b_low, b_high))
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))
    twice = quotient(around(-t, t_high, t_low), around(-b, b_high, b_low))
    assert (twice.low, twice.high) == pytest.approx((found.low, found.high))


def test_a_quotient_needs_a_denominator():
    one, none = around(1, 0.1, 0.1), Estimate(value=None)
    assert quotient(one, Estimate(value=0.0)).value is None
    assert quotient(one, none).value is quotient(none, one).value is None
    for bottom in (around(0.5, 0.5, 1), Estimate(value=0.5)):
        assert quotient(one, bottom).model_dump() == dict(value=2, low=None, high=None)
    assert quotient(Estimate(value=1), one).model_dump() == dict(value=1, low=None, high=None)
