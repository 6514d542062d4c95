"""The main job on the real model: an illusion called an illusion, a feature called faithful."""

from __future__ import annotations

import pytest
import torch

from helpers_real import FAITHFUL, ILLUSORY
from subspacelens import audit, das
from subspacelens.audit import judge
from subspacelens.core.geometry import orthonormal
from subspacelens.engine.patches import Full, SubspacePatch
from subspacelens.fit import mean_difference, random
from subspacelens.fit.subspace import made_by
from subspacelens.survey.residual import residual_illusions

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def audits(lens, captures, subspaces):
    budgets = {ILLUSORY: "standard", FAITHFUL: "fast"}
    return {
        site: audit(lens, captures, subspace, budget=budgets[site]).record
        for site, subspace in subspaces.items()
    }


def fldd(record, patch: str) -> float:
    return record.effects[patch].fldd.value


def test_the_model_does_the_task(audits):
    clean = audits[ILLUSORY].clean
    assert clean.logit_diff.low > 3 and clean.top_answer.value > 0.85


def test_textbook_illusion(audits):
    record = audits[ILLUSORY]
    assert fldd(record, "full") <= 0.15
    assert fldd(record, "subspace") >= 1.0
    assert fldd(record, "row") <= fldd(record, "subspace") / 2
    assert abs(fldd(record, "null")) < 0.01
    assert record.verdict.label == "illusory"


def test_success_case(audits):
    record = audits[FAITHFUL]
    assert fldd(record, "full") >= 0.8
    assert fldd(record, "subspace") >= 1.0
    assert record.verdict.label == "faithful"


def test_both_directions_and_new_templates_agree(captures, subspaces, audits):
    for site, record in audits.items():
        patch, ours = SubspacePatch(subspaces[site].basis), fldd(record, "subspace")
        reversed_, unseen = captures.reversed.at(site), captures.held_out.at(site)
        assert reversed_.effect(patch).fldd.value == pytest.approx(ours, rel=0.25)
        assert unseen.effect(patch).fldd.value / ours > 0.5


def test_the_parts_of_a_read_split_agree(audits):
    record = audits[ILLUSORY]
    assert fldd(record, "reversed") == pytest.approx(fldd(record, "subspace"), rel=0.25)
    assert record.tests["generalisation"].value > 0.5
    marks = record.figures.dose_response.marks
    assert marks["read_row"] + marks["read_null"] == pytest.approx(1, abs=1e-4)


def test_random_direction_is_undetermined(lens, captures):
    for site in (ILLUSORY, FAITHFUL):
        judgement = judge(lens, captures, random(lens, captures.train, site, seed=3), budget="fast")
        assert abs(judgement.effects["subspace"].fldd.value) < 0.05
        assert judgement.verdict.label == "undetermined"


def test_a_textbook_illusion_in_the_residual_stream_is_one(lens, captures):
    train = captures.train.at(FAITHFUL)
    judged = {}
    built_here = residual_illusions(train)
    for lacks in ("mean", "inside"):
        direction = built_here[lacks]
        built = made_by(lens, FAITHFUL, direction[:, None], train.pairs.sha256, {"method": lacks})
        judged[lacks] = judge(lens, captures, built, budget="fast")
        assert judged[lacks].effects["subspace"].fldd.value > 0.2
        assert judged[lacks].verdict.label in ("illusory", "undetermined")
    assert judged["mean"].verdict.label == "illusory"
    assert judged["inside"].tests["acting"].value > 2 / 3


def test_how_the_classes_differ_is_faithful_and_noise_beside_it_idle(lens, captures):
    direction = mean_difference(lens, captures.train, FAITHFUL)
    assert judge(lens, captures, direction, budget="fast").verdict.label == "faithful"
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(len(direction.basis), 1, generator=generator)
    both = orthonormal(torch.cat([direction.basis, noise], dim=1))
    beside = made_by(lens, FAITHFUL, both, direction.data_sha256, {"method": "with noise"})
    verdict = judge(lens, captures, beside, budget="fast").verdict
    assert (verdict.label, verdict.code) == ("undetermined", "idle")


@pytest.mark.parametrize("site", [ILLUSORY, FAITHFUL], ids=str)
def test_fldd_equals_plain_hooks(lens, captures, subspaces, site):
    """The same patches by plain hooks on the Hugging Face model, one batch a template length."""
    block = lens.model.model.layers[site.layer]
    module = block.mlp.down_proj if site.stream == "mlp_act" else block
    replay, basis = captures.test.at(site).subset(slice(12)), subspaces[site].basis
    for patch in (Full(), SubspacePatch(basis)):
        clean, patched = [], []
        for pair in replay.pairs:
            column = pair.base.columns[site.label]

            def swap(_module, args, output, pair=pair, column=column, patch=patch):
                hidden = (args[0] if module is not block else output).clone()
                source = swap.source
                hidden[0, column] += patch.delta(hidden[0, column][None], source[None])[0]
                return hidden if module is block else (hidden,)

            def read(_module, args, output, pair=pair):
                hidden = args[0] if module is not block else output
                swap.source = hidden[0, pair.source.columns[site.label]].clone()

            with torch.no_grad():
                handle = module.register_forward_hook(read)
                lens.model(torch.tensor([pair.source.ids]))
                handle.remove()
                logits = lens.model(torch.tensor([pair.base.ids])).logits[0, -1]
                clean.append(float(logits[pair.answer] - logits[pair.target]))
                if module is block:
                    handle = module.register_forward_hook(swap)
                else:
                    handle = module.register_forward_pre_hook(
                        lambda m, args, swap=swap: swap(m, args, None)
                    )
                logits = lens.model(torch.tensor([pair.base.ids])).logits[0, -1]
                handle.remove()
                patched.append(float(logits[pair.answer] - logits[pair.target]))
        expected = 1 - sum(patched) / sum(clean)
        assert replay.effect(patch).fldd.value == pytest.approx(expected, abs=1e-3)


def test_same_seed_same_numbers(lens, captures):
    small = captures.train.pairs[:16]
    piece = captures.train.select(small, torch.arange(16))
    first, second = (das(lens, piece, ILLUSORY, steps=3, start="random", seed=5) for _ in range(2))
    assert torch.equal(first.basis, second.basis) and first.fit == second.fit
    other = das(lens, piece, ILLUSORY, steps=3, start="random", seed=6)
    assert not torch.equal(first.basis, other.basis)


def test_gradient_equals_a_full_pass(lens, captures):
    pair = captures.test.pairs[0]
    replay = captures.test.at(ILLUSORY).subset(slice(1))
    (piece,) = replay.pieces()
    delta = replay.difference[None].clone().requires_grad_(True)
    (ours,) = torch.autograd.grad(piece.logit_diff(delta).sum(), delta)
    change = delta.detach()[0, 0].requires_grad_(True)
    module = lens.model.model.layers[ILLUSORY.layer].mlp.down_proj

    def add(_module, args):
        mask = torch.zeros(len(pair.base.ids), 1)
        mask[pair.base.columns["S2"]] = 1
        return (args[0] + mask * change,)

    handle = module.register_forward_pre_hook(add)
    logits = lens.model(torch.tensor([pair.base.ids])).logits[0, -1]
    handle.remove()
    (theirs,) = torch.autograd.grad(logits[pair.answer] - logits[pair.target], change)
    torch.testing.assert_close(ours[0, 0], theirs, rtol=1e-3, atol=1e-5)
