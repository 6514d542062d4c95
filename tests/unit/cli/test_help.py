"""Every command's help ends with an example that the command takes, in 80 columns."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from importlib.metadata import version

import pytest
import typer

from subspacelens.cli.app import app

COMMANDS = typer.main.get_command(app)


def commands(
    group=COMMANDS, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], object]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


@pytest.mark.parametrize(("path", "command"), [*commands()], ids=lambda value: str(value)[:40])
def test_an_example_that_is_right(run, path, command):
    code, out, _ = run(*path, "--help")
    assert code == 0 and max(map(len, out.splitlines())) <= 80
    _, _, example = out.partition("Example:")
    words = shlex.split(example.replace("\\\n", " "))
    assert words[: len(path) + 1] == ["subspacelens", *path]
    command.make_context("x", words[len(path) + 1 :])


def test_version(run):
    code, out, _ = run("--version")
    assert code == 0 and out == f"subspacelens {version('subspacelens')}\n"
