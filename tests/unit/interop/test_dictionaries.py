"""Folders in the layout of SAELens, 6 and before, and files of dictionary_learning."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from helpers_models import tiny_lens
from subspacelens import SiteError, SubspaceError
from subspacelens.fit import given
from subspacelens.fit.foreign import check_bos, from_foreign
from subspacelens.interop import read_foreign
from subspacelens.tasks import Pair, PairSet, Prompt

WIDTH, LATENTS = 32, 40
HOOK = "blocks.1.hook_resid_pre"


@pytest.fixture(scope="module")
def lens():
    return tiny_lens("gpt2", dtype=torch.float32)


def weights(kind: str = "standard", out: int = WIDTH) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    made = {
        "W_enc": normal(WIDTH, LATENTS), "W_dec": normal(LATENTS, out), "b_dec": normal(out),
    }  # fmt: skip
    names = {"gated": ("b_gate", "b_mag", "r_mag"), "jumprelu": ("b_enc", "threshold")}
    return made | {name: normal(LATENTS) for name in names.get(kind, ("b_enc",))}


def saved(path, config: dict, **options):
    path.mkdir()
    save_file(weights(**options), path / "sae_weights.safetensors")
    (path / "cfg.json").write_text(json.dumps(config))
    return path


def config(architecture: str = "standard", **metadata) -> dict:
    said = {"model_name": "gpt2", "hook_name": HOOK, "prepend_bos": True} | metadata
    return {"d_in": WIDTH, "d_sae": LATENTS, "architecture": architecture, "metadata": said}


def along(basis: torch.Tensor, vector: torch.Tensor) -> float:
    return float((basis[:, 0] @ vector / vector.norm()).abs())


@pytest.mark.parametrize("kind", ["standard", "gated", "topk", "jumprelu"])
def test_a_latent_is_a_row_of_the_decoder(lens, tmp_path, kind):
    path = saved(tmp_path / kind, config(kind), kind=kind)
    found = read_foreign(path)
    assert (found.tool, found.model, found.bos) == ("SAELens", "gpt2", True)
    assert found.kind == f"{kind} sparse autoencoder, {LATENTS} latents"
    one = from_foreign(lens, found, "@END", rows=[7])
    made = weights(kind)
    assert str(one.site) == "L1.resid_pre@END" and one.fit["operation"] == "latent"
    assert along(one.basis, made["W_dec"][7]) == pytest.approx(1, abs=1e-6)
    assert one.fit["row"] == 7 and one.fit["bos"] is True
    several = from_foreign(lens, found, "@END", rows=[7, 3])
    assert several.dim == 2 and several.fit["row"] == "7,3"
    read = from_foreign(lens, found, "@END", key="W_enc", rows=[7])
    assert along(read.basis, made["W_enc"][:, 7]) == pytest.approx(1, abs=1e-6)
    assert torch.equal(found.parts["W_dec"].numbers["b_dec"](), made["b_dec"])
    with pytest.raises(SubspaceError, match="choose with --row"):
        from_foreign(lens, found, "@END")
    with pytest.raises(SubspaceError, match="latents 0 to 39"):
        from_foreign(lens, found, "@END", rows=[40])


def test_another_model_is_noted(lens, tmp_path):
    """Not refused: the names that tools give one model are many."""
    for said, noted in (("gpt2", False), ("openai-community/GPT2", False), ("pythia-70m", True)):
        path = saved(tmp_path / said.replace("/", "-"), config(model_name=said))
        one = from_foreign(lens, read_foreign(path), "@END", rows=[7])
        assert (f"is of {said}, and this is {lens.id}" in str(one.fit["notes"])) is noted


def test_configurations_before_6(lens, tmp_path):
    flat = {"d_in": WIDTH, "d_sae": LATENTS, "hook_point": HOOK, "model_name": "gpt2-small"}
    found = read_foreign(saved(tmp_path / "old", flat))
    assert str(from_foreign(lens, found, "@S2", rows=[0]).site) == "L1.resid_pre@S2"
    topk = flat | {"hook_name": HOOK, "activation_fn_str": "topk"}
    assert read_foreign(saved(tmp_path / "topk", topk)).kind.startswith("topk")


def test_heads_stand_beside_each_other(lens, tmp_path):
    path = saved(tmp_path / "z", config(hook_name="blocks.2.attn.hook_z"))
    assert str(from_foreign(lens, read_foreign(path), "@END", rows=[0]).site) == "L2.head_z@END"


def test_a_direction_of_a_centred_stream_is_centred(lens, tmp_path):
    kwargs = {"model_from_pretrained_kwargs": {"center_writing_weights": True}}
    found = read_foreign(saved(tmp_path / "centred", config(**kwargs)))
    row = weights()["W_dec"][7]
    centred = row - row.mean()
    one = from_foreign(lens, found, "@END", rows=[7])
    assert along(one.basis, centred) == pytest.approx(1, abs=1e-6)
    assert one.fit["kept_by_centring"] == pytest.approx(float(centred @ centred / (row @ row)))
    llama = tiny_lens("llama", dtype=torch.float32)  # RMSNorm: nothing is centred there
    plain = from_foreign(llama, found, "@END", rows=[7])
    assert along(plain.basis, row) == pytest.approx(1, abs=1e-6)


def test_a_transcoder_is_no_sae(lens, tmp_path):
    """Its keys are those of an SAE; it writes at another place than it reads."""
    silent = read_foreign(saved(tmp_path / "silent", config("transcoder")))
    with pytest.raises(SubspaceError, match=r"reads at blocks.1.hook_resid_pre .* writes at anoth"):
        from_foreign(lens, silent, "@END", rows=[7])
    assert from_foreign(lens, silent, "@END", key="W_enc", rows=[7]).dim == 1
    said = config("transcoder", hook_name_out="blocks.1.hook_mlp_out")
    found = read_foreign(saved(tmp_path / "said", said))
    assert str(from_foreign(lens, found, "@END", rows=[7]).site) == "L1.mlp_out@END"
    with pytest.raises(SiteError, match=r"belongs at L1.mlp_out"):
        from_foreign(lens, found, "L1.resid_pre@END", rows=[7])
    wide = read_foreign(saved(tmp_path / "wide", config(), out=WIDTH - 1))
    with pytest.raises(SubspaceError, match="writes at another"):
        from_foreign(lens, wide, "@END", rows=[7])


def test_weights_without_their_folder(lens, tmp_path):
    save_file(weights(), tmp_path / "any.name")
    np.savez(tmp_path / "params.npz", **{k: v.numpy() for k, v in weights("jumprelu").items()})
    for name in ("any.name", "params.npz"):
        found = read_foreign(tmp_path / name)
        one = from_foreign(lens, found, "L3.resid_post@END", rows=[2])
        assert along(one.basis, weights()["W_dec"][2]) == pytest.approx(1, abs=1e-6)
        with pytest.raises(SiteError, match="does not say where"):
            from_foreign(lens, found, rows=[2])
    assert read_foreign(tmp_path / "params.npz").kind.startswith("jumprelu")


def dictionary() -> nn.Module:
    torch.manual_seed(1)
    made = nn.Module()
    made.encoder = nn.Linear(WIDTH, LATENTS)
    made.decoder = nn.Linear(LATENTS, WIDTH, bias=False)
    made.bias = nn.Parameter(torch.zeros(WIDTH))
    return made


def test_a_latent_of_dictionary_learning_is_a_column(lens, tmp_path):
    made, folder = dictionary(), tmp_path / "trainer_0"
    folder.mkdir()
    torch.save(made.state_dict(), folder / "ae.pt")
    trainer = {"layer": 1, "submodule_name": "resid_post_layer_1", "lm_name": "gpt2"}
    (folder / "config.json").write_text(json.dumps({"trainer": trainer}))
    column = made.decoder.weight[:, 5].detach()
    for thing in (folder, folder / "ae.pt", made):
        found = read_foreign(thing)
        one = from_foreign(lens, found, "L1.resid_post@END", rows=[5])
        assert along(one.basis, column) == pytest.approx(1, abs=1e-6)
    one = given(lens, "L1.resid_post@END", folder / "ae.pt", row=5)
    assert along(one.basis, column) == pytest.approx(1, abs=1e-6)
    assert read_foreign(folder).model == "gpt2"
    read = from_foreign(lens, read_foreign(folder), "L1.resid_post@END", key="encoder", rows=[5])
    assert along(read.basis, made.encoder.weight[5].detach()) == pytest.approx(1, abs=1e-6)


def test_an_sae_in_memory(lens):
    made = nn.Module()
    for name, value in weights().items():
        setattr(made, name, nn.Parameter(value))
    made.cfg = SimpleNamespace(metadata={"hook_name": HOOK, "model_name": "gpt2"})
    one = from_foreign(lens, read_foreign(made), "@END", rows=[7])
    assert str(one.site) == "L1.resid_pre@END"
    assert along(one.basis, weights()["W_dec"][7]) == pytest.approx(1, abs=1e-6)


def test_prompts_begin_as_the_file_says(tmp_path):
    lens = replace(
        tiny_lens("gpt2", dtype=torch.float32), tokenizer=SimpleNamespace(bos_token_id=1)
    )
    with_bos, without = (
        PairSet("some", "test", (Pair(base=p, source=p, answer=5, target=6),))
        for p in (Prompt("", (1, 7, 8), {"END": 2}), Prompt("", (7, 8, 9), {"END": 2}))
    )
    for said, fits, not_ in ((True, with_bos, without), (False, without, with_bos)):
        found = read_foreign(saved(tmp_path / str(said), config(prepend_bos=said)))
        one = from_foreign(lens, found, "@END", rows=[0])
        check_bos(one, lens, fits)
        with pytest.raises(SubspaceError, match="begin with a BOS token, and"):
            check_bos(one, lens, not_)
    plain = replace(one, fit={"method": "given"})
    check_bos(plain, lens, with_bos)


def test_what_is_damaged_is_refused(tmp_path):
    made = weights()
    save_file(made | {"W_enc": made["W_enc"][:, 1:].contiguous()}, tmp_path / "x.safetensors")
    with pytest.raises(SubspaceError, match="belong to no dictionary"):
        read_foreign(tmp_path / "x.safetensors")
    folder = saved(tmp_path / "bad", config())
    (folder / "cfg.json").write_text("{")
    with pytest.raises(SubspaceError, match=r"cfg.json cannot be read"):
        read_foreign(folder)
