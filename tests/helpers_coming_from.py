"""The code of docs/coming_from.md, by row and tool."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = (Path(__file__).parents[1] / "docs/coming_from.md").read_text()
TOOLS = ("subspacelens", "TransformerLens", "pyvene", "nnsight")
BEGINNING = "What a notebook begins with"
ALONE = ("One expert of a mixture", "Is it an illusion?")
"""Rows that the others have nothing for."""


def sections() -> dict[str, dict[str, str]]:
    """Of each section with code, the code of each tool."""
    found = {}
    for text in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]:
        title, _, body = text.partition("\n")
        found[title] = dict(re.findall(r'```python title="(\w+)"\n(.*?)```', body, re.DOTALL))
    return found


def rows() -> dict[str, dict[str, str]]:
    """The same without what a notebook begins with."""
    return {title: codes for title, codes in sections().items() if title != BEGINNING}
