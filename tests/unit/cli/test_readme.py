"""The README's Python runs, on a model that is small enough for a test."""

from __future__ import annotations

import re
from pathlib import Path

README = (Path(__file__).parents[3] / "README.md").read_text()


def test_ten_lines_of_python(tiny_folder, tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 11
    code = code.replace('"smollm2"', repr(tiny_folder)).replace("L18.mlp_act", "L1.mlp_act")
    code = code.replace("ioi(lens.tokenizer)", "ioi(lens.tokenizer, train=16, test=16, held_out=8)")
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert "Audit(L1.mlp_act@S2" in capsys.readouterr().out
    assert (tmp_path / "runs/mine/report.html").is_file()


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", README):
        assert (Path(__file__).parents[3] / target).exists(), target
