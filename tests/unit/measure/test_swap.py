"""One pair of prompts: what is said is what a plain forward pass with a plain hook says."""

from __future__ import annotations

import pytest
import torch

import subspacelens as sl
from subspacelens.model.loading import load_model

BASE = "Then, Monica and Christine met. Christine gave it to"
SOURCE = "Then, Christine and Monica met. Monica gave it to"
SITE = "L1.resid_post@S2"
TOKENS = {"S2": ("Christine#2", "Monica#2")}


@pytest.fixture(scope="module")
def lens(tiny_folder):
    return load_model(tiny_folder)


def column(lens, text: str, name: str) -> int:
    words = [lens.tokenizer.decode([token]) for token in lens.tokenizer(text)["input_ids"]]
    return [i for i, word in enumerate(words) if word == f" {name}"][-1]


def said(lens, text: str, hidden: torch.Tensor | None = None, at: int = 0) -> torch.Tensor:
    """Probabilities of the next token; with `hidden` in place of block 1's output in a column."""

    def put(module, args, output):
        output = output[0] if isinstance(output, tuple) else output
        if hidden is not None:
            output[:, at] = hidden

    ids = torch.tensor([lens.tokenizer(text)["input_ids"]])
    handle = lens.model.model.layers[1].register_forward_hook(put)
    try:
        with torch.no_grad():
            return lens.model(ids).logits[0, -1].softmax(-1)
    finally:
        handle.remove()


def test_it_says_what_plain_passes_say(lens):
    found = sl.swap(lens, base=BASE, source=SOURCE, site=SITE, tokens=TOKENS, top=3)
    with torch.no_grad():
        ids = torch.tensor([lens.tokenizer(SOURCE)["input_ids"]])
        states = lens.model(ids, output_hidden_states=True).hidden_states[2][0]
    hidden = states[column(lens, SOURCE, "Monica")]
    plain = said(lens, BASE, hidden, column(lens, BASE, "Christine"))
    for ours, theirs in (
        (found.before, said(lens, BASE)), (found.expected, said(lens, SOURCE)),
        (found.after, plain),
    ):  # fmt: skip
        top = theirs.topk(3)
        assert [x.token for x in ours] == [lens.tokenizer.decode([i]) for i in top.indices]
        assert [x.probability for x in ours] == pytest.approx(top.values.tolist(), rel=1e-3)
    assert [x.token for x in found.after] != [x.token for x in found.before]


def test_a_result_is_read_at_a_glance(lens):
    found = sl.swap(lens, base=BASE, source=SOURCE, site="L3.resid_post@END")
    first, base, source, patched = repr(found).splitlines()
    assert first == "Swap(L3.resid_post@END)" and base.split()[0] == "base"
    assert source.split(maxsplit=1)[1] == patched.split(maxsplit=1)[1]  # all of what is read
    assert f"{found.after[0].token!r} {found.after[0].probability:.2f}" in patched
    assert "<table>" in found._repr_html_()


def test_a_subspace_of_it(lens):
    subspace = sl.Subspace.of(lens, SITE, torch.arange(1.0, 33))
    found = sl.swap(lens, base=BASE, source=SOURCE, site=SITE, tokens=TOKENS, change=subspace)
    whole = sl.swap(lens, base=BASE, source=SOURCE, site=SITE, tokens=TOKENS)
    assert found.before == whole.before and found.after != whole.after


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": None}, "no label 'S2'"),
        ({"tokens": {"S2": "Mary"}}, "base: label S2: 'Mary' is not in"),
        ({"tokens": {"S2": "Monica"}}, "source: label S2: 'Monica' is there 2 times"),
        ({"source": BASE, "tokens": {"S2": "Monica"}}, "same activation"),
        ({"base": ""}, "base: label S2: 'Christine' is not in ''"),
    ],
)
def test_what_cannot_be_patched_is_refused(lens, changes, message):
    arguments = dict(base=BASE, source=SOURCE, site=SITE, tokens=TOKENS) | changes
    with pytest.raises(sl.TaskError, match=message):
        sl.swap(lens, **arguments)
