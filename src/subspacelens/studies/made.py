"""When, where, and by which code the numbers of a study were made, and which were asked for."""

from __future__ import annotations

import hashlib
import subprocess
import time
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ..core.machine import machine, versions
from ..core.records import Record
from ..sweep.plan import ROOMS, canonical, code_sha256

CODE = (*ROOMS[:-1], "edit", "interop", "sweep", "survey", "studies")
"""The rooms that a study's numbers depend on: pages and commands are not among them."""


class Made(Record):
    """What a table says of itself. `commit`: of the checkout that the package was imported from,
    None where it is in none; `changed`: the package's files were not those of the commit. `began`:
    UTC, as `2026-11-30T08:24:36Z`. `asked_sha256`: see `asked_sha256`.

    >>> Made.now(asked_sha256("toy", pairs=200)).machine
    """

    version: str
    commit: str | None
    changed: bool
    code_sha256: str
    machine: str
    threads: int
    versions: dict[str, str]
    began: str
    asked_sha256: str

    @classmethod
    def now(cls, asked: str) -> Made:
        """Of a study that begins here and now."""
        commit, changed = checkout(Path(__file__).parents[1])
        return cls(
            version=_version(),
            commit=commit,
            changed=changed,
            code_sha256=code_sha256(CODE),
            machine=machine(),
            threads=torch.get_num_threads(),
            versions=versions(),
            began=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            asked_sha256=asked,
        )


def asked_sha256(study: str, **settings: Any) -> str:
    """One hash of a study's name, its settings (JSON types: models by the key of their identity,
    files by their hash), the code that computes it, and the versions that it computes with. Equal
    hashes mean the same numbers."""
    whole = {
        "study": study, "settings": settings, "code": code_sha256(CODE), "versions": versions(),
    }  # fmt: skip
    return hashlib.sha256(canonical(whole).encode()).hexdigest()


@cache
def checkout(package: Path) -> tuple[str | None, bool]:
    """The commit of the Git checkout that a folder is tracked in, and whether files in the folder
    are not as they are there; None and False where there is no Git, or the folder is not in one."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(package), *arguments], check=True, capture_output=True, text=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--", "."))
    except (OSError, subprocess.CalledProcessError):
        return None, False


def _version() -> str:
    try:
        return version("subspacelens")
    except PackageNotFoundError:
        return "unknown"
