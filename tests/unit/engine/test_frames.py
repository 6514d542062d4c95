"""Effects as tables: one row a pair and patch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import subspacelens as sl
from helpers_models import tiny_lens
from helpers_oracle import random_pairs
from subspacelens.engine.likely import likeliest
from subspacelens.engine.patches import Full

SITE = "L1.mlp_act@X"


@pytest.fixture(scope="module")
def captured():
    return sl.capture(tiny_lens("llama"), random_pairs([(9, 4), (12, 7), (9, 4)]), [SITE])


def test_several_patches_are_one_table(captured):
    basis = torch.eye(56)[:, :1]
    effects = sl.patch(captured.lens, captured, SITE, {"whole": Full(), "one": basis})
    frame = effects.frame()
    assert frame["patch"].to_list() == ["whole"] * 3 + ["one"] * 3
    assert frame["pair"].to_list() == [0, 1, 2] * 2
    for name, effect in effects.items():
        part = frame.filter(patch=name)
        assert part.drop("patch").equals(effect.frame())
        assert part["patched_logit_diff"].to_list() == effect.patched.logit_diff.tolist()
        assert part["patched_top"].to_list() == [str(i) for i in effect.patched.top.tolist()]
        assert part["clean_top"].to_list() == [str(i) for i in captured.clean.top.tolist()]
    assert repr(effects) == "Effects(whole, one)"


def test_a_token_that_was_not_looked_for_is_null(captured):
    effect = captured.at(SITE).effect(Full())
    decided = replace(effect, patched=replace(effect.patched, top=torch.tensor([-1, 7, -1])))
    assert decided.frame()["patched_top"].to_list() == [None, "7", None]


def test_likeliest_are_probabilities_in_order():
    logits = torch.tensor([[0.0, 2.0, 1.0], [5.0, 0.0, 0.0]])
    first, second = likeliest(logits, 2, None)
    assert [each.token for each in first] == ["1", "2"] and second[0].token == "0"
    assert first[0].probability == pytest.approx(float(logits[0].softmax(-1)[1]))
    assert len(likeliest(logits, 9, None)[0]) == 3
