"""Fits, proven by what they are for: a planted direction is found, a loss is lowered."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
import torch

from helpers_models import tiny_lens
from helpers_oracle import hooked_logits, random_pairs
from subspacelens import ModelError, Site, Subspace, SubspaceError, TaskError
from subspacelens.engine.capture import capture
from subspacelens.fit import (
    FITS,
    Recipe,
    das,
    mean_difference,
    pca,
    per_pair,
    probe,
)
from subspacelens.model.lens import LensModel
from subspacelens.tasks.pairset import PairSet

SITE = Site.parse("L1.mlp_act@X")


@pytest.fixture(scope="module")
def lens() -> LensModel:
    return tiny_lens("llama", dtype=torch.float32)


@pytest.fixture(scope="module")
def captured(lens):
    """Random prompts whose activations are then moved along a planted direction by z."""
    pairs = random_pairs([(8, 4)] * 40)
    z = [(i % 2, 1 - i % 2) for i in range(40)]
    pairs = PairSet("p", "train", tuple(replace(p, z=c) for p, c in zip(pairs, z, strict=True)))
    return capture(lens, pairs, [SITE])


@pytest.fixture(scope="module")
def planted(captured):
    generator = torch.Generator().manual_seed(1)
    noise = 0.1 * torch.randn(80, 56, generator=generator)
    direction = torch.nn.functional.normalize(torch.randn(56, generator=generator), dim=0)
    z = torch.tensor([pair.z for pair in captured.pairs])
    base = noise[:40] + 3 * z[:, :1] * direction
    source = noise[40:] + 3 * z[:, 1:] * direction
    return direction, replace(captured, base={SITE: base}, source={SITE: source})


@pytest.mark.parametrize("fit", [mean_difference, pca, probe])
def test_a_planted_direction_is_found(lens, planted, fit):
    direction, captured = planted
    found = fit(lens, captured, SITE)
    assert isinstance(found, Subspace) and found.dim == 1
    assert float((found.basis[:, 0] @ direction).abs()) > 0.97


@pytest.fixture(scope="module")
def of_four(captured):
    """z has four values, each with a place of its own in three planted directions."""
    generator = torch.Generator().manual_seed(3)
    planted = torch.linalg.qr(torch.randn(56, 3, generator=generator)).Q
    z = torch.tensor([(i % 4, (i + 1 + i // 4 % 3) % 4) for i in range(40)])
    places = torch.tensor([[0.0, 0, 0], [4, 0, 0], [0, 4, 0], [0, 0, 4]])
    noise = 0.1 * torch.randn(2, 40, 56, generator=generator)
    base, source = (noise[i] + places[z[:, i]] @ planted.T for i in (0, 1))
    values = ("a", "b", "c", "d")
    pairs = tuple(
        replace(pair, z=(values[i], values[j]))
        for pair, (i, j) in zip(captured.pairs, z.tolist(), strict=True)
    )
    moved = replace(captured, pairs=PairSet("p", "train", pairs), base={SITE: base})
    return planted, replace(moved, source={SITE: source})


@pytest.mark.parametrize("fit", [mean_difference, probe])
def test_of_several_values_the_span_of_the_planted_directions_is_found(lens, of_four, fit):
    planted, captured = of_four
    found = fit(lens, captured, SITE, dim=3).basis
    assert float(torch.linalg.svdvals(found.T @ planted).min()) > 0.97
    assert float((found.T @ found - torch.eye(3)).abs().max()) < 1e-5
    first = fit(lens, captured, SITE).basis
    assert float((first.T @ planted).norm()) > 0.97


def test_a_probe_goes_on_where_one_regression_has_no_more(lens, of_four):
    planted, captured = of_four
    found = probe(lens, captured, SITE, dim=5).basis
    assert float((found.T @ found - torch.eye(5)).abs().max()) < 1e-5
    assert float(torch.linalg.svdvals(found.T @ planted).min()) > 0.97
    with pytest.raises(SubspaceError, match="3 directions of a z of 4 values, not --dim 4"):
        mean_difference(lens, captured, SITE, dim=4)


def test_gradients_equal_a_full_pass(lens, captured):
    got = captured.at(SITE).gradients()
    for index in (0, 7):
        pair = captured.pairs[index]
        change = torch.zeros(56, requires_grad=True)
        column = pair.base.columns["X"]
        logits = hooked_logits(lens, pair.base.ids, SITE, column, lambda h, c=change: h + c)
        (expected,) = torch.autograd.grad(logits[pair.answer] - logits[pair.target], change)
        torch.testing.assert_close(got[index], expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", FITS)
def test_every_fit_is_reproducible_and_says_where_it_comes_from(lens, captured, name):
    options = {"steps": 3} if name == "das" else {}
    first, second = (FITS[name](lens, captured, SITE, seed=2, **options) for _ in range(2))
    assert torch.equal(first.basis, second.basis)
    assert first.fit["method"] == name and first.data_sha256 == captured.pairs.sha256
    assert set(FITS[name].options) <= set(first.fit)
    assert first.site == SITE and first.weights_sha256 == lens.weights_sha256


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"batch": 8}, "das: batch=8 is an option of recipe=adam"),
        ({"lr": 0.1}, "das: lr=0.1 is an option of recipe=adam"),
        ({"recipe": "adam", "tolerance": 0.1}, "das: tolerance=0.1 is an option of recipe=lbfgs"),
        ({"recipe": "sgd"}, "das: recipe='sgd': input should be 'lbfgs' or 'adam'"),
        ({"start": "pca"}, "das: start='pca': input should be 'closed-form' or 'random'"),
        ({"tolerance": 0}, "das: tolerance=0: input should be greater than 0"),
        ({"steps": 0}, "das: steps=0: input should be greater than or equal to 1"),
        ({"batch": 0}, "das: batch=0: "),
        ({"batch": -1}, "das: batch=-1: "),
        ({"lr": math.inf}, "das: lr=inf: input should be a finite number"),
        ({"lr": math.nan}, "das: lr=nan: "),
        ({"lr": 0}, "das: lr=0: input should be greater than 0"),
        ({"lr": -1.0}, "das: lr=-1.0: "),
        ({"seed": -1}, "das: seed=-1: "),
        ({"seed": 2**63}, "das: seed=9223372036854775808: "),
        ({"steps": "many"}, "das: steps='many': "),
        ({"dim": 0}, "das: dim=0: "),
        (
            {"step": 3},
            "das takes no step; its options are recipe, start, steps, tolerance, batch, lr, loss",
        ),
    ],
)
def test_settings_out_of_range_are_refused_in_one_line(lens, captured, setting, says):
    with pytest.raises(SubspaceError, match="^" + re.escape(says)) as error:
        das(lens, captured, SITE, **setting)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", FITS)
def test_fits_need_nobody_to_turn_gradients_on(lens, captured, name):
    options = {"steps": 3} if name == "das" else {}
    expected = FITS[name](lens, captured, SITE, **options).basis
    with torch.no_grad():
        assert torch.equal(FITS[name](lens, captured, SITE, **options).basis, expected)
        assert not torch.is_grad_enabled()


def test_directions_of_pairs_need_nobody_to_turn_gradients_on(lens, captured):
    recipe = Recipe(steps=3, trial=2, rates=(0.1,), starts=1)
    expected = per_pair(lens, captured, SITE, recipe=recipe).directions
    with torch.no_grad():
        assert torch.equal(per_pair(lens, captured, SITE, recipe=recipe).directions, expected)
        assert not captured.at(SITE).gradients().requires_grad


def test_refusals(lens, captured):
    with pytest.raises(SubspaceError, match="not --dim 2"):
        mean_difference(lens, captured, SITE, dim=2)
    with pytest.raises(SubspaceError, match="das: loss='hinge': input should be 'logit-"):
        das(lens, captured, SITE, loss="hinge")
    with pytest.raises(SubspaceError, match="does not fit"):
        pca(lens, captured, SITE, dim=57)
    blank = PairSet("p", "train", tuple(replace(p, z=None) for p in captured.pairs))
    with pytest.raises(TaskError, match="pair 0 has no z"):
        probe(lens, replace(captured, pairs=blank), SITE)
    same = PairSet("p", "train", tuple(replace(p, z=(1, 1)) for p in captured.pairs))
    with pytest.raises(TaskError, match="z is 1 in every prompt"):
        mean_difference(lens, replace(captured, pairs=same), SITE)
    flat = replace(captured, source={SITE: captured.base[SITE]})
    for fit in FITS.values():
        with pytest.raises(TaskError, match="no patch can change anything"):
            fit(lens, flat, SITE)
    with pytest.raises(TaskError, match="no patch can change anything"):
        per_pair(lens, flat, SITE)


@pytest.mark.parametrize("name", FITS)
def test_a_capture_of_another_model_is_refused(lens, captured, name):
    other = tiny_lens("llama", seed=1, dtype=torch.float32)
    with pytest.raises(ModelError, match="the capture was made with model llama"):
        FITS[name](other, captured, SITE)
