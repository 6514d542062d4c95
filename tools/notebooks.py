"""For `make docs`: the tutorials as notebooks, and the pages of the gallery, run on this machine.

A tutorial is docs/tutorials/NAME.py in the form that jupytext calls `py:percent`: cells begin with
`# %%`, text with `# %% [markdown]`, and commands with `# %% language="bash"`. It is run in the
folder build/tutorials/NAME, where notebook.ipynb is written with what it printed. A page of
docs/gallery.toml that has a command is made in build/gallery/NAME. What was made from the same
sources is not made again, so the script may be stopped and goes on.

    python tools/notebooks.py            # all that is missing or was made from other sources
    python tools/notebooks.py 1_your_pairs toy
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build"
TUTORIALS = ROOT / "docs/tutorials"
GALLERY = ROOT / "docs/gallery.toml"
NOTEBOOK = "notebook.ipynb"
BASH = "%%bash\n"


@dataclass(frozen=True)
class Cell:
    """`kind` is `markdown` or `code`; code that begins with `%%bash` is for the shell."""

    kind: str
    text: str


def cells_of(source: str) -> list[Cell]:
    """The cells of a script in the percent form."""
    cells: list[Cell] = []
    for block in f"\n{source}".split("\n# %%")[1:]:
        header, _, body = block.partition("\n")
        body = body.strip("\n")
        if "[markdown]" in header or 'language="bash"' in header:
            body = "\n".join(line.removeprefix("#").removeprefix(" ") for line in body.split("\n"))
        if "[markdown]" in header:
            cells.append(Cell("markdown", body))
        else:
            cells.append(Cell("code", BASH * ('language="bash"' in header) + body))
    return cells


def tutorials() -> dict[str, Path]:
    """The tutorials by name, in their order."""
    return {path.stem: path for path in sorted(TUTORIALS.glob("*.py"))}


def gallery() -> dict[str, dict[str, str]]:
    """The pages of the gallery by name, with `title`, `shows`, `page` and perhaps `command`."""
    return tomllib.loads(GALLERY.read_text())


def run_cell(text: str, names: dict[str, Any]) -> str:
    """What a cell prints, and the value of its last line."""
    if text.startswith(BASH):
        done = subprocess.run(
            ["bash", "-euc", text.removeprefix(BASH)], capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"exit code {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout
    tree = ast.parse(text)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, "<cell>", "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "<cell>", "eval"), names)
            if value is not None:
                print(repr(value))
    return printed.getvalue()


def run_tutorial(source: Path, folder: Path) -> None:
    """Runs the cells in `folder`, in this process, and writes the notebook there."""
    written, names = [], {"__name__": "__main__"}
    os.chdir(folder)
    for number, cell in enumerate(cells_of(source.read_text())):
        entry: dict[str, Any] = {
            "cell_type": cell.kind,
            "id": f"cell-{number}",
            "metadata": {},
            "source": cell.text,
        }
        if cell.kind == "code":
            try:
                text = run_cell(cell.text, names)
            except Exception as error:
                raise SystemExit(f"{source.name}, cell {number}: {error!r}\n{cell.text}") from error
            output = {"output_type": "stream", "name": "stdout", "text": text}
            entry |= {"execution_count": None, "outputs": [output] if text else []}
        written.append(entry)
    notebook = {
        "cells": written,
        "metadata": {
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
            "subspacelens": made(),
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    (folder / NOTEBOOK).write_text(json.dumps(notebook, indent=1))


def made() -> dict[str, Any]:
    """The commit, with a mark if the tree differs from it, the day, and seconds of one core that
    this process and its commands took."""
    git = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    commit = subprocess.run(git, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    seconds = round(sum(os.times()[:4]))
    return {"commit": commit, "date": datetime.now(UTC).date().isoformat(), "seconds": seconds}


def sources_sha256(own: str) -> str:
    """The hash of the package's source and of `own`."""
    digest = hashlib.sha256(own.encode())
    for path in sorted((ROOT / "src").rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(path.read_bytes())
    return digest.hexdigest()


def make(name: str, folder: Path, own: str, command: list[str]) -> None:
    """Runs `command` in a new `folder`, unless it was made from the same sources."""
    key, stamp = sources_sha256(own), folder / ".made-from"
    if stamp.is_file() and stamp.read_text() == key:
        print(f"{name}: as before")
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    began = time.monotonic()
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stdout}{done.stderr}")
    stamp.write_text(key)
    print(f"{name}: {time.monotonic() - began:.0f} s")


def environment() -> Mapping[str, str]:
    """This environment, with the commands of this Python first on the path, in 80 columns."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "COLUMNS": "80"}


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["--here"]:
        return run_tutorial(Path(arguments[1]), Path.cwd())
    for name, source in tutorials().items():
        if not arguments or name in arguments:
            command = [sys.executable, __file__, "--here", str(source)]
            make(name, BUILD / "tutorials" / name, source.read_text(), command)
    for name, page in gallery().items():
        if "command" in page and (not arguments or name in arguments):
            make(name, BUILD / "gallery" / name, page["command"], ["bash", "-c", page["command"]])


if __name__ == "__main__":
    main(sys.argv[1:])
