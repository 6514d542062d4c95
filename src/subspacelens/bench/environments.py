"""Environments of the rivals: what they need is seldom what we are locked to."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from ..core.errors import LensError
from ..core.files import cache_folder
from ..core.progress import track

PACKAGES = {"transformer-lens": "transformer-lens==4.3.0", "pyvene": "pyvene==0.1.8"}
"""What is installed for a rival, beside the torch that we run with."""


def peer_pythons(given: Mapping[str, Path], *, install: bool = False) -> dict[str, Path]:
    """The Python that each rival of `PACKAGES` runs in: the `given` one, this one where the rival
    can be imported, or that of an environment in the cache folder, which with `install` is made
    where it is missing. Rivals that have none are left out.

    Raises `LensError` for a rival that is not known, a Python that is not there, and packages that
    cannot be installed.
    """
    for name, python in given.items():
        if name not in PACKAGES:
            raise LensError(f"unknown peer '{name}': one of {', '.join(PACKAGES)}")
        if not python.is_file():
            raise LensError(f"peer {name}: there is no Python at '{python}'")
    found = dict(given)
    for name, package in PACKAGES.items():
        if name in found:
            continue
        folder = _folder(package)
        if importlib.util.find_spec(name.replace("-", "_")) is not None:
            found[name] = Path(sys.executable)
        elif install or (folder / "complete").exists():
            found[name] = environment(package)
    return found


def environment(package: str) -> Path:
    """The Python of an environment in the cache folder with our torch and a `package`, or several
    with commas between, which is made where it is missing. Raises `LensError` where that cannot be
    installed."""
    return _environment(_folder(package), package)


def _folder(package: str) -> Path:
    return cache_folder() / "peers" / f"{package},torch=={_torch()}"


def _torch() -> str:
    """The version, without the label of a build such as +cpu, which an index may not have."""
    return torch.__version__.partition("+")[0]


def _environment(folder: Path, package: str) -> Path:
    python = folder / "bin" / "python"
    if (folder / "complete").exists():
        return python
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    commands = (
        [sys.executable, "-m", "venv", "--clear", folder],
        [*pip, f"torch=={_torch()}"],
        [*pip, *package.split(",")],
    )
    for command in track(commands, f"install {package}"):
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            reason = (lines or done.stderr.splitlines() or ["no reason given"])[-1]
            raise LensError(
                f"cannot install {package} into {folder}: {reason} (pip's own settings apply, such "
                "as PIP_EXTRA_INDEX_URL; --peer NAME=PYTHON takes an environment of yours)"
            )
    (folder / "complete").touch()
    return python
