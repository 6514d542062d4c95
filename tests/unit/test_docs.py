"""What is written about the library is true of it: the README runs, every public name is told."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import subspacelens
from subspacelens import LensError

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def lack(thing: Any) -> str | None:
    """What the docstring of a public name lacks; None for nothing. Plain values need none."""
    if not (isinstance(thing, ModuleType) or inspect.isclass(thing) or callable(thing)):
        return None
    text = inspect.unwrap(thing).__doc__
    if not text:
        return "a docstring"
    if ">>> " not in text and not (inspect.isclass(thing) and issubclass(thing, Exception)):
        return "an example"
    return None


@pytest.mark.parametrize("name", subspacelens.__all__)
def test_every_public_name_has_a_docstring_with_an_example(name):
    assert lack(getattr(subspacelens, name)) is None


def test_a_name_without_one_is_noticed():
    class Bare(LensError):
        pass

    def told(x: int) -> int:
        """One sentence."""
        return x

    assert lack(Bare) == lack(lambda: 0) == "a docstring"
    assert lack(told) == "an example"
    assert lack((1, 2)) is lack(LensError) is None


def test_the_page_of_the_api_has_every_public_name_once():
    page = (ROOT / "docs/api.md").read_text()
    names = re.findall(r"^::: subspacelens\.public\.(\w+)$", page, re.MULTILINE)
    assert sorted(names) == sorted(subspacelens.__all__)


def test_ten_lines_of_python(tiny_folder, tmp_path, monkeypatch, capsys):
    """The README's Python runs, on a model that is small enough for a test."""
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 11
    code = code.replace('"smollm2"', repr(tiny_folder)).replace("L18.mlp_act", "L1.mlp_act")
    code = code.replace("ioi(lens.tokenizer)", "ioi(lens.tokenizer, train=16, test=16, held_out=8)")
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert "Audit(L1.mlp_act@S2" in capsys.readouterr().out
    assert (tmp_path / "runs/mine/report.html").is_file()


def test_the_page_of_what_is_in_memory_runs(tiny_folder, tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs/in_python.md").read_text()
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    code = code.replace('"smollm2"', repr(tiny_folder)).replace("L18.mlp_act", "L1.mlp_act")
    code = code.replace("L17.resid_post", "L2.resid_post")
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert "Swap(L2.resid_post@END)" in capsys.readouterr().out
    assert (tmp_path / "runs/latent/report.html").is_file()
    assert (tmp_path / "runs/latents/screen.html").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text()
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_are_there(page):
    """`audit/verdict.py`, `tests/crash`: below the root, `src/subspacelens`, or the page."""
    above = (ROOT, ROOT / "src/subspacelens", page.parent)
    for path in re.findall(r"`((?:[\w-]+/)*[\w-]+(?:/|\.py|\.md|\.toml|\.txt))`", page.read_text()):
        assert any((folder / path).exists() for folder in above), path
