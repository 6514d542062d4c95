"""A subspace from a tensor that is in memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import subspacelens as sl
from helpers_models import tiny_lens
from subspacelens.core.geometry import principal_angles
from subspacelens.fit import given, given_rows

SITE = "L1.mlp_act@END"


@pytest.fixture(scope="module")
def lens():
    return tiny_lens("llama", dtype=torch.float32)


@pytest.fixture
def matrix() -> torch.Tensor:
    return torch.randn(56, 2, generator=torch.Generator().manual_seed(0))


def test_a_direction_a_basis_and_its_transpose(lens, matrix):
    for array in (matrix, matrix.T, matrix.numpy(), matrix.bfloat16(), matrix.requires_grad_()):
        found = sl.Subspace.of(lens, SITE, array, note="from a test")
        assert found.basis.shape == (56, 2) and found.site == sl.Site.parse(SITE)
        assert principal_angles(found.basis, matrix.detach()).max() < 0.01
        assert found.fit["orthonormalised"] and found.fit["note"] == "from a test"
    one = sl.Subspace.of(lens, sl.Site.parse(SITE), matrix[:, 0].detach())
    assert one.dim == 1 and "note" not in one.fit and one.data_sha256 == ""
    assert sl.Subspace.of(lens, SITE, 7 * matrix[:, 0].detach()).fit["sha256"] != one.fit["sha256"]
    again = sl.Subspace.of(lens, SITE, one.basis)
    assert not again.fit["orthonormalised"] and torch.equal(again.basis, one.basis)


def test_it_is_patched_and_saved_like_any_other(lens, matrix, tmp_path):
    found = sl.Subspace.of(lens, SITE, matrix)
    found.save(tmp_path / "v.safetensors")
    loaded = sl.Subspace.load(tmp_path / "v.safetensors", lens, SITE)
    assert loaded.fit == found.fit and torch.equal(loaded.basis, found.basis)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (torch.eye(56), "may hold its directions as rows or as columns"),
        (torch.ones(57), "56 wide"),
        (torch.ones(57, 56), "56 wide"),
        (torch.ones(2, 3, 56), "56 wide"),
        (torch.ones(0, 56), "56 wide"),
        (torch.full((56,), torch.nan), "zero or not finite"),
        (torch.full((56,), torch.inf), "zero or not finite"),
        (torch.zeros(56), "zero or not finite"),
        (torch.ones(56, 2), "only 1 of its 2 columns are independent"),
        (torch.ones(56, dtype=torch.bool), "array of bool"),
        (np.ones(56, dtype=complex), "array of complex128"),
    ],
)
def test_what_is_ambiguous_or_no_direction_is_refused(lens, array, message):
    with pytest.raises(sl.SubspaceError, match=f"^directions for {SITE}: [^\n]*{message}"):
        sl.Subspace.of(lens, SITE, array)


def test_rows_of_a_file_are_those_that_given_reads(lens, matrix, tmp_path):
    np.savez(tmp_path / "sae.npz", W=matrix.numpy().T, b=np.zeros(3))
    rows, origin = given_rows(lens, SITE, tmp_path / "sae.npz", [1, 0], key="W")
    assert torch.equal(rows, matrix.double().T.flip(0)) and origin["file"] == "sae.npz"
    one = given(lens, SITE, tmp_path / "sae.npz", key="W", row=1)
    assert torch.equal(sl.Subspace.of(lens, SITE, rows[0]).basis, one.basis)
    with pytest.raises(sl.SubspaceError, match="no row 2"):
        given_rows(lens, SITE, tmp_path / "sae.npz", [0, 2], key="W")
