"""The tool that writes the studies' docs, and what it makes of a record."""

from __future__ import annotations

import importlib.util
import json
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]


@cache
def studies_docs() -> ModuleType:
    """tools/studies_docs.py as a module."""
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        spec = importlib.util.spec_from_file_location(
            "studies_docs", ROOT / "tools/studies_docs.py"
        )
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(ROOT / "tools"))
    return module


def block_of(study: str, folder: Path) -> str:
    """The study's block in the docs, of the record in `folder`."""
    tool = studies_docs()
    held = {study: json.loads(tool.digest(study, folder))}
    return tool.filled(f"<!-- from: {study} -->\n<!-- end -->", held, study)
