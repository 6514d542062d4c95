"""The verb: what it takes, what it gives back, what it refuses."""

from __future__ import annotations

import pytest
import torch

import subspacelens as sl
from helpers_models import tiny_model
from helpers_oracle import random_pairs
from subspacelens.engine.patches import Full

SITE = "L1.mlp_act@X"


@pytest.fixture(scope="module")
def lens():
    return sl.wrap(tiny_model("llama", dtype=torch.float32), None, "llama")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def task():
    parts = (random_pairs([(9, 4), (12, 7), (9, 4), (10, 5)], seed=seed) for seed in (0, 1))
    return sl.Task("random", *parts)


@pytest.fixture(scope="module")
def captures(lens, task):
    return sl.capture_task(lens, task, [SITE])


@pytest.fixture(scope="module")
def subspace(lens, captures):
    return sl.das(lens, captures.train, sl.Site.parse(SITE), steps=3)


def test_a_task_its_test_pairs_and_captures_of_either_give_the_same(lens, task, captures, subspace):
    effects = [
        sl.patch(lens, pairs, SITE, subspace)
        for pairs in (task, task.test, captures, captures.test)
    ]
    for effect in effects:
        assert effect.pairs == task.test
        torch.testing.assert_close(effect.patched.logit_diff, effects[0].patched.logit_diff)


def test_changes_of_every_kind(lens, captures, subspace):
    changes = {"ours": subspace, "basis": subspace.basis, "whole": Full()}
    effects = sl.patch(lens, captures, SITE, changes)
    assert list(effects) == ["ours", "basis", "whole"]
    assert torch.equal(effects["ours"].patched.logit_diff, effects["basis"].patched.logit_diff)
    whole = sl.patch(lens, captures, SITE)
    torch.testing.assert_close(whole.patched.logit_diff, effects["whole"].patched.logit_diff)


def test_what_does_not_fit_is_refused(lens, task, captures, subspace):
    with pytest.raises(sl.SubspaceError, match=r"is at L1.mlp_act@X, not at L1.mlp_act@END"):
        sl.patch(lens, task, "L1.mlp_act@END", subspace)
    with pytest.raises(sl.SubspaceError, match="not orthonormal"):
        sl.patch(lens, captures, SITE, 2 * subspace.basis)
    other = sl.wrap(tiny_model("llama", seed=1, dtype=torch.float32), None, "other")  # type: ignore[arg-type]
    with pytest.raises(sl.SubspaceError, match="was made with model llama, not with other"):
        sl.patch(other, task, SITE, subspace)
    with pytest.raises(sl.ModelError, match="the capture was made with model llama"):
        sl.patch(other, captures, SITE)
    with pytest.raises(sl.SiteError, match="layers 0 to 3"):
        sl.patch(lens, task, "L9.mlp_act@X")
