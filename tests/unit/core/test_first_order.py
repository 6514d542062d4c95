"""The closed form, against a dense eigenproblem and against many random subspaces."""

from __future__ import annotations

import pytest
import torch

from subspacelens.core.first_order import first_order, first_order_of_each
from subspacelens.core.geometry import haar


def drawn(n: int, dim: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    delta, slope = torch.randn(2, n, dim, generator=generator, dtype=torch.float64)
    return delta, slope


def dense(delta: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    m = sum(-(torch.outer(a, b) + torch.outer(b, a)) for a, b in zip(delta, slope, strict=True))
    return torch.as_tensor(m) / (2 * len(delta))


def effect(basis: torch.Tensor, delta: torch.Tensor, slope: torch.Tensor) -> float:
    """By how much the patch of a basis lowers a loss whose gradient is `slope`, (n, dim)."""
    return -float(((delta @ basis @ basis.T) * slope).sum(1).mean())


@pytest.mark.parametrize(("n", "dim"), [(3, 40), (30, 12), (1, 5), (4, 8)])
def test_it_equals_the_dense_eigenproblem(n, dim):
    delta, slope = drawn(n, dim)
    found = first_order(delta, slope)
    values, _ = torch.linalg.eigh(dense(delta, slope))
    for k in range(1, dim + 1):
        basis = found.basis(k)
        assert torch.allclose(basis.T @ basis, torch.eye(k, dtype=torch.float64), atol=1e-10)
        assert found.effect(k) == pytest.approx(float(values[-k:].sum()), abs=1e-10)
        assert effect(basis, delta, slope) == pytest.approx(found.effect(k), abs=1e-10)
    assert found.whole == pytest.approx(effect(torch.eye(dim).double(), delta, slope), abs=1e-10)


def test_no_other_subspace_does_more():
    delta, slope = drawn(6, 20)
    for k in (1, 3):
        best = first_order(delta, slope).effect(k)
        others = haar(20, k, 200, torch.Generator().manual_seed(1))
        assert max(effect(basis, delta, slope) for basis in others) < best


def test_one_difference_and_one_gradient_meet_half_way():
    (delta,), (slope,) = drawn(1, 30)
    signs = torch.tensor([1.0, -1, -1, 1]).double()[:, None]
    found = first_order(signs * delta, signs * slope)
    halves = delta / delta.norm() - slope / slope.norm()
    assert abs(float(found.basis(1)[:, 0] @ halves / halves.norm())) == pytest.approx(1)
    cosine = float(-delta @ slope / delta.norm() / slope.norm())
    assert found.cosine == pytest.approx(cosine)
    assert found.effect(1) / found.whole == pytest.approx((1 + 1 / cosine) / 2)


def test_each_pair_alone_is_the_closed_form_of_that_pair():
    delta, slope = drawn(5, 30)
    each = first_order_of_each(delta, slope)
    for index, direction in enumerate(each):
        (alone,) = first_order(delta[index : index + 1], slope[index : index + 1]).basis(1).T
        assert abs(float(alone @ direction)) == pytest.approx(1)


def test_where_nothing_varies_or_nothing_acts():
    delta, slope = drawn(4, 6)
    nothing = torch.zeros(4, 6)
    for found in (first_order(nothing, slope), first_order(delta, nothing)):
        assert found.effect(2) == found.whole == found.cosine == 0
        assert torch.allclose(found.basis(6).T @ found.basis(6), torch.eye(6).double())
    toward_delta = first_order_of_each(delta, nothing)
    assert torch.allclose(toward_delta, delta / delta.norm(dim=1, keepdim=True))
    assert torch.allclose(first_order_of_each(delta, delta), toward_delta)
    away = first_order_of_each(nothing, slope)
    assert torch.allclose(away, -slope / slope.norm(dim=1, keepdim=True))


def test_half_precision_and_the_same_every_time():
    delta, slope = (x.bfloat16() for x in drawn(4, 30))
    first, second = (first_order(delta, slope).basis(9) for _ in range(2))
    assert first.dtype == torch.float64 and torch.equal(first, second)
