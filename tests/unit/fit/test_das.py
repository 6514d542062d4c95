"""DAS: its optimum, how few passes it takes, and that nothing but the pairs decides it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from helpers_models import tiny_model
from helpers_oracle import random_pairs
from subspacelens import FITS, Site, SubspaceError
from subspacelens.core.geometry import principal_angles
from subspacelens.engine.capture import Capture, capture
from subspacelens.engine.patches import PairwisePatch, SubspacePatch
from subspacelens.engine.replay import Replay
from subspacelens.fit import ClosedForm, Recipe, closed_form, das, pca, per_pair, random
from subspacelens.model.lens import LensModel
from subspacelens.model.mapping import build_map

SITE = Site.parse("L1.mlp_act@X")
SITES = [SITE, Site.parse("L1.resid_post@X"), Site.parse("L2.head_z.1@END")]
PAIRS = 40


def lens_of(dtype: torch.dtype = torch.float32) -> LensModel:
    model = tiny_model("llama", dtype=dtype)
    return LensModel(model, None, "tiny", build_map(model))  # type: ignore[arg-type]


def captured_on(lens: LensModel, memory: int | None = None) -> Capture:
    return capture(lens, random_pairs([(8, 4)] * PAIRS), SITES, memory=memory)


@pytest.fixture(scope="module")
def lens() -> LensModel:
    return lens_of()


@pytest.fixture(scope="module")
def captured(lens) -> Capture:
    return captured_on(lens)


def mean_logit_difference(captured: Capture, site: Site, basis: torch.Tensor) -> float:
    return float(captured.at(site).outcomes(SubspacePatch(basis)).logit_diff.double().mean())


@pytest.mark.parametrize("site", SITES, ids=str)
@pytest.mark.parametrize("dim", [1, 4])
def test_it_reaches_what_adam_reaches_in_a_sixth_of_the_passes(lens, captured, site, dim):
    usual = das(lens, captured, site, dim=dim, recipe="adam")
    found = das(lens, captured, site, dim=dim)
    assert found.fit["passes"] * 6 <= usual.fit["passes"] == 120
    clean = float(captured.clean.logit_diff.double().mean())
    least = clean - mean_logit_difference(captured, site, usual.basis)
    assert clean - mean_logit_difference(captured, site, found.basis) >= 0.99 * least > 0


@pytest.mark.parametrize("recipe", ["lbfgs", "adam"])
@pytest.mark.parametrize("start", ["closed-form", "random"])
@pytest.mark.parametrize("loss", ["logit-difference", "cross-entropy"])
def test_it_beats_what_did_not_learn(lens, captured, recipe, start, loss):
    found = das(lens, captured, SITE, dim=2, recipe=recipe, start=start, loss=loss, steps=15)
    assert found.fit["last_loss"] < found.fit["first_loss"]
    if loss == "logit-difference":
        others = [random(lens, captured, SITE, dim=2, seed=seed).basis for seed in range(5)]
        others.append(pca(lens, captured, SITE, dim=2).basis)
        best = min(mean_logit_difference(captured, SITE, basis) for basis in others)
        assert mean_logit_difference(captured, SITE, found.basis) < best


def test_the_last_loss_is_that_of_the_basis(lens, captured):
    found = das(lens, captured, SITE, dim=3)
    expected = mean_logit_difference(captured, SITE, found.basis)
    assert found.fit["last_loss"] == pytest.approx(expected, abs=1e-5)


def test_seeds_draw_only_what_is_random(lens, captured):
    def same(**options) -> bool:
        first, second = (das(lens, captured, SITE, seed=s, **options).basis for s in (1, 2))
        return torch.equal(first, second)

    assert same() and same(dim=4, loss="cross-entropy")
    assert same(recipe="adam", start="closed-form", steps=4)
    assert not same(start="random", steps=4) and not same(recipe="adam", steps=4)
    assert not same(recipe="adam", start="closed-form", steps=4, batch=16)


def test_pieces_under_a_small_budget_give_the_same_subspace(lens):
    free, tight = (das(lens, captured_on(lens, memory), SITE, dim=2) for memory in (None, 1))
    assert principal_angles(free.basis, tight.basis).max() < 1e-2
    assert free.fit["last_loss"] == pytest.approx(tight.fit["last_loss"], abs=1e-4)


def test_it_says_what_was_done(lens, captured, monkeypatch):
    passes = []
    pieces = Replay.pieces
    monkeypatch.setattr(
        Replay, "pieces", lambda self, *args, **options: passes.append(len(self.pairs))
        or pieces(self, *args, **options),
    )  # fmt: skip
    of_lbfgs = das(lens, captured, SITE).fit
    assert sum(passes) == of_lbfgs["passes"] * PAIRS <= FITS["das"].count_gradients(PAIRS, {})
    assert (of_lbfgs["recipe"], of_lbfgs["start"]) == ("lbfgs", "closed-form")
    assert of_lbfgs["batch"] is of_lbfgs["lr"] is None
    passes.clear()
    options: dict[str, Any] = dict(recipe="adam", steps=4, batch=16)
    of_adam = das(lens, captured, SITE, **options).fit
    assert passes == [16, 16, 8, 16]
    assert of_adam["passes"] * PAIRS == sum(passes)
    assert FITS["das"].count_gradients(PAIRS, options) == 64
    assert (of_adam["start"], of_adam["lr"], of_adam["tolerance"]) == ("random", 0.03, None)


def test_a_fit_can_be_repeated_from_its_record(lens, captured):
    for options in ({}, {"recipe": "adam", "steps": 5, "batch": 16, "start": "closed-form"}):
        first = das(lens, captured, SITE, dim=2, **options)
        settings = {name: first.fit[name] for name in FITS["das"].options}
        again = das(lens, captured, SITE, dim=2, **settings)
        assert torch.equal(first.basis, again.basis) and again.fit == first.fit


def test_its_steps_are_a_cap_and_its_tolerance_stops_it(lens, captured):
    def passes(**options) -> float:
        return das(lens, captured, SITE, dim=4, **options).fit["passes"]

    assert passes(steps=2, tolerance=1e-9) == passes(steps=1, tolerance=1e-9) + 1
    assert passes(tolerance=0.5) < passes(tolerance=1e-9)


def test_every_dimension_of_a_site(lens, captured):
    site = SITES[2]
    width = lens.map.dim(site)
    whole = das(lens, captured, site, dim=width, steps=2)
    expected = mean_logit_difference(captured, site, torch.eye(width))
    assert whole.fit["last_loss"] == pytest.approx(expected, abs=1e-5)


def test_one_pair_spans_less_than_is_asked_for(lens, captured):
    alone = captured.select(captured.pairs[:1], torch.tensor([0]))
    first, second = (das(lens, alone, SITE, dim=5) for _ in range(2))
    assert torch.equal(first.basis, second.basis)
    assert closed_form(lens, alone, SITE, dim=5).basis.shape == (56, 5)


def test_half_precision(lens, captured):
    half = lens_of(torch.bfloat16)
    found = das(half, captured_on(half), SITE).basis
    assert found.dtype == torch.float32
    clean = float(captured.clean.logit_diff.double().mean())
    whole, of_half = (
        clean - mean_logit_difference(captured, SITE, basis)
        for basis in (das(lens, captured, SITE).basis, found)
    )
    assert of_half > 0.8 * whole


def test_where_nothing_reaches_the_answer(lens, captured, monkeypatch):
    still = captured.at(SITE)
    monkeypatch.setattr("subspacelens.fit.loss._losses", lambda *args: 0 * args[-1].sum(-1))
    first, second = (das(lens, captured, SITE, dim=2) for _ in range(2))
    assert torch.equal(first.basis, second.basis)
    assert bool(still.difference.any())


@pytest.mark.parametrize("start", ["closed-form", "random"])
@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_what_is_not_finite_is_refused_in_one_line(lens, captured, monkeypatch, start, wrong):
    monkeypatch.setattr("subspacelens.fit.loss._losses", lambda *args: wrong * args[-1].sum(-1))
    with pytest.raises(SubspaceError, match=r"not finite in torch.float32") as error:
        das(lens, captured, SITE, start=start)
    assert "\n" not in str(error.value)


def test_the_closed_form_predicts_a_small_patch(lens, captured):
    """Patches of a Δ that is small enough for the first order to be all."""
    base, source = captured.base[SITE], captured.source[SITE]
    near = replace(captured, source=captured.source | {SITE: base + 0.02 * (source - base)})
    clean = float(captured.clean.logit_diff.double().mean())
    for dim in (1, 3):
        found = closed_form(lens, near, SITE, dim=dim)
        fall = clean - mean_logit_difference(near, SITE, found.basis)
        assert fall == pytest.approx(found.fit["predicted"], rel=0.05)
    whole = clean - mean_logit_difference(near, SITE, torch.eye(56))
    assert whole == pytest.approx(found.fit["whole"], rel=0.2)


def test_a_direction_for_each_pair_in_a_fifth_of_the_gradients(lens, captured):
    usual = per_pair(lens, captured, SITE, recipe=Recipe())
    found = per_pair(lens, captured, SITE)
    clean = captured.clean.logit_diff
    falls, expected = (clean - each.logit_diff.cpu() for each in (found, usual))
    assert float(falls.mean()) >= 0.99 * float(expected.mean()) > 0
    assert torch.equal(found.directions, per_pair(lens, captured, SITE, seed=7).directions)
    first = per_pair(lens, captured, SITE, recipe=ClosedForm(steps=1))
    assert bool((found.logit_diff <= first.logit_diff + 1e-6).all())
    tight = per_pair(lens, captured_on(lens, 1), SITE)
    torch.testing.assert_close(tight.logit_diff, found.logit_diff, rtol=1e-3, atol=1e-4)
    with pytest.raises(SubspaceError, match="give steps >= 1"):
        ClosedForm(steps=0)


def test_what_a_pair_is_left_with_is_what_its_direction_leaves(lens, captured):
    found = per_pair(lens, captured, SITE)
    v = found.directions
    left = captured.at(SITE).outcomes(PairwisePatch(v, v)).logit_diff
    torch.testing.assert_close(left, found.logit_diff, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(v.norm(dim=1), torch.ones(PAIRS))
