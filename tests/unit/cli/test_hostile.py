"""A sample of the hostile command lines (all of them: make attack), and the entry itself."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import numpy as np
import pytest

from subspacelens.cli.printing import (
    PlainTable,
    complain,
    escape_what_cannot_be_encoded,
    printable,
    say,
)

TINY = ("--pairs", "8", "--site", "L1.mlp_act@S2", "--fit", "pca", "--budget", "fast")


@pytest.fixture
def refused(run, tiny_folder, tmp_path, monkeypatch):
    """The one line with which `subspacelens audit` on the tiny model refuses an option."""
    monkeypatch.chdir(tmp_path)

    def call(*options: object, command: tuple[str, ...] = ("audit",)) -> str:
        fixed = ("--model", tiny_folder, *TINY, "--out", "run") if command == ("audit",) else ()
        code, out, err = run(*command, *fixed, *options)
        assert code == 2 and "Traceback" not in err and "\x1b" not in out + err, err
        if err.startswith("Usage: "):
            return err.splitlines()[-1]
        (line,) = [line for line in err.splitlines() if line.startswith("subspacelens: ")]
        return line

    return call


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("--seed", "-1"), "greater than or equal to 0"),
        (("--seed", 2**64), "less than or equal to"),
        (("--seed", "9" * 5000), "exceeded maximum size"),
        (("--memory", "9" * 400), "is not a size"),
        (("--dim", "9" * 30), "does not fit"),
        (("--fit", "[/b]"), "unknown fit '[/b]'"),
        (("--fit", "das", "--fit-option", "lr=inf"), "lr"),
        (("--fit", "das", "--fit-option", "steps"), "steps"),
        (("--fit-option", "steps=3"), "pca takes no steps"),
        (("--site", "L1.mlp_act@[b]"), "no label '[b]'"),
        (("--site", "[red]x"), "site '[red]x'"),
        (("--model", "./[/b]\x1b[31m"), r"./[/b]\x1b[31m"),
        (("--out", "\udcff"), r"'\udcff' is not UTF-8"),
        (("--out", "/dev/null"), "cannot be written"),
        (("--out", "a" * 300), "cannot be written"),
    ],
)
def test_bad_values_are_refused_in_one_line(refused, options, part):
    assert part in refused(*options)


def test_a_file_that_the_system_refuses_is_one_line(refused):
    assert "File name too long" in refused("a" * 300, command=("report",))


def test_names_with_markup_are_written_as_they_are(run, tiny_folder, tmp_path):
    vector = tmp_path / "[red]v.npy"
    np.save(vector, np.random.default_rng(0).normal(size=56))
    out = tmp_path / "[red]"
    code, printed, err = run(
        "audit", "--model", tiny_folder, *TINY, "--out", out, "--subspace", vector
    )
    assert code == 0, err
    assert f"report: {out}/report.html" in printed
    assert str(vector) in (out / "report.html").read_text()


def test_what_is_printed_is_text(capsys):
    table = PlainTable("a", title="[/b] \x1b[31m")
    table.add_row("[red]x[/red]", style="dim")
    table.add_row("\udcff :smile:")
    table.show()
    say("[/b]\x1b[31m\n\udcff")
    complain("one\ntwo\x07")
    out, err = capsys.readouterr()
    assert "\x1b[31m" not in out and "[red]x[/red]" in out and ":smile:" in out
    assert out.endswith("[/b]\\x1b[31m\n\\udcff\n") and err == "subspacelens: one two\\x07\n"
    assert printable("naïve − ü\n") == "naïve − ü\n"


def subprocess_of(*arguments: str, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "subspacelens", *arguments], text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, **options,
    )  # fmt: skip


HEAVY = ("torch", "transformers", "polars", "scipy", "numpy")


@pytest.mark.parametrize("line", ["--help", "--version", "audit --help", "bench engine --help"])
def test_help_loads_no_torch(line):
    """Half a second of one core, where torch takes ten on a busy machine."""
    code = (
        "import sys, time, subspacelens\nfrom subspacelens.cli import main\n"
        f"sys.argv = ['x', *{line.split()}]\n"
        "try: main()\nexcept SystemExit: pass\n"
        f"assert not [name for name in {HEAVY} if name in sys.modules]\n"
        "assert time.process_time() < 1"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_ctrl_c_while_the_library_loads_is_one_line(tmp_path):
    """The signal comes as soon as torch is being imported."""
    hook = tmp_path / "sitecustomize.py"
    hook.write_text(
        "import os, signal, sys\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupting())\n"
    )
    paths = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    job = subprocess_of("doctor", "--model", "x", env=os.environ | {"PYTHONPATH": paths})
    _, err = job.communicate(timeout=60)
    assert job.returncode == 130
    assert err == "subspacelens: interrupted; what was finished is kept\n"


def test_a_narrow_table_cuts_nothing_off(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    table = PlainTable("site", "verdict", "FLDD", "by")
    table.add_row("L17.resid_post@S2", "undetermined", "1.07 [1.02, 1.12]", "mean-difference" * 2)
    table.show()
    table = PlainTable("--key", "is")
    key, what = "comp.model.layer" * 9, "thousand-dimensional" * 9
    table.add_row(key, what)
    table.show()
    out = capsys.readouterr().out
    assert "L17.resid_post@S2" in out and "…" not in out
    assert max(map(len, out.splitlines())) <= 60
    last = "".join(line.split("│")[1].strip() for line in out.splitlines() if "│" in line)
    assert last.endswith(key)


def test_a_terminal_that_lacks_a_character_gets_an_escape(monkeypatch):
    buffer = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(buffer, "latin-1", write_through=True))
    escape_what_cannot_be_encoded()
    table = PlainTable("ä")
    table.add_row("−1")
    table.show()
    say("− ä")
    assert buffer.getvalue().endswith(b"\\u2212 \xe4\n")
