"""One pass with gradients says at every site what a replay says there alone."""

from __future__ import annotations

import pytest
import torch

from helpers_models import FAMILIES, tiny_model
from helpers_oracle import random_pairs
from subspacelens.core.errors import ModelError, SiteError, TaskError
from subspacelens.core.site import STREAMS, Site
from subspacelens.engine import gradient_pass as module
from subspacelens.engine.capture import capture
from subspacelens.engine.gradient_pass import gradient_pass
from subspacelens.model.lens import LensModel, wrap
from subspacelens.tasks.pairset import PairSet

LENGTHS = [(9, 4), (12, 7), (9, 0), (11, 6), (8, 7), (9, 4), (10, 5)]
IN_FLOAT64 = ("gpt2", "gpt_neox", "phi", "opt", "falcon", "starcoder2", "stablelm", "bloom", "mpt")
"""The others have norms or attention in float32 whatever the dtype: other last bits each way."""


def lens_of(family: str) -> LensModel:
    return wrap(tiny_model(family), None, family)  # type: ignore[arg-type]


def every_site(lens: LensModel) -> list[Site]:
    return [
        Site(layer, stream, label)
        for layer, block in enumerate(lens.map.blocks)
        for stream in STREAMS
        if stream not in block.missing
        for label in ("X", "END")
    ]


@pytest.fixture(scope="module")
def lens() -> LensModel:
    return lens_of("gpt2")


@pytest.fixture(scope="module")
def pairs() -> PairSet:
    return random_pairs(LENGTHS)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_the_replay_at_every_site(family, pairs):
    lens = lens_of(family)
    sites = every_site(lens)
    found, captured = gradient_pass(lens, pairs, sites), capture(lens, pairs, sites)
    tolerance = 1e-9 if family in IN_FLOAT64 else 2e-6
    for site in sites:
        expected = captured.at(site).gradients()
        absolute = tolerance * float(expected.abs().max())
        torch.testing.assert_close(found.gradients[site], expected, rtol=tolerance, atol=absolute)
    torch.testing.assert_close(found.clean.logit_diff, captured.clean.logit_diff)
    assert torch.equal(found.clean.top, captured.clean.top)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_activations_are_those_of_the_capture(family, pairs):
    lens = lens_of(family)
    sites = every_site(lens)
    found, captured = gradient_pass(lens, pairs, sites), capture(lens, pairs, sites)
    for site in sites:
        torch.testing.assert_close(found.base[site], captured.base[site])
        torch.testing.assert_close(found.difference(str(site)), captured.difference(site))


def test_a_head_is_a_part_of_its_block(lens, pairs):
    whole, head = Site(1, "head_z", "X"), Site(1, "head_z", "X", 2)
    found = gradient_pass(lens, pairs, [whole, head])
    part = lens.map.head_slice(head)
    assert torch.equal(found.gradients[head], found.gradients[whole][:, part])
    assert torch.equal(found.source[head], found.source[whole][:, part])


def test_sources_that_are_bases_too_are_not_run_again(lens, pairs, monkeypatch):
    both = PairSet("both", "test", (*pairs.pairs, *pairs.swapped().pairs))
    site = Site(2, "resid_post", "END")
    runs = []
    monkeypatch.setattr(module._Pass, "sources", lambda self, prompts: runs.append(prompts))
    found = gradient_pass(lens, both, [site])
    assert not runs
    assert torch.equal(found.source[site][: len(pairs)], found.base[site][len(pairs) :])


def test_a_tight_budget_takes_more_batches_and_gives_the_same(lens, pairs, monkeypatch):
    sites = every_site(lens)
    whole = gradient_pass(lens, pairs, sites)
    batches = []
    run = module._Pass.bases
    monkeypatch.setattr(
        module._Pass, "bases", lambda self, rows: batches.append(rows) or run(self, rows)
    )
    tight = gradient_pass(lens, pairs, sites, memory=1)
    assert [len(rows) for rows in batches] == [1] * len(pairs)
    for site in sites:
        torch.testing.assert_close(tight.gradients[site], whole.gradients[site])


def test_the_model_is_left_as_found(pairs):
    lens = lens_of("llama")
    for parameter in lens.model.parameters():
        parameter.requires_grad_(True)
    hooks = [dict(m._forward_hooks) | dict(m._forward_pre_hooks) for m in lens.model.modules()]
    with torch.no_grad():
        gradient_pass(lens, pairs, every_site(lens))
        assert not torch.is_grad_enabled()
    after = [dict(m._forward_hooks) | dict(m._forward_pre_hooks) for m in lens.model.modules()]
    assert after == hooks
    assert all(p.grad is None and p.requires_grad for p in lens.model.parameters())


def test_it_runs_in_inference_mode(lens, pairs):
    site = Site(1, "mlp_act", "X")
    with torch.inference_mode():
        found = gradient_pass(lens, pairs, [site])
    assert torch.equal(found.gradients[site], gradient_pass(lens, pairs, [site]).gradients[site])


def test_bad_requests_are_refused(lens, pairs):
    with pytest.raises(SiteError, match="no site"):
        gradient_pass(lens, pairs, [])
    with pytest.raises(SiteError, match="layers 0 to 3"):
        gradient_pass(lens, pairs, ["L9.mlp_act@X"])
    with pytest.raises(TaskError, match="no label 'S2'"):
        gradient_pass(lens, pairs, ["L1.mlp_act@S2"])
    with pytest.raises(TaskError, match="--shifted"):
        gradient_pass(lens, random_pairs(LENGTHS, shift=1), ["L1.mlp_act@X"])
    lens = lens_of("gpt2")
    lens.model.train()
    with pytest.raises(ModelError, match="training mode"):
        gradient_pass(lens, pairs, ["L1.mlp_act@X"])


def test_shifted_labels_are_read_where_they_stand(lens):
    pairs = random_pairs(LENGTHS, shift=2)
    site = Site(1, "resid_post", "X")
    found = gradient_pass(lens, pairs, [site], shifted=True)
    other = capture(lens, pairs, [site], shifted=True)
    torch.testing.assert_close(found.source[site], other.source[site])
