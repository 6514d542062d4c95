"""The Python of docs/places.md runs, on a model that is small enough for a test."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = (Path(__file__).parents[3] / "docs/places.md").read_text()


def test_the_examples_run(tiny_folder, capsys):
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
    code = code.replace('"smollm2"', repr(tiny_folder))
    code = code.replace("ioi(lens.tokenizer)", "ioi(lens.tokenizer, train=8, test=8, held_out=8)")
    for real, tiny in (("L17.", "L1."), ("L18.", "L2."), ("L20.", "L3.")):
        code = code.replace(real, tiny)
    exec(code, {})
    out = capsys.readouterr().out
    assert out.count("value=") == 4 and "tensor(" in out
