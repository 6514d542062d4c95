"""Packages that are also their main function."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


def callable_package(name: str, function: Callable[..., Any]) -> None:
    """Lets the loaded package `name` be called as `function`, which has the same name: so
    `sl.audit(...)` runs, and `import subspacelens.audit.verdict` finds a module."""
    members = {"__call__": staticmethod(function), "__wrapped__": staticmethod(function)}
    sys.modules[name].__class__ = type("CallablePackage", (ModuleType,), members)
