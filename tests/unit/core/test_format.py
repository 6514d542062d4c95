"""Numbers as tables, pages and sentences write them."""

from __future__ import annotations

import pytest

from subspacelens.core.format import (
    duration,
    fixed,
    interval,
    memory,
    number,
    percent,
    plain,
    short,
    with_interval,
)
from subspacelens.core.records import Estimate


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0"),
        (1.357, "1.36"),
        (-0.5, "−0.50"),
        (0.0042, "0.004"),
        (2.4e-6, "2.4×10⁻⁶"),
        (-1e-7, "−1×10⁻⁷"),
        (143.2, "143"),
        (250_000.0, "2.5×10⁵"),
        (999_999.0, "1×10⁶"),
        (1.7e308, "1.7×10³⁰⁸"),
        (5e-324, "4.9×10⁻³²⁴"),
        (float("-inf"), "−inf"),
        (float("nan"), "nan"),
    ],
)
def test_numbers(value, text):
    assert number(value) == text


def test_two_decimals_with_a_true_minus_and_none_before_a_zero():
    assert [fixed(x) for x in (1.357, -0.5, -0.001, -10.001, None)] == [
        "1.36", "−0.50", "0.00", "−10.00", "–",
    ]  # fmt: skip


def test_plain_numbers_are_ascii():
    assert [plain(-0.5), plain(1.2345, 3), plain(None)] == ["-0.50", "1.234", "-"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.97, ".97"), (-0.123, "−.12"), (1.37, "1.4"), (-10.02, "−10.0"), (0.999, "1.0")],
)
def test_short_numbers(value, text):
    assert short(value) == text


def test_values_with_their_intervals():
    whole, bare = Estimate(value=-0.5, low=-0.6, high=0.1), Estimate(value=0.25)
    assert with_interval(whole) == "−0.50 [−0.60, 0.10]"
    assert with_interval(whole, plain) == "-0.50 [-0.60, 0.10]"
    assert (interval(whole, number), interval(bare)) == ("[−0.60, 0.10]", "")
    assert with_interval(bare) == "0.25"
    assert (with_interval(None), with_interval(Estimate(value=None), plain)) == ("–", "-")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(4.26, "4.3 s"), (48.2, "48 s"), (200, "3 min 20 s"), (3900, "1 h 05 min")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_shares_and_memory():
    assert (percent(0.125), percent(-0.5), percent(None)) == ("12.5 %", "−50.0 %", "–")
    assert (memory(740 * 2**20), memory(1980 * 2**20)) == ("740 MiB", "1.93 GiB")
