"""How long whole commands take, as a user types them."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.errors import LensError
from ..core.progress import track

SCHEMA = "subspacelens.bench.commands/1"
COMMANDS: Mapping[str, tuple[str, ...]] = {
    "help": ("--help",),
    "doctor": ("doctor",),
    "map": ("map", "--out", "out"),
    "instant": ("survey", "--instant", "--out", "out"),
    "audit": ("audit", "--out", "out"),
    "given": ("audit", "--site", "L18.mlp_act@S2", "--fit", "pca", "--out", "out"),
    "ioi": ("reproduce", "ioi", "--out", "out"),
    "facts": ("reproduce", "facts", "--out", "out"),
    "editing": ("reproduce", "editing", "--out", "out"),
}
"""By name, what follows `subspacelens`; each runs in an empty folder of its own."""


def bench_commands(
    names: Sequence[str] = tuple(COMMANDS),
    *,
    repeat: int = 3,
    pythons: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Seconds of each command of `COMMANDS`, `repeat` times, in turn with every Python of `pythons`
    (name to path; by default this one): another version's environment gives before and after in
    one run. A row each has all seconds and their median.

    Raises `LensError` for an unknown name, and for a command that fails, with its last line.

    >>> bench_commands(["help"], repeat=1)["rows"][0]["median"]  # seconds
    """
    unknown = [name for name in names if name not in COMMANDS]
    if unknown:
        raise LensError(f"unknown command '{unknown[0]}': one of {', '.join(COMMANDS)}")
    pythons = pythons or {"this": sys.executable}
    seconds: dict[tuple[str, str], list[float]] = {(c, p): [] for c in names for p in pythons}
    runs = [(command, name) for command in names for _ in range(repeat) for name in pythons]
    for command, name in track(runs, "commands"):
        seconds[command, name].append(_run(pythons[name], COMMANDS[command]))
    rows = [
        {"command": _typed(command), "python": name, "seconds": taken,
         "median": statistics.median(taken)}
        for (command, name), taken in seconds.items()
    ]  # fmt: skip
    return {"schema": SCHEMA, "cores": os.cpu_count(), "repeat": repeat, "rows": rows}


def _typed(command: str) -> str:
    return " ".join(("subspacelens", *COMMANDS[command])).removesuffix(" --out out")


def _run(python: str, arguments: Sequence[str]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        line = [python, "-m", "subspacelens", *arguments]
        begin = time.perf_counter()
        done = subprocess.run(line, cwd=Path(folder), capture_output=True, text=True)
        taken = time.perf_counter() - begin
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise LensError(f"{' '.join(line)} ended with exit code {done.returncode}: {last}")
    return taken
