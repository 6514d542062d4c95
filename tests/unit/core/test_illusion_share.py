"""The share of illusion, on made-up pairs whose truth is known."""

from __future__ import annotations

import math

import pytest
import torch

from subspacelens.core.first_order import first_order
from subspacelens.core.illusion_share import illusion_share

WIDTH = 400


def axes(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(WIDTH, count, generator=generator).double())[0].T


def noise(n: int, size: float, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return size * torch.randn(n, WIDTH, generator=generator).double() / WIDTH**0.5


SIGNS = torch.tensor([1.0, -1] * 32).double()[:, None]


@pytest.mark.parametrize("cosine", [1.0, 0.8, 0.3, 0.0])
def test_of_one_difference_and_one_gradient_it_is_one_less_the_cosine(cosine):
    first, second = axes(2)
    acts = cosine * first + (1 - cosine**2) ** 0.5 * second
    difference, slope = SIGNS * 3 * first, -SIGNS * 0.5 * acts
    best = first_order(difference, slope).basis(1)
    assert illusion_share(difference, slope, best) == pytest.approx(1 - cosine, abs=1e-9)


def test_it_is_one_where_nature_works_against_the_patch():
    first, second = axes(2)
    difference, slope = SIGNS * first, -SIGNS * (-0.3 * first + second)
    best = first_order(difference, slope).basis(1)
    assert illusion_share(difference, slope, best) == 1


def test_what_else_varies_beside_a_feature_is_no_illusion():
    """Each pair differs by much more than the feature, at random: no direction is worse for it."""
    (feature,) = axes(1)
    difference = SIGNS * feature + noise(64, 3.0)
    assert float(difference.norm(dim=1).min()) > 2.5
    assert illusion_share(difference, -SIGNS * feature, feature[:, None]) < 0.15
    per_pair = (difference @ feature) ** 2 / (difference**2).sum(1)
    assert float(per_pair.mean()) < 0.2


def test_reading_one_direction_and_writing_another_is_illusion():
    sensed, dormant = axes(2)
    difference, slope = SIGNS * sensed + noise(64, 0.05), -SIGNS * dormant
    illusory = (sensed + dormant)[:, None] / 2**0.5
    assert illusion_share(difference, slope, illusory) > 0.95


def test_the_whole_component_has_none():
    difference, slope = noise(8, 1.0), noise(8, 1.0, seed=2)
    whole = torch.eye(WIDTH).double()
    effect = -float((difference * slope).sum())
    expected = (
        pytest.approx(0, abs=1e-9) if effect > 0 else pytest.approx(float("nan"), nan_ok=True)
    )
    assert illusion_share(difference, slope, whole) == expected
    turned = slope if effect > 0 else -slope
    assert illusion_share(difference, turned, whole) == pytest.approx(0, abs=1e-9)


def test_without_an_effect_there_is_no_share():
    difference = SIGNS * axes(1)
    for slope in (0 * difference, difference):
        assert math.isnan(illusion_share(difference, slope, axes(1).T))
