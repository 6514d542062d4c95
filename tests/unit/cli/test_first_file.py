"""A user's first file: sixty pairs as people write them, from file to verdict without an edit.

Chats of several lengths, base and source of different lengths, labels by a piece of the text, names
of two tokens as answers, and no z.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers_models import hub_folder
from helpers_tokenizer import chat_tokenizer, ioi_data, ioi_text
from subspacelens import load_audit
from subspacelens.measure.maps import PatchingMap

PAIRS = 60
STORIES = (
    "Then, {a} and {b} met. {s} gave the ring to",
    "After {a} and {b} went to the park, {s} gave the ring to",
    "{a} and {b} met. {s} gave it to",
)
SITES = ("L1.resid_post@END", "L2.mlp_act@END")


def chat(story: str, first: str, second: str, subject: str) -> dict:
    told = story.format(a=first, b=second, s=subject)
    before, after = told.split(f"{subject} gave")
    return {
        "messages": [
            {"role": "user", "content": before.strip()},
            {"role": "assistant", "content": f"{subject} gave{after}"},
        ]
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model with a chat template, `model`, and the file, `first.jsonl`."""
    folder = tmp_path_factory.mktemp("first")
    tokenizer = chat_tokenizer(ioi_text() + " Then, After met. went gave it met park, ring the to")
    hub_folder(folder / "model", "llama", tokenizer)
    known = ioi_data()["names"]
    names = [name for name in known if not any(name in other for other in known if other != name)]
    half = len(names) // 2
    lines = []
    for n in range(PAIRS):
        # Names of two words, and so of two tokens or more.
        a = f"{names[n % half]} {names[(n + 3) % half]}"
        second = half + (7 * n + n // half) % half
        b = f"{names[second]} {names[half + (second + 5) % half]}"
        other = STORIES[(n // 2) % 3]
        lines.append(
            {
                "base": chat(STORIES[n % 3], a, b, b),
                "source": chat(other, b, a, b),
                "answer": f" {a}",
                "target": f" {b}",
                "tokens": {"S2": f"{b}#2", "IO": a},
            }
        )
    file = folder / "first.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def narrow(out: str) -> bool:
    return max(map(len, out.splitlines())) <= 80


def test_check_says_what_the_model_sees(run, folder):
    code, out, err = run("check", folder / "first.jsonl", "--model", folder / "model")
    assert code == 0, err
    words = " ".join(out.split())
    assert "60 pairs of" in words and "labels S2, IO, END; no z" in words
    assert "base and source are of different lengths" in words
    assert "S2 is in different columns of base and source in" in words
    assert "the model says the answer in " in words and "]S2|" in out and "]END" in out
    assert narrow(out) and "bad" not in words


def test_map_needs_no_more(run, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run("map", "--model", folder / "model", "--task", folder / "first.jsonl")
    assert code == 0, err
    found = PatchingMap.load(tmp_path / "runs/map/map.json")
    assert (found.pairs, found.labels, found.split) == (PAIRS, ("END",), "all")
    assert narrow(out) and "60 pairs of" in out
    strongest = found.strongest(1)[0]
    assert str(strongest.site) in out
    assert f"{getattr(found.at('L2.mlp_act@END'), found.measure):.2f}" in out


def test_audit_gives_a_verdict(run, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    at = [part for site in SITES for part in ("--site", site)]
    code, out, err = run(
        "audit", "--model", folder / "model", "--task", folder / "first.jsonl", *at,
        "--fit", "pca", "--budget", "fast",
    )  # fmt: skip
    assert code == 0, err
    assert "60 pairs of" in out and narrow(out)
    for site in SITES:
        record = load_audit(tmp_path / "runs/audit" / site / "audit.json")
        assert record.verdict.label and f"{site}: {record.verdict.label.upper()}" in out
        assert record.task.train_pairs + record.task.test_pairs == PAIRS
