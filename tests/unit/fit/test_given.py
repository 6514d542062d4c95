"""Subspaces of other tools: every form that is read, and what is refused."""

from __future__ import annotations

import os
import zipfile
from dataclasses import replace

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
    np.save(tmp_path / "basis.npy", already.basis.numpy())
    assert not given(lens, SITE, tmp_path / "basis.npy").fit["orthonormalised"]


def test_one_of_ours_is_checked_however_it_is_asked_for(lens, matrix, tmp_path):
    np.save(tmp_path / "v.npy", matrix.numpy())
    ours, path = given(lens, SITE, tmp_path / "v.npy"), tmp_path / "ours.safetensors"
    ours.save(path)
    for key in (None, "basis"):
        again = given(lens, SITE, path, key=key)
        assert torch.equal(again.basis, ours.basis) and again.fit == ours.fit
        with pytest.raises(SubspaceError, match="made for site L1"):
            given(lens, Site.parse("L2.mlp_act@END"), path, key=key)
    replace(ours, made_with=replace(ours.made_with, config="0" * 64)).save(path)
    for key in (None, "basis"):
        with pytest.raises(SubspaceError, match=r"made with model .* its configuration"):
            given(lens, SITE, path, key=key)
    with pytest.raises(SubspaceError, match="no keys and rows"):
        given(lens, SITE, path, row=0)


def test_numbers_of_any_kind_and_size_are_read(lens, matrix, tmp_path):
    expected = given_of(lens, tmp_path, matrix.numpy())
    for array in (
        matrix.numpy().astype(">f4"), matrix.numpy().astype(">f8"),
        np.asfortranarray(matrix.double().numpy()), matrix.double().numpy() * 1e307,
        matrix.double().numpy() * 1e-305,
    ):  # fmt: skip
        assert principal_angles(given_of(lens, tmp_path, array), expected).max() < 1e-5
    whole = np.eye(56, 2, dtype=">i4") * 3
    assert given_of(lens, tmp_path, whole)[:2].allclose(torch.eye(2))
    torch.save({22: matrix, "other": matrix[:, :1]}, tmp_path / "numbered.pt")
    assert given(lens, SITE, tmp_path / "numbered.pt", key="22").dim == 2
    torch.save(matrix, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert given(lens, SITE, tmp_path / "old.pt").dim == 2


def given_of(lens, folder, array: np.ndarray) -> torch.Tensor:
    np.save(folder / "array.npy", array)
    np.savez_compressed(folder / "array.npz", array=array)
    plain, packed = (given(lens, SITE, folder / f"array.{kind}").basis for kind in ("npy", "npz"))
    assert torch.equal(plain, packed)
    return plain


@pytest.mark.parametrize(
    ("dtype", "apart"), [(torch.float32, 1e-6), (torch.float64, 1e-9), (torch.bfloat16, 0.01)]
)
def test_rank_is_decided_by_what_the_dtype_can_tell(lens, matrix, tmp_path, dtype, apart):
    first, second = matrix.double().T
    path = tmp_path / "two.safetensors"
    save_file({"x": torch.stack([first, first + apart * second], 1).to(dtype)}, path)
    with pytest.raises(SubspaceError, match=r"only 1 of its 2 columns are independent"):
        given(lens, SITE, path)
    save_file({"x": torch.stack([first, first + second], 1).to(dtype)}, path)
    assert given(lens, SITE, path).dim == 2


def test_a_shape_is_refused_before_the_array_is_read(lens, tmp_path):
    header = {"descr": "<f4", "fortran_order": False, "shape": (2**40, 3)}
    with (tmp_path / "huge.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tmp_path / "huge.npy", "x.npy")
    torch.save(torch.zeros(1).expand(2**40, 3), tmp_path / "expanded.pt")
    for name in ("huge.npy", "bomb.npz", "expanded.pt"):
        with pytest.raises(SubspaceError, match=r"shape \(1099511627776, 3\) is not a direction"):
            given(lens, SITE, tmp_path / name)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor, ")
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state")
def test_numbers_that_are_no_real_dense_numbers_are_refused(lens, matrix, tmp_path):
    tensors = {
        "sparse": matrix.to_sparse(), "rows": matrix.to_sparse_csr(),
        "bool": matrix > 0, "complex": matrix.to(torch.complex64),
        "quantised": torch.quantize_per_tensor(matrix, 0.1, 0, torch.qint8),
        "meta": matrix.to("meta"),
    }  # fmt: skip
    for name in tensors:
        torch.save(tensors[name], tmp_path / f"{name}.pt")
        with pytest.raises(SubspaceError, match=f"{name}.pt: an array of .*: give real numbers"):
            given(lens, SITE, tmp_path / f"{name}.pt")
    for name in ("bool", "complex"):
        save_file({"x": tensors[name]}, tmp_path / f"{name}.safetensors")
        with pytest.raises(SubspaceError, match="an array of"):
            given(lens, SITE, tmp_path / f"{name}.safetensors")
        np.save(tmp_path / f"{name}.npy", tensors[name].numpy())
        with pytest.raises(SubspaceError, match="an array of"):
            given(lens, SITE, tmp_path / f"{name}.npy")


@pytest.mark.parametrize("suffix", ["npy", "npz", "pt", "bin", "safetensors"])
def test_what_is_no_file_is_not_waited_for(lens, tmp_path, suffix):
    fifo, folder, junk = (tmp_path / f"{name}.{suffix}" for name in ("fifo", "folder", "junk"))
    os.mkfifo(fifo)
    folder.mkdir()
    junk.write_bytes(b"PK\x03\x04 and other bytes" * 9)
    for path in (fifo, folder, junk):
        with pytest.raises(SubspaceError, match=f"^{path}[^\n]*$"):
            given(lens, SITE, path)


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
    refused(tmp_path / "words.npy", "give real numbers")
    np.save(tmp_path / "complex.npy", np.ones(56, dtype=complex))
    refused(tmp_path / "complex.npy", "give real numbers")
    np.save(tmp_path / "same.npy", np.ones((56, 2)))
    refused(tmp_path / "same.npy", "independent")
    save_file({"a": matrix, "b": matrix.clone()}, tmp_path / "two.safetensors")
    refused(tmp_path / "two.safetensors", "--key; it holds a, b")
    refused(tmp_path / "two.safetensors", "no array 'c'", key="c")
    refused(tmp_path / "two.safetensors", "no row 99", key="a", row=99)
