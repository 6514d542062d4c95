"""Bars say what they are given, letter by letter."""

from __future__ import annotations

from subspacelens.core.progress import showing_progress, track


def test_square_brackets_in_a_task_are_no_markup(capsys):
    with showing_progress():
        assert list(track([1], "audit of [/b][red]")) == [1]
    assert "audit of [/b][red]" in capsys.readouterr().err
