"""docs/coming_from.md: what stands there for a tool does what ours does."""

from __future__ import annotations

import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

import subspacelens as sl
from helpers_coming_from import ALONE, BEGINNING, rows, sections
from subspacelens.tasks import Pair, PairSet, Prompt
from subspacelens.tasks.answers import Continuations
from subspacelens.tasks.tokens import tokenize_prompt

pytestmark = pytest.mark.peers
CLOSE = 1e-4
NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
COMPARED = [title for title in rows() if title not in ALONE]
TEXTS = {
    "text": "Then Mary and John went to the store",
    "other": "Then Bob and John went to the store",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory, place) -> SimpleNamespace:
    """The same with attention that looks at few tokens, so that what is patched at S2 is seen at
    END: its queries and keys are three times as long."""
    folder = tmp_path_factory.mktemp("peers") / "sharp"
    shutil.copytree(place.folder, folder)
    model = AutoModelForCausalLM.from_pretrained(folder).requires_grad_(False)
    for block in model.model.layers:
        block.self_attn.q_proj.weight *= 3
        block.self_attn.k_proj.weight *= 3
    model.save_pretrained(folder)
    fields = vars(place) | {"folder": folder, "lens": sl.load_model(str(folder), device="cpu")}
    return SimpleNamespace(**fields)


@pytest.fixture(scope="module")
def given(place) -> dict:
    """Answers are what the model finds likeliest, targets what it finds unlikeliest: what a patch
    does to their difference is far from nothing in every row."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        logits = place.lens.model(place.base).logits[:, -1]
    answers, targets = (logits.topk(2, largest=first).indices for first in (True, False))
    return {
        "base": place.base, "source": place.source, "S2": place.column,
        "END": place.base.shape[1] - 1, "answers": answers, "targets": targets,
        "V": torch.linalg.qr(torch.randn(56, 32, generator=generator)).Q,
        "v": torch.randn(32, generator=generator) / 4,
        "predicted": answers[:, 0] + torch.arange(len(answers)) % 2,
        "prompt": ids_of(place, TEXTS["text"]), "another": ids_of(place, TEXTS["other"]),
    }  # fmt: skip


def ids_of(place, text: str) -> torch.Tensor:
    return torch.tensor([tokenize_prompt(place.lens.tokenizer, text, {}, "").ids])


@pytest.fixture(scope="module")
def ours(place, given) -> dict[str, torch.Tensor]:
    """Of each row what our column gives, (n,)."""
    labels = {"S2": given["S2"], "END": given["END"]}
    sides = (given["answers"].tolist(), given["targets"].tolist())
    pairs = [
        Pair(base=Prompt("", tuple(b), labels), source=Prompt("", tuple(s), labels),
             answer=answer[0], target=target[0])
        for b, s, answer, target in zip(
            place.base.tolist(), place.source.tolist(), *sides, strict=True
        )
    ]  # fmt: skip
    longer = [
        replace(pair, continuations=Continuations((tuple(answer),), (tuple(target),)))
        for pair, answer, target in zip(pairs, *sides, strict=True)
    ]
    several = [
        replace(pair, continuations=Continuations(*(tuple((x,) for x in each) for each in both)))
        for pair, *both in zip(pairs, *sides, strict=True)
    ]
    rivals = [
        replace(pair, predictions={"name": (token,)})
        for pair, token in zip(pairs, given["predicted"].tolist(), strict=True)
    ]
    sets = {"pairs": pairs, "longer": longer, "several": several, "rivals": rivals}
    scope = TEXTS | {name: PairSet(name, "test", tuple(each)) for name, each in sets.items()}
    scope |= {"sl": sl, "lens": place.lens, "V": given["V"], "v": given["v"]}
    found = {}
    for title in COMPARED:
        inside = dict(scope)
        exec(rows()[title]["subspacelens"], inside)
        if "effect" in inside:
            assert abs(inside["effect"].drop).max() > 0.05, title
        value = inside["value"] if "value" in inside else inside["effect"].patched.logit_diff
        found[title] = torch.as_tensor(value)
    return found


@pytest.mark.parametrize("tool", ["TransformerLens", "pyvene", "nnsight"])
def test_the_column_of_a_tool_does_what_ours_does(place, given, ours, peer, tmp_path, tool):
    torch.save(given, tmp_path / "given.pt")
    beginning = sections()[BEGINNING][tool].replace(NAME, str(place.folder))
    names = {title: f"row_{number}" for number, title in enumerate(COMPARED)}
    host = {"TransformerLens": "transformer-lens"}.get(tool, tool)
    done = peer(
        host, "coming_from", given=str(tmp_path / "given.pt"),
        rows={name: beginning + rows()[title][tool] for title, name in names.items()},
    )  # fmt: skip
    n = torch.arange(len(place.base))
    for title, name in names.items():
        theirs = torch.from_numpy(done[name])
        if theirs.ndim == 2:
            theirs = theirs[n, given["answers"][:, 0]] - theirs[n, given["targets"][:, 0]]
        assert (ours[title] - theirs).abs().max() < CLOSE, title
