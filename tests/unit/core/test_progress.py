"""What is shown of progress: bars in a terminal, lines elsewhere, all letter by letter."""

from __future__ import annotations

import io
import time

from rich.console import Console

from subspacelens.core import progress
from subspacelens.core.progress import bar, note, showing_progress, track


def test_bars_in_a_terminal_are_no_markup(monkeypatch):
    out = io.StringIO()
    terminal = Console(file=out, force_terminal=True, width=120)
    monkeypatch.setattr(progress, "Console", lambda **_: terminal)
    with showing_progress():
        assert list(track([1], "audit of [/b][red]")) == [1]
    assert "audit of [/b][red]" in out.getvalue() and "1/1" in out.getvalue()


def test_a_line_every_few_seconds_where_there_is_no_terminal(monkeypatch, capsys):
    monkeypatch.setattr(progress, "EVERY", 0.02)
    with showing_progress():
        for number in track([1, 2, 3], "audit of [/b][red]"):
            with bar("inside", 7) as move:
                move(4, "inside [b]")
                time.sleep(0.1 if number == 2 else 0)
            time.sleep(0.1 if number == 3 else 0)
    lines = capsys.readouterr().err.splitlines()
    assert lines.count("inside [b]: 4 of 7, 0 s") >= 2
    assert lines[-1] == "audit of [/b][red]: 2 of 3, 0 s"


def test_short_work_and_silence_print_nothing(monkeypatch, capsys):
    with showing_progress():
        assert list(track([1], "short")) == [1]
    monkeypatch.setattr(progress, "EVERY", 0.02)
    with showing_progress():
        time.sleep(0.1)
        note("said")
    assert capsys.readouterr().err == "said\n"
    assert list(track([1], "unshown")) == [1]
    assert capsys.readouterr() == ("", "")
