"""`inspect`, and `audit --subspace` of what other tools saved."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from subspacelens import Subspace, load_model

HOOK = "blocks.1.hook_resid_post"


@pytest.fixture
def sae(tmp_path):
    folder = tmp_path / "sae"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    made = {
        "W_enc": torch.randn(32, 8, generator=generator),
        "W_dec": torch.randn(8, 32, generator=generator),
        "b_enc": torch.zeros(8), "b_dec": torch.zeros(32),
    }  # fmt: skip
    save_file(made, folder / "sae_weights.safetensors")
    said = {"model_name": "tiny", "hook_name": HOOK, "prepend_bos": False}
    config = {"architecture": "standard", "metadata": said}
    (folder / "cfg.json").write_text(json.dumps(config))
    return folder


def test_what_a_folder_is_and_what_is_missing(run, sae, tiny_folder):
    code, out, _ = run("inspect", sae)
    assert code == 0 and "standard sparse autoencoder, 8 latents (SAELens)" in out
    assert "which latent: --latent" in out and "at which token: --site @END" in out
    assert HOOK in out and "do not begin with a BOS" in out
    code, out, _ = run("inspect", sae, "--model", tiny_folder)
    assert code == 0 and "L1.resid_post" in out


def test_plain_arrays_ours_and_what_is_neither(run, tmp_path, tiny_folder):
    np.save(tmp_path / "v.npy", np.ones((32, 2), dtype="f4"))
    code, out, _ = run("inspect", tmp_path / "v.npy")
    words = " ".join(out.split())
    assert code == 0 and "plain arrays" in words and "(32, 2)" in words and "missing" in words
    (tmp_path / "text.pt").write_text("no tensors")
    for path, said in ((tmp_path / "text.pt", "no format"), (tmp_path / "absent", "no such file")):
        code, out, err = run("inspect", path)
        assert code == 2 and said in err and len(err.strip().splitlines()) == 1


def test_an_sae_is_audited_at_its_own_place(run, sae, tiny_folder, tmp_path):
    common = ("audit", "--model", tiny_folder, "--subspace", sae, "--pairs", 8, "--budget", "fast")
    code, out, err = run(*common, "--site", "@S2", "--latent", 3, "--out", tmp_path / "out")
    assert code == 0, err
    saved = tmp_path / "out/L1.resid_post@S2/subspace.safetensors"
    subspace = Subspace.load(saved, load_model(tiny_folder))
    assert (subspace.fit["tool"], subspace.fit["row"]) == ("SAELens", 3)
    code, out, _ = run("inspect", saved)
    assert code == 0 and "a subspace of this library" in out and "L1.resid_post@S2" in out
    for options, said in (
        (("--latent", 3), "says no token"),
        (("--site", "@S2"), "choose with --row"),
        (("--site", "L2.resid_post@S2", "--latent", 3), "belongs at L1.resid_post"),
    ):
        code, _, err = run(*common, *options, "--out", tmp_path / "none")
        assert code == 2 and said in err and len(err.strip().splitlines()) == 1


def test_sites_as_other_tools_have_them(run, tiny_folder):
    for text in ("blocks.1.mlp.hook_post@END", "model.layers.1.mlp.down_proj.input@END"):
        code, out, err = run("doctor", "--model", tiny_folder, "--site", text)
        assert code == 0, err
        assert "L1.mlp_act@END" in out and "blocks.1.mlp.hook_post" in out
        assert "mlp_activation is another tensor here" in out
