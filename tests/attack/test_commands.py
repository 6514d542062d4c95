"""About a thousand hostile command lines: each ends with exit code 0, 1 or 2, in one line of error,
without a traceback and without a half-written file."""

from __future__ import annotations

import subprocess
import sys

import pytest

from helpers_attack import AUDITS, CONFIGS, FACTS, GGUF, GRIDS, PAIRS, SUBSPACES

pytestmark = pytest.mark.attack

TINY = ("--model", "{tiny}")
SMALL = (*TINY, "--pairs", "8", "--out", "{out}/run")
AT = ("--site", "L1.mlp_act@S2")
QUICK = ("--fit", "pca", "--budget", "fast", "--overwrite")

TEXTS = [
    "", " ", "-", "--", "[/b]", "[red]x[/red]", "\x1b[31mred", "a" * 300, "a" * 5000, "ä" * 200,
    "\u202e", "%s%n{0}{x}", "../../etc/passwd", "';--", "\udcff", "a\nb", "\t", "*", "None", "0",
]  # fmt: skip
NO_INTEGERS = ["", "x", "1.5", "1e3", "nan", "inf", "9" * 5000, "0x10", "[/b]", "--"]
NO_COUNTS = [*NO_INTEGERS, "-1", "0", "-" + "9" * 30]
NO_SEEDS = [*NO_INTEGERS, "-1", str(2**64), "9" * 30]
NO_SIZES = [
    "",
    "much",
    "0",
    "-1GB",
    "1e9",
    "nan",
    "inf",
    "9" * 400,
    "9" * 400 + "GB",
    "2EiB",
    "[/b]",
]
NO_FILES = [
    "{out}/none", "{nothing}", "/dev/null", "{fifo}", "{loop}", "{dangling}", "", "a" * 300,
    "{out}/[/b]", "{out}/\x1b[31m", "{out}/\udcff", "{plain}", "{plain}/child", "~", "http://x/y",
]  # fmt: skip
NO_FOLDERS = [
    "{plain}", "{plain}/child", "/dev/null", "/dev/null/child", "{fifo}", "{loop}", "{loop}/child",
    "{dangling}/child", "{out}/" + "a" * 300, "/proc/none", "{out}/\udcff",
]  # fmt: skip
NO_CAPTURES = [folder for folder in NO_FOLDERS if "dangling" not in folder]
"""A file is written through a symbolic link, whose folder is made."""
NO_SITES = [
    *TEXTS, "L1.mlp_act", "L1.mlp_act@", "L-1.mlp_act@S2", "L4.mlp_act@S2",
    f"L{'9' * 30}.mlp_act@S2",
    f"L{'9' * 5000}.mlp_act@S2", "L1.mlp_act.0@S2", "L1.head_z.4@END", "L1.head_z.-1@END",
    f"L1.head_z.{'9' * 5000}@END", "L٣.mlp_act@S2", "L1.mlp_act@[b]", "L1.mlp_act@[/b]",
    "L1.mlp_act@\x1b[31m", "L1.mlp_act@../x",
    "L1.mlp_act@" + "S" * 300, "L1.[red]@S2", "l1.mlp_act@s2", "L0.resid_pre@IO",
]  # fmt: skip
NO_MODELS = [
    *NO_FILES, *TEXTS[4:], "a/b/c", "./none", "none.gguf", "-m",
    *(f"{{config_{n}}}" for n in CONFIGS),
    *(f"{{weights_{n}}}" for n in ("empty", "noise", "length", "list", "outside", "halves")),
    *(f"{{{name}}}" for name in GGUF), "{fifo.gguf}", "{loop.gguf}",
]  # fmt: skip
ODD_MODELS = [
    f"{{{file}_{name}}}"
    for file in ("tokenizer", "tokenizer_config", "generation_config")
    for name in ("empty", "noise", "list", "null", "deep", "none")
]
NO_DEVICES = ["warp", "cuda:99", "cpu:x", "[/b]", "meta:1:2", "\x1b[31m", "a" * 300, "-1"]
NO_DTYPES = ["", "int3", "float", "torch.float32", "[/b]", "a" * 300]
ODD_PAIRS = ["{good.jsonl}", "{[red]pairs[/b].jsonl}", "{bom.jsonl}", "{label_markup.jsonl}"]
NO_PAIRS = [text for name in PAIRS if (text := f"{{{name}}}") not in ODD_PAIRS] + [
    "{fifo.jsonl}", "{loop.jsonl}", "{folder.jsonl}", "{out}/none.jsonl", *TEXTS[:-1], "ioi2",
]  # fmt: skip
NO_SUBSPACES = [
    f"{{{name}}}" for name in SUBSPACES if name not in ("halves.safetensors", "fp8.safetensors")
] + ["{fifo.npy}", "{fifo.safetensors}", "{loop.pt}", "{folder.npy}", *NO_FILES]
NO_CONDITIONS = [
    "", " ", "x", "(", ")", "'", '"', "1 +", "layer", "layer = 'x'", "[/b]", "\x1b[31m", "SELECT 1",
    "1; DROP TABLE x", "no_such > 1", "layer > ", "\udcff", "a" * 5000, "layer IN (SELECT 1)",
]  # fmt: skip

