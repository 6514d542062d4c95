"""One registration is all that a fit needs: everybody who takes fits knows it by then."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from helpers_models import tiny_lens
from helpers_oracle import random_pairs
from subspacelens import FITS, Site, SubspaceError, capture
from subspacelens.fit import named, register
from subspacelens.fit import registry as module
from subspacelens.fit.registry import Count, Seed
from subspacelens.fit.subspace import made_by
from subspacelens.model.lens import LensModel
from subspacelens.sweep.grid import FitSpec

SITE = Site.parse("L1.mlp_act@X")


@pytest.fixture(scope="module")
def lens() -> LensModel:
    return tiny_lens("llama", dtype=torch.float32)


@pytest.fixture
def axis(monkeypatch):
    """A new fit: a coordinate axis, or several."""
    known = dict(module._registered)

    @register("axis", gradients=lambda pairs, options: pairs * options["first"])
    def axis(
        lens, captured, site, *, dim: Count = 1, seed: Seed = 0, first: Count = 3,
        side: Literal["left", "right"] = "left",
    ):  # fmt: skip
        basis = torch.eye(lens.map.dim(site))[:, first : first + dim]
        return made_by(lens, site, basis, captured.pairs.sha256, dict(method="axis", first=first))

    yield axis
    module._registered.clear()
    module._registered.update(known)


def test_a_fit_is_called_as_the_function_that_it_is(lens, axis):
    captured = capture(lens, random_pairs([(8, 4)] * 4), [SITE])
    expected = torch.eye(56)[:, 5:7]
    assert torch.equal(axis(lens, captured, SITE, dim=2, first=5).basis, expected)
    assert torch.equal(FITS["axis"](lens, captured, site=SITE, dim=2, first=5).basis, expected)
    with pytest.raises(SubspaceError, match="is 56 wide: a subspace of 57 dimensions"):
        axis(lens, captured, SITE, dim=57)
    with pytest.raises(SubspaceError, match="axis: side='up': input should be 'left' or 'right'"):
        axis(lens, captured, SITE, side="up")


def test_its_options_are_its_signature(axis):
    assert FITS["axis"].options == {"first": 3, "side": "left"}
    assert FITS["axis"].count_gradients(10, {}) == 30
    assert FITS["axis"].count_gradients(10, {"first": 2}) == 20
    assert FITS["pca"].count_gradients(10, {}) == 0


def test_a_sweep_takes_it(axis):
    assert str(FitSpec("axis", first=2)) == "axis(first=2)"
    with pytest.raises(ValueError, match="axis: first=0"):
        FitSpec("axis", first=0)


def test_a_name_that_nobody_registered_is_refused_with_those_that_are_there():
    with pytest.raises(SubspaceError, match=r"unknown fit 'dash': one of .*das.*random"):
        named("dash")


def test_registered_are_the_methods_of_the_library():
    assert set(FITS) == {
        "closed-form", "das", "gradient", "mean-difference", "pca", "probe", "random"
    }  # fmt: skip
    assert {name for name, fit in FITS.items() if fit.gradients} == {
        "closed-form", "das", "gradient"
    }  # fmt: skip
    assert {name for name, fit in FITS.items() if fit.classes} == {"mean-difference", "probe"}
