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


def test_several_places_have_a_joint_effect(lens, captures, subspace):
    task = captures.task
    changes = {SITE: subspace, "L2.resid_post@END": None}
    joint = sl.patch(lens, task, changes)
    again = sl.patch(lens, captures, {sl.Site.parse(site): own for site, own in changes.items()})
    torch.testing.assert_close(joint.patched.logit_diff, again.patched.logit_diff)
    for site, own in changes.items():
        alone = sl.patch(lens, captures if site == SITE else task, site, own)
        torch.testing.assert_close(
            joint.single[site].patched.logit_diff, alone.patched.logit_diff, rtol=1e-4, atol=1e-4
        )
    total = sum(effect.nats.value for effect in joint.single.values())
    assert joint.interaction.value == pytest.approx(joint.nats.value - total, abs=1e-5)
    assert len(joint.frame()) == len(task.test) and len(joint.examples(2)) == 2


def test_one_change_goes_to_several_labels(lens, task, subspace):
    both = sl.patch(lens, task, "L1.mlp_act@X+END", subspace)
    ours = {"L1.mlp_act@X": subspace, "L1.mlp_act@END": subspace.basis}
    expected = sl.patch(lens, task, ours)
    torch.testing.assert_close(both.patched.logit_diff, expected.patched.logit_diff)
    assert isinstance(both, sl.JointEffect) and list(both.single) == list(ours)
    named = sl.patch(lens, task, "L1.mlp_act@X:", {"whole": Full(), "ours": subspace})
    assert list(named) == ["whole", "ours"]
    assert list(named["ours"].single) == ["L1.mlp_act@X:"]  # type: ignore[attr-defined]
    assert named["ours"].nats.value != named["whole"].nats.value


def test_places_that_do_not_fit_are_refused(lens, task, subspace):
    with pytest.raises(sl.SiteError, match=r"L1.mlp_act@X is there twice"):
        sl.patch(lens, task, {"L1.mlp_act@X+END": None, "L1.mlp_act@X": subspace})
    with pytest.raises(sl.SubspaceError, match=r"is at L1.mlp_act@X, not at L2.mlp_act@X"):
        sl.patch(lens, task, {"L1.mlp_act@X": subspace, "L2.mlp_act@X": subspace})
    with pytest.raises(sl.SubspaceError, match="have their changes in the mapping"):
        sl.patch(lens, task, {"L1.mlp_act@X": None}, Full())  # type: ignore[call-overload]
    with pytest.raises(sl.SiteError, match="no site to patch"):
        sl.patch(lens, task, {})
    with pytest.raises(sl.SiteError, match=r"key heads 0 to 1, each for 2 query heads, not 3"):
        sl.patch(lens, task, "L1.attn_k.3@X")


def test_a_subspace_is_found_and_patched_at_a_key(lens, task):
    captures = sl.capture_task(lens, task, ["L1.attn_k.1@X"])
    site = sl.Site.parse("L1.attn_k.1@X")
    found = sl.das(lens, captures.train, site, steps=3)
    assert found.basis.shape == (8, 1)
    assert sl.patch(lens, captures, site, found).nats.low is not None


def test_places_as_other_tools_spell_them(lens, task):
    for ours, theirs in (
        ("L1.mlp_act@X", "blocks.1.mlp.hook_post@X"),
        ("L1.resid_post@X+END", "blocks.1.hook_resid_post@X+END"),
        ("L1.mlp_act@*", "model.layers[1].mlp.down_proj.input@*"),
    ):
        one, other = (sl.patch(lens, task, where) for where in (ours, theirs))
        torch.testing.assert_close(one.patched.logit_diff, other.patched.logit_diff)
    with pytest.raises(sl.SiteError, match=r"model\.nowhere"):
        sl.patch(lens, task, "model.nowhere@X")
