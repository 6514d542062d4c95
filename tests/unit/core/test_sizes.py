"""Sizes of memory: powers of 1,000 and of 1,024, and what is refused."""

from __future__ import annotations

import pytest

from subspacelens.core.errors import LensError
from subspacelens.core.sizes import parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512MB", 512_000_000),
        ("2gib", 2 * 1024**3),
        (" 1.5 GiB ", 3 * 1024**3 // 2),
        ("3g", 3_000_000_000),
        ("70000", 70_000),
        ("1EiB", 2**60),
    ],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "", "much", "0", "0.4", "-1GB", "1e9", "nan", "inf", "2 GB more", "2XB", "٣MB", "2EiB",
        "9" * 400, "9" * 400 + "GB", "1." + "0" * 5000, "\x1b[31m2GB",
    ],
)  # fmt: skip
def test_what_is_not_a_size_is_refused_in_one_short_line(text):
    with pytest.raises(LensError, match="is not a size of at most 1EiB") as error:
        parse_size(text)
    assert len(str(error.value)) < 120
