"""What is written about the library is true of it: the README runs, every public name is told,
every command and link is there."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from markdown.extensions.toc import slugify, unique
from typer.main import get_command

import subspacelens
from subspacelens import LensError
from subspacelens.cli.app import app

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tools"))
from notebooks import BASH, Cell, cells_of, gallery, tutorials  # noqa: E402

README = (ROOT / "README.md").read_text()
TUTORIALS = sorted(tutorials().values())
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


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


def text_of(page: Path) -> str:
    """What a page says; of a tutorial what its text says."""
    if page.suffix == ".md":
        return page.read_text()
    return "\n\n".join(c.text for c in cells_of(page.read_text()) if c.kind == "markdown")


def anchors_of(page: Path) -> set[str]:
    """The anchors of a page's headings, as the site has them."""
    found: set[str] = set()
    for heading in re.findall(
        r"^#+ (.+)$", re.sub(r"```.*?```", "", text_of(page), flags=re.S), re.M
    ):
        unique(slugify(re.sub(r"[`*]|\]\([^)]*\)", "", heading), "-"), found)
    return found


def broken_links(page: Path, text: str) -> Iterator[str]:
    """Links of `text` to files that are not there, or to headings that a page has not."""
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        there = page.parent / path if path else page
        if not there.exists() or (anchor and anchor not in anchors_of(there)):
            yield target


@pytest.mark.parametrize("page", [*PAGES, *TUTORIALS], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    assert list(broken_links(page, text_of(page))) == []


def test_a_broken_link_is_noticed():
    page = ROOT / "docs/audit.md"
    text = "[a](limits.md) [b](none.md) [c](engine.md#memory-and-devices) [d](#none) [e](#effects)"
    assert list(broken_links(page, text)) == ["none.md", "#none"]


def commands_in(text: str) -> Iterator[str]:
    """The command lines of this library in code, indented or fenced or within a line."""
    code = [block for block in re.findall(r"```(?:bash)?\n(.*?)```", text, re.S)]
    joined = re.sub(r"\\\n\s*", "", "\n".join(code))
    for line in [*joined.split("\n"), *re.findall(r"`(subspacelens [^`]+)`", text)]:
        words = " ".join(line.split())
        if words.startswith("subspacelens "):
            yield words.partition(" # ")[0]


COMMAND = get_command(app)


def wrong_with(line: str) -> str | None:
    """What of a command line the command line does not know."""
    command, words = COMMAND, shlex.split(line)[1:]
    while words and (nested := getattr(command, "commands", None)) is not None:
        if words[0] == "--version":
            return None
        if words[0] not in nested:
            return words[0]
        command, words = nested[words[0]], words[1:]
    known = {name for each in command.params for name in [*each.opts, *each.secondary_opts]}
    unknown = [w for w in words if w.startswith("--") and w.partition("=")[0] not in known]
    return unknown[0] if unknown else None


@pytest.mark.parametrize("page", [*PAGES, *TUTORIALS], ids=lambda page: page.name)
def test_commands_that_a_page_names_exist(page):
    text = text_of(page)
    if page in TUTORIALS:
        cells = [c.text for c in cells_of(page.read_text()) if c.text.startswith(BASH)]
        text += "".join(f"\n```\n{each}\n```\n" for each in cells)
    assert {line: wrong for line in commands_in(text) if (wrong := wrong_with(line))} == {}


def test_commands_of_the_gallery_exist():
    made = [page["command"].strip() for page in gallery().values() if "command" in page]
    lines = [*commands_in("\n".join(f"```\n{each}\n```" for each in made))]
    assert len(lines) == len(made) > 0
    assert {line: wrong for line in lines if (wrong := wrong_with(line))} == {}


def test_a_command_that_is_not_there_is_noticed():
    text = "```\nsubspacelens audit --sight X \\\n    --dim 2  # why\n```\n`subspacelens seek it`"
    assert [wrong_with(line) for line in commands_in(text)] == ["--sight", "seek"]
    assert wrong_with("subspacelens reproduce ioi --quick") is None


def missing_names(code: str) -> Iterator[str]:
    """What code takes from this library that is not there or not for others."""
    known: dict[str, Any] = {}
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for each in node.names:
                if each.name == "subspacelens":
                    known[each.asname or each.name] = subspacelens
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("subspacelens"):
            module = importlib.import_module(str(node.module))
            for each in node.names:
                if each.name.startswith("_") or not hasattr(module, each.name):
                    yield f"{node.module}.{each.name}"
    for node in ast.walk(tree):
        names: list[str] = []
        inner: ast.expr | ast.AST = node
        while isinstance(inner, ast.Attribute):
            names.insert(0, inner.attr)
            inner = inner.value
        if names and isinstance(inner, ast.Name) and inner.id in known:
            thing = known[inner.id]
            for name in names:
                if name.startswith("_") or not hasattr(thing, name):
                    yield f"{inner.id}.{'.'.join(names)}"
                    break
                thing = getattr(thing, name)
                if not (isinstance(thing, ModuleType) or inspect.isclass(thing)):
                    break


@pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda path: path.name)
def test_a_tutorial_uses_what_is_there(tutorial):
    cells = cells_of(tutorial.read_text())
    assert cells[0].kind == "markdown" and cells[0].text.startswith("# ")
    code = [c.text for c in cells if c.kind == "code" and not c.text.startswith(BASH)]
    assert list(missing_names("\n".join(code))) == []


def test_a_name_that_is_not_there_is_noticed():
    code = """
import subspacelens as sl
from subspacelens.edit import rome, nothing
sl.audit(1).verdict, sl.Site.parse, sl.Site.parsed, sl._private, sl.patching.Add
"""
    assert sorted(missing_names(code)) == [
        "sl.Site.parsed",
        "sl._private",
        "subspacelens.edit.nothing",
    ]


def test_cells_of_a_notebook():
    source = '# %% [markdown]\n# # A\n#\n# b\n\n# %%\nx = 1\n\n# %% language="bash"\n# ls\n'
    assert cells_of(source) == [
        Cell("markdown", "# A\n\nb"), Cell("code", "x = 1"), Cell("code", f"{BASH}ls")
    ]  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_are_there(page):
    """`audit/verdict.py`, `tests/crash`: below the root, `src/subspacelens`, or the page."""
    above = (ROOT, ROOT / "src/subspacelens", page.parent)
    for path in re.findall(r"`((?:[\w-]+/)*[\w-]+(?:/|\.py|\.md|\.toml|\.txt))`", page.read_text()):
        assert any((folder / path).exists() for folder in above), path
