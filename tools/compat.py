"""Which versions of Python, torch and transformers the built package works with.

    python tools/compat.py --row python3.11 --row "python3.11 torch==2.6.0 transformers==5.0.0"

For each row, an interpreter and what is pinned, makes an environment in build/compat, installs the
wheel of dist/ into it as pip resolves it, and runs tools/smoke.py there. Prints a table and exits
with 1 if a row failed. An environment that is whole is kept, with the wheel installed anew.
"""

from __future__ import annotations

import argparse
import hashlib
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
SMOKE = ROOT / "tools/smoke.py"
OLDEST = "torch==2.6.0 transformers==5.0.0"
"""The lower bounds of pyproject.toml."""
DEFAULT = (f"{sys.executable}", f"{sys.executable} {OLDEST}")


@dataclass(frozen=True)
class Row:
    """One environment. `python` as a shell would find it, and requirements for pip."""

    python: str
    pins: tuple[str, ...]

    @classmethod
    def of(cls, text: str) -> Row:
        python, *pins = shlex.split(text)
        return cls(python, tuple(pins))

    @property
    def folder(self) -> Path:
        key = hashlib.sha256(" ".join((self.python, *self.pins)).encode()).hexdigest()[:12]
        return ROOT / "build/compat" / key


@dataclass(frozen=True)
class Found:
    """What came out: the versions that were installed, and what failed, if anything."""

    versions: dict[str, str]
    checks: int
    failures: tuple[str, ...]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--row", action="append", help="PYTHON [PACKAGE==VERSION ...]")
    parser.add_argument("--wheel", type=Path, help="by default the newest in dist/")
    given = parser.parse_args()
    wheel = given.wheel or newest(ROOT / "dist")
    rows = [Row.of(text) for text in given.row or DEFAULT]
    found = [tried(row, wheel) for row in rows]
    print(table(rows, found))
    return int(any(each.failures for each in found))


def newest(dist: Path) -> Path:
    wheels = sorted(dist.glob("*.whl"), key=lambda path: path.stat().st_mtime)
    if not wheels:
        sys.exit("no wheel in dist: run `python -m build` first")
    return wheels[-1]


def tried(row: Row, wheel: Path) -> Found:
    python = row.folder / "bin/python"
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    steps = [[*pip, "--force-reinstall", "--no-deps", wheel]]
    if not (row.folder / "complete").exists():
        steps = [[row.python, "-m", "venv", "--clear", row.folder], [*pip, wheel, *row.pins]]
    for step in steps:
        done = run(step)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            return Found({}, 0, ((lines or ["no reason given"])[-1],))
    (row.folder / "complete").touch()
    done = run([python, "-I", SMOKE])
    sys.stdout.write(done.stdout)
    return read(done.stdout, done.stderr)


def run(words: list) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in words], capture_output=True, text=True, cwd="/")


def read(out: str, error: str = "") -> Found:
    """What `tools/smoke.py` printed."""
    lines = out.splitlines()
    if not lines:
        return Found({}, 0, (f"it does not start: {(error.strip().splitlines() or [''])[-1]}",))
    versions = dict(part.split(" ", 1) for part in lines[0].split(", "))
    failures = tuple(line.removeprefix("FAILED  ") for line in lines if line.startswith("FAILED"))
    checks = sum(line.startswith(("ok", "FAILED")) for line in lines)
    return Found(versions, checks, failures if checks else ("it stops before the first check",))


def table(rows: list[Row], found: list[Found]) -> str:
    """As Markdown."""
    names = ("Python", "torch", "transformers")
    lines = [f"| {' | '.join(names)} | asked for | checks | |", "| --- " * 6 + "|"]
    for row, each in zip(rows, found, strict=True):
        cells = [each.versions.get(name, "") for name in names]
        asked = " ".join(row.pins) or "newest that pip takes"
        verdict = "; ".join(each.failures) or "works"
        lines.append(f"| {' | '.join(cells)} | {asked} | {each.checks} | {verdict} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
