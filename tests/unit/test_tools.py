"""Scripts of `tools/` that a release rests on."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / f"tools/{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def compat() -> ModuleType:
    return tool("compat")


@pytest.mark.long
def test_the_smoke_test_passes_here():
    done = subprocess.run(
        [sys.executable, ROOT / "tools/smoke.py"], capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = tool("compat").read(done.stdout)
    assert found.checks == 7 and not found.failures
    assert found.versions["subspacelens"] == "0.1.0" and found.versions["torch"]


def test_the_smoke_test_notices_a_patch_that_is_off(monkeypatch):
    from subspacelens.engine.patches import Full

    smoke = tool("smoke")
    smoke.exact("llama")
    monkeypatch.setattr(Full, "delta", lambda self, base, source: 0.9 * (source - base))
    with pytest.raises(AssertionError, match="is not"):
        smoke.exact("llama")


def test_the_oldest_versions_are_those_that_are_promised(compat):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for pin in compat.OLDEST.split():
        name, _, number = pin.partition("==")
        (promised,) = (d for d in project["dependencies"] if d.startswith(f"{name}>="))
        assert number.startswith(promised.partition(">=")[2])


def test_the_table_says_what_failed(compat):
    good = "Python 3.11.7, subspacelens 0.1.0, torch 2.13.0, transformers 5.23.0\nok      a\n"
    bad = good.replace("2.13.0", "2.6.0") + "FAILED  b: KeyError: 1\n"
    rows = [compat.Row.of("python3"), compat.Row.of("python3 torch==2.6.0 transformers==5.0.0")]
    found = [compat.read(good), compat.read(bad)]
    lines = compat.table(rows, found).splitlines()
    assert lines[2] == "| 3.11.7 | 2.13.0 | 5.23.0 | newest that pip takes | 1 | works |"
    assert lines[3].endswith("| torch==2.6.0 transformers==5.0.0 | 2 | b: KeyError: 1 |")
    assert compat.read("", "ImportError: no torch").failures == (
        "it does not start: ImportError: no torch",
    )
    assert len({row.folder for row in rows}) == 2


def test_the_workflow_runs_targets_that_are_there(compat):
    yaml = pytest.importorskip("yaml")
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    targets = re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    runs = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    made = [run.split()[1] for run in runs if run.startswith("make ")]
    assert made == ["check", "docs", "compat"] and set(made) <= set(targets)
    rows = jobs["compat"]["strategy"]["matrix"]["include"]
    assert compat.OLDEST in [row["pins"] for row in rows]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {text.rpartition(" ")[2] for text in project["classifiers"] if "Python ::" in text}
    assert {row["python"] for row in rows} == named


def test_the_citation_is_of_this_version():
    yaml = pytest.importorskip("yaml")
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (found["title"], found["version"]) == (project["name"], project["version"])
    assert found["license"] == project["license"] and found["cff-version"] == "1.2.0"
    for work in (found, *found["references"]):
        assert work["title"] and work["authors"] and work["type"] in ("software", "article")
        for author in work["authors"]:
            assert set(author) in ({"name"}, {"family-names", "given-names"})
    assert f"## [{project['version']}]" in (ROOT / "CHANGELOG.md").read_text()
