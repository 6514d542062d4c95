"""Whole commands are run as they are typed, and a failure is said."""

from __future__ import annotations

import pytest

from subspacelens.bench import bench_commands, commands
from subspacelens.core.errors import LensError


def test_a_command_is_timed_in_turn_with_another_python(monkeypatch):
    order = []
    monkeypatch.setattr(commands, "_run", lambda python, line: order.append(python) or len(order))
    result = bench_commands(["audit"], repeat=3, pythons={"before": "old", "now": "new"})
    assert order == ["old", "new"] * 3
    assert [(row["command"], row["python"], row["median"]) for row in result["rows"]] == [
        ("subspacelens audit", "before", 3), ("subspacelens audit", "now", 4),
    ]  # fmt: skip


def test_the_help_is_a_command():
    (row,) = bench_commands(["help"], repeat=1)["rows"]
    assert 0 < row["median"] == row["seconds"][0] < 30


def test_what_cannot_be_timed_is_said(monkeypatch):
    with pytest.raises(LensError, match="unknown command 'tea': one of help"):
        bench_commands(["tea"])
    monkeypatch.setattr(commands, "COMMANDS", {"bad": ("report", "nowhere")})
    with pytest.raises(LensError, match=r"exit code 2: subspacelens: .*nowhere"):
        bench_commands(["bad"], repeat=1)
