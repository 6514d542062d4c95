"""Subspaces of other tools: every form that is read, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from subspacelens import Site, SubspaceError, load_model
from subspacelens.core.geometry import principal_angles
from subspacelens.fit import given

SITE = Site.parse("L1.mlp_act@END")


@pytest.fixture(scope="module")
def lens(tiny_folder):
    return load_model(tiny_folder)


@pytest.fixture
def matrix() -> torch.Tensor:
    return torch.randn(56, 2, generator=torch.Generator().manual_seed(0))


def files(folder, matrix: torch.Tensor):
    np.save(folder / "a.npy", matrix.numpy())
    yield folder / "a.npy", {}
    np.savez(folder / "a.npz", other=np.zeros(3), basis=matrix.numpy().T)
    yield folder / "a.npz", {"key": "basis"}
    torch.save({"x": {"y": 1}, "basis": matrix}, folder / "a.pt")
    yield folder / "a.pt", {}
    torch.save(matrix, folder / "b.pt")
    yield folder / "b.pt", {}
    save_file({"basis": matrix, "bias": torch.zeros(2)}, folder / "a.safetensors")
    yield folder / "a.safetensors", {"key": "basis"}


def test_every_form_gives_the_same_subspace(lens, matrix, tmp_path):
    for path, options in files(tmp_path, matrix):
        found = given(lens, SITE, path, **options)
        assert found.basis.shape == (56, 2) and found.fit["orthonormalised"]
        assert principal_angles(found.basis, matrix).max() < 1e-5
        assert found.fit["file"] == path.name and len(found.fit["file_sha256"]) == 64


def test_a_row_of_a_decoder(lens, matrix, tmp_path):
    save_file({"W_dec": matrix.T.contiguous()}, tmp_path / "sae.safetensors")
    found = given(lens, SITE, tmp_path / "sae.safetensors", key="W_dec", row=1)
    unit = matrix[:, 1] / matrix[:, 1].norm()
    assert float((found.basis[:, 0] @ unit).abs()) == pytest.approx(1, abs=1e-6)
    already = given(lens, SITE, tmp_path / "sae.safetensors", key="W_dec")
    already.save(tmp_path / "ours.safetensors")
    again = given(lens, SITE, tmp_path / "ours.safetensors")
    assert not again.fit["orthonormalised"]


def test_refusals(lens, matrix, tmp_path):
    def refused(path, message, **options):
        with pytest.raises(SubspaceError, match=message):
            given(lens, SITE, path, **options)

    refused(tmp_path / "none.npy", "cannot be read")
    refused(tmp_path / "x.csv", "is read from")
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    refused(tmp_path / "objects.npy", "cannot be read")
    torch.save(lens.map.blocks[0].module, tmp_path / "module.pt")
    refused(tmp_path / "module.pt", "more than tensors")
    np.save(tmp_path / "wrong.npy", np.ones((3, 4)))
    refused(tmp_path / "wrong.npy", "56 wide")
    np.save(tmp_path / "nan.npy", np.full(56, np.nan))
    refused(tmp_path / "nan.npy", "not finite")
    np.save(tmp_path / "words.npy", np.array(["a", "b"]))
    refused(tmp_path / "words.npy", "not an array of numbers")
    np.save(tmp_path / "complex.npy", np.ones(56, dtype=complex))
    refused(tmp_path / "complex.npy", "give real numbers")
    np.save(tmp_path / "same.npy", np.ones((56, 2)))
    refused(tmp_path / "same.npy", "independent")
    save_file({"a": matrix, "b": matrix.clone()}, tmp_path / "two.safetensors")
    refused(tmp_path / "two.safetensors", "--key; it holds a, b")
    refused(tmp_path / "two.safetensors", "no array 'c'", key="c")
    refused(tmp_path / "two.safetensors", "no row 99", key="a", row=99)
