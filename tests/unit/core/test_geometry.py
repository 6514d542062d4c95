"""Splits and supports, proven against what defines them rather than against their formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from subspacelens.core.geometry import (
    Split,
    Support,
    haar,
    natural_draws,
    orthonormal,
    principal_angles,
    svd,
)
from subspacelens.engine.patches import Full, NoOp, ReadWrite, SubspacePatch, ZeroSetting

shapes = st.tuples(st.integers(1, 9), st.integers(2, 12), st.integers(1, 9), st.integers(0, 99))


def low_rank(rows: int, columns: int, rank: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(rows, rank, generator=generator, dtype=torch.float64)
    return left @ torch.randn(rank, columns, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (5, 5)])
def test_a_decomposition_that_does_not_converge_is_done_another_way(shape, monkeypatch):
    """As that of the null part of a whole MLP, 960 singular values of one and 576 of none."""
    x = low_rank(*shape, 3, seed=0)
    expected = svd(x)

    def stuck(*args, **kwargs):
        raise torch.linalg.LinAlgError("the algorithm failed to converge")

    monkeypatch.setattr(torch.linalg, "svd", stuck)
    u, s, vh = svd(x.float())
    assert u.dtype == torch.float32 and [u.shape, s.shape, vh.shape] == [e.shape for e in expected]
    torch.testing.assert_close(s.double(), expected[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close((u * s) @ vh, x.float(), atol=1e-5, rtol=1e-5)
    assert orthonormal(x).shape == (shape[0], 3)


@settings(deadline=None)
@given(shapes)
def test_split_finds_rank_and_kernel(shape):
    rows, columns, rank, seed = shape
    weight = low_rank(rows, columns, rank, seed)
    split = Split.of(weight)
    assert split.rank == min(rows, columns, rank)
    x = torch.randn(columns, 3, dtype=torch.float64)
    torch.testing.assert_close(split.row(x) + split.null(x), x)
    assert float((weight @ split.null(x)).norm()) <= 1e-9 * float(weight.norm() * x.norm())
    torch.testing.assert_close(split.row(split.row(x)), split.row(x))
    assert float((split.row(x) * split.null(x)).sum(0).abs().max()) < 1e-9 * float(x.norm() ** 2)


def test_centred_split_also_drops_what_moves_all_outputs_alike():
    weight = torch.randn(6, 10, dtype=torch.float64)
    split = Split.of(weight, centred=True)
    assert split.rank == 5
    x = split.null(torch.randn(10, 1, dtype=torch.float64))
    written = weight @ x
    torch.testing.assert_close(written, written.mean().expand_as(written), atol=1e-9, rtol=0)


@settings(deadline=None)
@given(st.integers(2, 12), st.integers(1, 4), st.integers(0, 99))
def test_patches_agree_with_their_definitions(dim, k, seed):
    generator = torch.Generator().manual_seed(seed)
    k = min(k, dim)
    base, source = torch.randn(2, 5, dim, generator=generator, dtype=torch.float64)
    basis = haar(dim, k, 1, generator)[0]
    patched = base + SubspacePatch(basis).delta(base, source)
    torch.testing.assert_close(patched @ basis, source @ basis)
    rest = torch.eye(dim, dtype=torch.float64) - basis @ basis.T
    torch.testing.assert_close(patched @ rest, base @ rest)
    torch.testing.assert_close(base + Full().delta(base, source), source)
    assert not NoOp().delta(base, source).any()
    weight = torch.randn(max(1, dim // 2), dim, generator=generator, dtype=torch.float64)
    split = Split.of(weight)
    parts = [ReadWrite(part(basis), basis) for part in (split.row, split.null)]
    torch.testing.assert_close(
        sum(p.delta(base, source) for p in parts), SubspacePatch(basis).delta(base, source)
    )
    v = torch.randn(dim, generator=generator, dtype=torch.float64)
    zeroed = base + ZeroSetting(v / v.norm()).delta(base, source)
    torch.testing.assert_close(zeroed @ v, torch.zeros(5, dtype=torch.float64), atol=1e-9, rtol=0)


def test_orthonormal_drops_absent_directions():
    x = torch.randn(7, 2, dtype=torch.float64)
    basis = orthonormal(torch.cat([x, x[:, :1] + x[:, 1:], 1e-9 * torch.randn(7, 1)], dim=1))
    assert basis.shape == (7, 2)
    torch.testing.assert_close(basis.T @ basis, torch.eye(2, dtype=torch.float64))
    assert principal_angles(basis, x).max() < 1e-6


def test_random_subspaces_are_uniform_and_natural_ones_follow_the_sample():
    generator = torch.Generator().manual_seed(0)
    draws = haar(20, 2, 4000, generator)
    projector = (draws @ draws.mT).mean(0)
    assert float((projector - torch.eye(20) / 10).abs().max()) < 0.01
    sample = torch.randn(300, 20, generator=generator, dtype=torch.float64)
    sample[:, 5:] = 0
    natural = natural_draws(sample, 2, 50, generator)
    assert natural.shape == (50, 20, 2) and float(natural[:, 5:].abs().max()) < 1e-9
    with pytest.raises(ValueError, match="3-dimensional"):
        haar(2, 3, 1, generator)


def test_support_keeps_what_varies():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 6, generator=generator, dtype=torch.float64)
    x = x * torch.tensor([10.0, 5.0, 1.0, 0.1, 0.0, 0.0], dtype=torch.float64) + 3
    support = Support.of(x)
    assert support.axes.shape[1] == 4
    assert support.components(0.5) == 1 and support.components(0.99) == 2
    kept = support.on(torch.eye(6, dtype=torch.float64), support.components(0.99))
    np.testing.assert_allclose(kept.diagonal()[:2], 1, atol=1e-2)
    np.testing.assert_allclose(kept.diagonal()[3:], 0, atol=1e-2)
