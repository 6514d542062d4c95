"""What is written for other tools is what they read: read back, and run with plain hooks."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

from helpers_models import tiny_lens
from subspacelens import Site, SubspaceError
from subspacelens.core.geometry import principal_angles
from subspacelens.fit.foreign import from_foreign
from subspacelens.interop import read_foreign
from subspacelens.interop.writing import WRITERS, Outgoing, export


def outgoing(text: str, k: int = 1, family: str = "llama", **options) -> Outgoing:
    lens, site = tiny_lens(family, dtype=torch.float32), Site.parse(text)
    torch.manual_seed(3)
    basis = torch.linalg.qr(torch.randn(lens.map.dim(site), k)).Q.contiguous()
    return Outgoing(basis=basis, site=site, lens=lens, **options)


def same_span(a, b) -> bool:
    return float(principal_angles(a, b).max()) < 1e-3


@pytest.mark.parametrize(
    "site", ["L1.resid_post@END", "L2.resid_pre@END", "L1.mlp_act@END", "L1.mlp_out@END",
             "L2.head_z@END", "L2.head_z.3@END", "L1.attn_out@END"]
)  # fmt: skip
def test_a_folder_of_pyvene_is_read_back_at_its_place(tmp_path, site):
    made = outgoing(site, k=2)
    export(made, "pyvene", tmp_path / "out")
    where = site if ".3@" in site else "@END"
    again = from_foreign(made.lens, read_foreign(tmp_path / "out"), where)
    assert str(again.site) == site and same_span(again.basis, made.basis)


def test_a_control_vector_has_its_length(tmp_path):
    made = outgoing("L1.resid_post@END", scale=4.0)
    export(made, "control-vector", tmp_path / "v.gguf")
    found = read_foreign(tmp_path / "v.gguf")
    vector = found.parts["direction.1"].numbers["vector"]()
    assert torch.allclose(vector, 4 * made.basis[:, 0]) and found.model == "llama"
    with pytest.raises(SubspaceError, match="added to the output of a block"):
        export(outgoing("L1.mlp_act@END"), "control-vector", tmp_path / "w.gguf")
    with pytest.raises(SubspaceError, match="is one vector"):
        export(outgoing("L1.resid_post@END", k=2), "control-vector", tmp_path / "w.gguf")
    assert not (tmp_path / "w.gguf").exists()


def test_an_eraser_projects_the_subspace_out(tmp_path):
    made = outgoing("L1.resid_post@END", k=2)
    export(made, "leace", tmp_path / "eraser.pt")
    found = read_foreign(tmp_path / "eraser.pt")
    assert same_span(from_foreign(made.lens, found, "L1.resid_post@END").basis, made.basis)


def module_in(folder):
    spec = importlib.util.spec_from_file_location("interchange", folder / "interchange.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("site", ["L1.resid_post@END", "L2.head_z.3@END", "L2.head_z@END"])
def test_code_for_hooks_needs_nothing_of_ours(tmp_path, site):
    made = outgoing(site, k=2)
    lines = export(made, "transformer-lens", tmp_path / "tl")
    code = module_in(tmp_path / "tl")
    assert "subspacelens" not in (tmp_path / "tl/interchange.py").read_text()
    assert "run_with_hooks" in lines
    heads = made.site.stream == "head_z"
    shape = (2, 5, 4, 8) if heads else (2, 5, 32)
    base, source = torch.randn(shape), torch.randn(shape)
    name, hook = code.hook_for(source, 4, 3)
    new = hook(base, None)
    part = (slice(None), 4, 3) if made.site.head is not None else (slice(None), 4)
    theirs = source[:, 3, 3] if made.site.head is not None else source[:, 3]
    ours, theirs = base[part].reshape(2, -1), theirs.reshape(2, -1)
    expected = ours + (theirs - ours) @ made.basis @ made.basis.T
    assert torch.allclose(new[part].reshape(2, -1), expected, atol=1e-6)
    rest = new.clone()
    rest[part] = base[part]
    assert torch.equal(rest, base)
    assert name in ("blocks.1.hook_resid_post", "blocks.2.attn.hook_z")
    assert same_span(torch.from_numpy(np.load(tmp_path / "tl/basis.npy")), made.basis)

    export(made, "nnsight", tmp_path / "nn")
    flat, theirs = base.flatten(2), source.flatten(2)
    again = module_in(tmp_path / "nn").edit(flat, theirs, 4, 3)
    assert torch.allclose(again, new.flatten(2), atol=1e-6)


def test_no_hook_writes_between_attention_and_mlp(tmp_path):
    for tool in ("pyvene", "transformer-lens", "nnsight"):
        with pytest.raises(SubspaceError, match="only the MLP reads"):
            export(outgoing("L1.resid_mid@END"), tool, tmp_path)


@pytest.mark.parametrize(
    ("site", "family", "tool", "reason"),
    [
        ("L1.attn_k@END", "gpt2", "nnsight", "has no name in nnsight"),
        ("L1.attn_k@END", "gpt2", "pyvene", "a part of a tensor"),
        ("L1.attn_q.1@END", "llama", "pyvene", "a part of a tensor"),
    ],
)
def test_a_part_of_a_tensor_is_not_written_as_the_whole(tmp_path, site, family, tool, reason):
    with pytest.raises(SubspaceError, match=reason):
        export(outgoing(site, family=family), tool, tmp_path)
    assert not list(tmp_path.iterdir())


def test_unknown_tools_are_named(tmp_path):
    assert {"pyvene", "transformer-lens", "nnsight", "control-vector", "leace"} == WRITERS.keys()
    with pytest.raises(SubspaceError, match="unknown tool 'x': one of"):
        export(outgoing("L1.resid_post@END"), "x", tmp_path)
