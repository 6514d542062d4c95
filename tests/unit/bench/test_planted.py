"""What was planted carries z, and what was planted as a trap does not."""

from __future__ import annotations

import pytest
import torch

from subspacelens.bench.carrying import carried
from subspacelens.bench.trained import Case
from subspacelens.bench.truth import check, load_planted, load_trained, planted_models
from subspacelens.bench.truth.planted import LEAST, Plan, planted_task
from subspacelens.core.site import Site
from subspacelens.engine.patches import Full, SubspacePatch
from subspacelens.engine.task_capture import capture_task
from subspacelens.fit.subspace import made_by

COUNT = 4


@pytest.fixture(scope="module")
def models():
    return list(planted_models(COUNT))


def plan_of(model) -> Plan:
    number = int(model.name.removeprefix("planted-"))
    return Plan.drawn(torch.Generator().manual_seed(number))


def case_of(model, sites) -> Case:
    task = model.task(32, 64, 3)
    wanted = [*sites, model.site, model.behind]
    return Case(model, capture_task(model.lens, task, wanted))


def space(model, site, basis):
    basis = torch.linalg.qr(basis.double())[0]
    return made_by(model.lens, site, basis, "", {"method": "known"})


@pytest.mark.parametrize("which", range(COUNT))
def test_every_channel_carries_z(models, which):
    model = models[which]
    case = case_of(model, model.channels)
    for site, channel in model.channels.items():
        told = carried(case, space(model, site, channel))
        assert told["carries"], (site, told)
        assert told["own"] > 0.9 and abs(told["without_z"]) < 0.1, (site, told)
    assert carried(case, space(model, model.site, model.basis))["truth"] == "faithful"


@pytest.mark.parametrize("which", range(COUNT))
def test_the_trap_moves_the_answer_and_the_mlp_does_not(models, which):
    model = models[which]
    site = Site(plan_of(model).trap, "mlp_act", "END")
    case = case_of(model, [site])
    illusion = torch.zeros(128, 1)
    illusion[2:4] = 1.0
    trap = space(model, site, illusion)
    effects = case.test.at(site).effects({"own": SubspacePatch(trap.basis), "whole": Full()})
    assert effects["own"].fldd.value > 0.3
    assert abs(effects["whole"].fldd.value) < 0.1
    told = carried(case, trap)
    assert told["truth"] == "illusory" and not told["carries"]


def test_a_number_is_one_model():
    one, again, other = load_planted(1), load_planted(1), load_planted(2)
    assert one.lens.weights_sha256 == again.lens.weights_sha256 != other.lens.weights_sha256


def test_what_is_truth_is_borne_out_on_other_pairs(models):
    assert len(models) == COUNT
    for model in models:
        shares = check(model, seed=9)
        assert shares.keys() == {"task", "swap", "others", "whole"}
        assert min(shares.values()) >= LEAST


def test_pairs_differ_in_z():
    task = planted_task(train=32, test=32, seed=3)
    for pair in (*task.train, *task.test):
        bits = tuple(int(p.text.split()[4][1]) % 2 for p in (pair.base, pair.source))
        assert pair.z == bits and sum(bits) == 1
        assert pair.answer - pair.target == bits[0] - bits[1]


def test_a_block_before_the_trained_one_is_right_if_z_is_on_its_way_there():
    model = load_trained("stream")
    site = Site(1, "attn_out", "SEP")
    case = case_of(model, [site, Site(0, "resid_post", "SEP")])
    told = carried(case, space(model, site, model.basis))
    assert told["carries"] and told["whole_without_z"] < 0.05
    early = carried(case, space(model, Site(0, "resid_post", "SEP"), model.basis))
    assert not early["carries"]


def test_a_subspace_beside_the_channel_is_illusory_where_all_else_does_as_much(models):
    model = models[0]
    beside = torch.randn(64, 1, generator=torch.Generator().manual_seed(0))
    beside -= model.basis @ (model.basis.T @ beside)
    tilted = space(model, model.site, 0.3 * model.basis + beside / beside.norm())
    told = carried(case_of(model, []), tilted)
    assert told["carries"] and told["rest"] >= 2 / 3 and told["truth"] == "illusory"