EVERYWHERE = {
    "--model": NO_MODELS,
    "--device": NO_DEVICES,
    "--dtype": NO_DTYPES,
}
REFUSED: dict[tuple[str, ...], dict[str, list[str]]] = {
    ("audit", *SMALL, *AT, *QUICK): EVERYWHERE | {
        "--task": NO_PAIRS, "--site": NO_SITES, "--seed": NO_SEEDS, "--memory": NO_SIZES,
        "--dim": [*NO_COUNTS, "57", "9" * 30], "--pairs": NO_COUNTS, "--subspace": NO_SUBSPACES,
        "--budget": TEXTS, "--tests": ["", ",", "x", "[/b]", "dormancy,x", "\x1b"], "--fit": TEXTS,
        "--out": NO_FOLDERS, "--captures": NO_CAPTURES, "--test-pairs": NO_FILES,
    },
    ("audit", *SMALL, *AT, "--subspace", "{two.npz}"): {
        "--key": ["c", "[/b]", "", "\x1b[31m", "a" * 5000], "--row": NO_INTEGERS,
    },
    ("audit", *SMALL, *AT, "--subspace", "{twice.npy}"): {"--row": ["-1", "56", "9" * 30]},
    ("fit", *SMALL, *AT, "--fit", "pca"): EVERYWHERE | {
        "--site": NO_SITES, "--seed": NO_SEEDS, "--memory": NO_SIZES, "--dim": NO_COUNTS,
        "--pairs": NO_COUNTS, "--out": NO_FOLDERS, "--captures": NO_CAPTURES,
    },
    ("map", *SMALL): EVERYWHERE | {
        "--stream": [*TEXTS, "mlp_hidden"], "--label": TEXTS, "--pairs": NO_COUNTS,
        "--seed": NO_SEEDS, "--memory": NO_SIZES, "--out": NO_FOLDERS,
    },
    ("doctor", *TINY): EVERYWHERE,
    ("survey", *TINY, "--out", "{out}/run"): {
        "--task": NO_PAIRS[:30], "--label": TEXTS, "--pairs": [*NO_COUNTS, "1"],
        "--steps": NO_COUNTS, "--workers": NO_COUNTS, "--memory": NO_SIZES, "--out": NO_FOLDERS,
    },
    ("reproduce", "prevalence", *TINY, "--no-das", "--out", "{out}/run"): {
        "--seeds": [*NO_COUNTS, "1"], "--corpus": NO_FILES, "--out": NO_FOLDERS,
    },
    ("reproduce", "toy"): {"--out": NO_FOLDERS},
    ("reproduce", "all", *TINY, "--quick", "--plan", "--study", "toy", "--out", "{out}/run"): {
        "--study": TEXTS, "--seed": NO_SEEDS, "--memory": NO_SIZES, "--out": NO_FOLDERS,
        "--workers": NO_COUNTS,
    },
    ("reproduce", "facts", *TINY, "--quick", "--out", "{out}/run"): {
        "--facts": [*(f"{{{name}}}" for name in FACTS), "{fifo.json}", "{folder.json}", *NO_FILES],
        "--text": [*NO_FILES[:-6], "{short.txt}", "{noise.npy}"], "--step": NO_COUNTS,
        "--seed": NO_SEEDS, "--out": NO_FOLDERS,
    },
    ("reproduce", "editing", *TINY, "--quick", "--out", "{out}/run"): {
        "--step": NO_COUNTS, "--seed": NO_SEEDS, "--out": NO_FOLDERS,
        "--facts": ["{facts_none.json}", "{facts_deep.json}"],
    },
    ("reproduce", "ioi", *TINY, "--quick", "--out", "{out}/run"): {
        "--preset": [*TEXTS[:-1], "gpt3"], "--seed": NO_SEEDS, "--memory": NO_SIZES,
        "--out": NO_FOLDERS,
    },
    ("facts", "known", *TINY): {
        "--facts": [*(f"{{{name}}}" for name in FACTS), "{fifo.json}", "{folder.json}", *NO_FILES],
        "--limit": NO_COUNTS,
        "--out": ["{nothing}", "/dev/null/x", "{plain}/x", "{loop}/x", "{out}/" + "a" * 300],
    },
    ("bench", "profile", *TINY): {"--site": NO_SITES[:-1]},
    ("bench", "audit", *TINY, "--out", "{out}/run"): {"--cases": NO_COUNTS, "--out": NO_FOLDERS},
    ("bench", "facts", *TINY): {"--layer": [*NO_INTEGERS, "-1", "4", "9" * 30],
                                "--pairs": NO_COUNTS, "--steps": NO_COUNTS},
    ("bench", "engine", *TINY, "--quick"): {"--json": ["{nothing}", "/dev/null/x", "{plain}/x"],
                                            "--plot": ["{nothing}", "/dev/null/x", "{plain}/x"]},
    ("bench", "crash", "--local", "0", "--ray", "0"): {
        "--local": [*NO_INTEGERS, "-1"], "--ray": [*NO_INTEGERS, "-1"], "--seed": NO_SEEDS,
    },
}  # fmt: skip
ARGUMENTS: dict[tuple[str, ...], list[str]] = {
    ("report",): [*NO_FILES, *(f"{{{kind}_{name}}}" for name in AUDITS
                               for kind in ("audit", "failure")), "{fifo_audit}"],
    ("results",): NO_FILES,
    ("sweep", "--dry-run", "--out", "{out}/run"): [
        *(f"{{{name}}}" for name in GRIDS), "{fifo.toml}", "{folder.toml}", *NO_FILES],
}  # fmt: skip
ACCEPTED: dict[tuple[str, ...], dict[str, list[str]]] = {
    ("audit", *SMALL, *AT, *QUICK): {
        "--memory": ["1", "1MB", "1EiB"], "--seed": ["0", str(2**32)],
        "--out": ["{out}/[/b]", "{out}/[red]x", "{out}/ä"],
        "--subspace": ["{good.npy}", "{[red]good[/b].npy}"],
    },
    ("audit", *TINY, "--site", "L1.mlp_act@END", *QUICK, "--out", "{out}/run"): {
        "--task": ODD_PAIRS,
    },
    ("map", *SMALL, "--stream", "mlp_act"): {"--label": ["END"]},
    ("doctor", *AT): {"--model": ["{tiny}"]},
}  # fmt: skip
ANYTHING = {
    ("doctor", *TINY): {"--site": NO_SITES},
    ("doctor", *AT): {"--model": ODD_MODELS},
    ("audit", *SMALL, *AT, "--subspace", "{halves.safetensors}"): {"--key": ["v", "\x1b", "[/b]"]},
    ("sweep", "{grid_date.toml}", "--dry-run"): {"--out": [f"{{store_{n}}}" for n in AUDITS]},
    ("results",): {"--": [f"{{store_{name}}}" for name in AUDITS]},
    ("sweep", "--dry-run", "--out", "{out}/run"): {"--workers": ["100000", "9" * 30, "-1", "x"]},
}


