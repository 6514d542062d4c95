"""Rows of a benchmark depend on the code that they are computed with, and on no more."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

import pytest

import subspacelens
from subspacelens.bench import audit, constraints, find
from subspacelens.bench import kept as module
from subspacelens.sweep import plan

SOURCE = Path(subspacelens.__file__).parent


def imported(path: Path) -> set[str]:
    """The rooms that a file of a room imports from, relatively."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return {
        node.module.split(".")[0]
        for node in nodes
        if isinstance(node, ast.ImportFrom) and node.level == 2 and node.module
    }


@pytest.mark.parametrize(("bench", "above"), [(audit, ()), (constraints, ()), (find, find.ABOVE)])
def test_every_room_that_a_benchmark_imports_is_in_its_hash(bench, above):
    rooms = {*module.COMPUTING, *above}
    assert imported(Path(bench.__file__)) <= rooms
    assert not rooms & {"report", "cli", "studies"}


def test_pages_and_commands_are_not_in_it_and_the_rule_is(tmp_path, monkeypatch):
    copy = tmp_path / "subspacelens"
    shutil.copytree(SOURCE, copy, ignore=shutil.ignore_patterns("__pycache__", "data"))
    monkeypatch.setattr(plan, "files", lambda name: tmp_path / name)

    def told() -> tuple[str, str]:
        plan.code_sha256.cache_clear()
        return module.source_sha256(), module.source_sha256(*find.ABOVE)

    first = told()
    for page in ("report/page.py", "cli/find.py", "studies/toy.py"):
        (copy / page).write_text("changed")
    assert told() == first
    (copy / "find/places.py").write_text("changed")
    assert told()[0] == first[0] and told()[1] != first[1]
    (copy / "audit/verdict.py").write_text("changed")
    assert told()[0] != first[0]
    monkeypatch.undo()
    plan.code_sha256.cache_clear()
