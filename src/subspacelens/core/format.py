"""Numbers as a reader wants them: one home for every table, page and sentence."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .records import Estimate

MINUS = "−"
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def plain(value: float | None, decimals: int = 2) -> str:
    """`-0.35`: fixed decimals and an ASCII minus, for terminals; `-` where there is no value."""
    return "-" if value is None else f"{value:.{decimals}f}"


def fixed(value: float | None) -> str:
    """`−0.35`: two decimals, a true minus, no minus before a zero; `–` where there is no value."""
    if value is None:
        return "–"
    return f"{value:.2f}".replace("-0.00", "0.00").replace("-", MINUS)


def number(value: float | None) -> str:
    """`0.35`, `0.0042`, `123456`, `2.4×10⁻⁶`: two decimals in the middle, powers of ten at the
    extremes, a true minus; `–` where there is no value."""
    if value is None:
        return "–"
    size = abs(value)
    if size == 0:
        return "0"
    if not math.isfinite(value):
        return f"{value}".replace("-", MINUS)
    if size < 5e-4 or size >= 1e5:
        mantissa, power = f"{value:.1e}".split("e")
        superscript = str(int(power)).translate(_SUPERSCRIPT)
        return f"{mantissa.removesuffix('.0')}×10{superscript}".replace("-", MINUS)
    decimals = 3 if size < 0.01 else 2 if size < 100 else 0
    return f"{value:.{decimals}f}".replace("-", MINUS)


def short(value: float) -> str:
    """`.97`, `−.12`, `1.4`: as little as fits into a tile of a map."""
    text = f"{value:.2f}".replace("0.", ".", 1) if abs(value) < 0.995 else f"{value:.1f}"
    return text.replace("-", MINUS)


def counted(count: int, noun: str) -> str:
    """`1 pair`, `12 pairs`, `1,234 pairs`."""
    return f"{count:,} {noun}" + "s" * (count != 1)


def percent(value: float | None) -> str:
    """`12.5 %` of a share; `–` where there is no value."""
    return "–" if value is None else f"{100 * value:.1f} %".replace("-", MINUS)


def interval(estimate: Estimate, form: Callable[[float], str] = fixed) -> str:
    """`[0.31, 0.39]`, or nothing where there is no interval."""
    if estimate.low is None or estimate.high is None:
        return ""
    return f"[{form(estimate.low)}, {form(estimate.high)}]"


def with_interval(estimate: Estimate | None, form: Callable[[float | None], str] = fixed) -> str:
    """`0.35 [0.31, 0.39]`, the value alone where there is no interval, or what `form` writes for
    None where there is no value.

    >>> with_interval(Estimate(value=0.35, low=0.31, high=0.39))
    '0.35 [0.31, 0.39]'
    """
    if estimate is None or estimate.value is None:
        return form(None)
    return f"{form(estimate.value)} {interval(estimate, form)}".rstrip()


def duration(seconds: float) -> str:
    """`4.8 s`, `48 s`, `3 min 20 s`, `1 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def memory(size: int) -> str:
    """`740 MiB` or `1.85 GiB` of so many bytes."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