def cases(table: dict[tuple[str, ...], dict[str, list[str]]]) -> list:
    return [
        pytest.param((*command, option, value), id=f"{command[0]} {option} {value[:20]!a} {number}")
        for command, options in table.items()
        for option, values in options.items()
        for number, value in enumerate(values)
    ]


@pytest.mark.parametrize("line", cases(REFUSED))
def test_a_bad_value_is_refused(attack, line):
    code, _ = attack(*line)
    assert code == 2


@pytest.mark.parametrize(
    "line",
    [
        pytest.param((*command, value), id=f"{command[0]} {value[:20]!a} {number}")
        for command, values in ARGUMENTS.items()
        for number, value in enumerate(values)
    ],
)
def test_a_bad_argument_is_refused(attack, line):
    code, _ = attack(*line)
    assert code == 2


@pytest.mark.parametrize("line", cases(ACCEPTED))
def test_an_odd_value_is_taken(attack, line):
    assert attack(*line)[0] == 0


@pytest.mark.parametrize("line", cases(ANYTHING))
def test_a_strange_value_ends_in_words(attack, line):
    attack(*line)


@pytest.mark.parametrize("condition", [*NO_CONDITIONS, "layer = 1 OR " * 9_000 + "layer = 2",
                                                       "(" * 5_000 + "layer" + ")" * 5_000,
                                                       "NOT " * 900 + "true", "-" * 999 + "1"],
                         ids=lambda text: f"{text[:20]!a}")  # fmt: skip
def test_conditions_on_results(condition, tiny_folder, tmp_path, sweep_store):
    """In a process of its own: a parser that runs out of stack takes the process with it."""
    line = [sys.executable, "-m", "subspacelens", "results", str(sweep_store), "--where", condition]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stderr.startswith("subspacelens: "), done
    assert done.stderr.count("\n") == 1
