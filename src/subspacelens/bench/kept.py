"""Rows of a long benchmark, each in a file of its own, so that one that was stopped goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.errors import ResultError
from ..core.files import read_whole, write_atomically


def kept(path: Path, origin: Mapping[str, Any]) -> dict[str, Any] | None:
    """What is in a file, if it was made from the same things; None where it was not or is not
    there."""
    try:
        row = json.loads(read_whole(path))
    except (ResultError, ValueError):
        return None
    return row if isinstance(row, dict) and row.get("origin") == origin else None


def keep(path: Path, row: Mapping[str, Any]) -> None:
    """Writes a row with its `origin`."""
    write_atomically(path, json.dumps(row).encode())


def source_sha256() -> str:
    """Of this package's own code, as it is on disk: a rate is that of one version of the rule."""
    root, whole = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        whole.update(str(path.relative_to(root)).encode())
        whole.update(path.read_bytes())
    return whole.hexdigest()
