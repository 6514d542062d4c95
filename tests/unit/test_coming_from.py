"""docs/coming_from.md: our column runs, and the table counts what stands below it."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from helpers_coming_from import ALONE, BEGINNING, PAGE, TOOLS, rows, sections
from helpers_models import hub_folder
from subspacelens import PairSet, ioi, load_model
from subspacelens.tasks.answers import Continuations


@pytest.fixture(scope="module")
def scope(tiny_folder, tmp_path_factory) -> dict:
    """What our rows begin with."""
    code = sections()[BEGINNING]["subspacelens"]
    code = code.replace('"smollm2"', repr(tiny_folder))
    code = code.replace("ioi(lens.tokenizer)", "ioi(lens.tokenizer, train=8, test=8, held_out=8)")
    scope: dict = {}
    exec(code, scope)
    pairs = scope["pairs"]

    def answered(name: str, *sides: tuple[tuple[int, ...], ...]) -> PairSet:
        told = Continuations(*sides)
        changed = [replace(pair, answer=5, target=7, continuations=told) for pair in pairs]
        return PairSet(name, "test", tuple(changed))

    mixture = load_model(hub_folder(tmp_path_factory.mktemp("mixture") / "model", "mixtral"))
    said = {"name": (5,), "position": (6,)}
    return scope | {
        "longer": answered("longer", ((5, 6),), ((7, 8),)),
        "several": answered("several", ((5,), (6,)), ((7,), (8,))),
        "rivals": PairSet("rivals", "test", tuple(replace(p, predictions=said) for p in pairs)),
        "mixture": mixture,
        "text": pairs.pairs[0].base.text,
        "other": pairs.pairs[0].source.text,
        "task": ioi(scope["lens"].tokenizer, train=12, test=12, held_out=8),
        "V": torch.linalg.qr(torch.randn(56, 2, generator=torch.Generator().manual_seed(0))).Q,
        "v": torch.ones(32),
    }


@pytest.mark.parametrize("title", rows())
def test_our_column_runs(scope, title, capsys):
    inside = dict(scope)
    exec(rows()[title]["subspacelens"], inside)
    if title == "Is it an illusion?":
        assert inside["result"].label in capsys.readouterr().out
        return
    if "found" in inside:
        before = [likely.probability for likely in inside["found"].before]
        assert len(inside["value"]) == 5 and inside["value"] != before
        return
    effect = inside["effect"]
    if title in ALONE:
        assert abs(effect.drop).max() > 1e-5
        return
    assert abs(effect.drop).max() > 1e-4
    expected = 1 if title == "Which of two variables" else 8
    assert len(inside.get("value", effect.drop)) == expected


def test_every_row_is_there_for_every_tool():
    for title, codes in rows().items():
        expected = TOOLS[:1] if title in ALONE else TOOLS
        assert tuple(codes) == expected, title


def test_the_table_counts_the_lines():
    for title, codes in rows().items():
        link = re.sub(r"[^a-z ]", "", title.lower()).replace(" ", "-")
        counts = [len([x for x in codes.get(t, "").splitlines() if x.strip()]) or "" for t in TOOLS]
        row = f"| [{title}](#{link}) | {' | '.join(map(str, counts))} |".replace("|  |", "| |")
        assert row.replace("|  |", "| |") in PAGE, row
