"""What the tools do with what they saved, written out by hand."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import subspacelens as sl
from helpers_models import tiny_lens
from subspacelens import SubspaceError
from subspacelens.interop import Foreign, Part, read_foreign

WIDTH, LATENTS = 32, 40
SITE = "L1.resid_pre@END"


@pytest.fixture(scope="module")
def lens():
    return tiny_lens("llama", dtype=torch.float32)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


BASE, SOURCE = normal(5, WIDTH, seed=20), normal(5, WIDTH, seed=21)


def sae(folder, kind: str, **config):
    weights = {
        "W_enc": normal(WIDTH, LATENTS), "W_dec": normal(LATENTS, WIDTH, seed=1),
        "b_enc": normal(LATENTS, seed=2), "b_dec": normal(WIDTH, seed=3),
    }  # fmt: skip
    if kind == "jumprelu":
        weights["threshold"] = torch.full((LATENTS,), 4.0)
    folder.mkdir()
    save_file(weights, folder / "sae_weights.safetensors")
    said = {"architecture": kind, "metadata": {"hook_name": "blocks.1.hook_resid_pre"}}
    (folder / "cfg.json").write_text(json.dumps(said | {"apply_b_dec_to_input": True} | config))
    return weights, read_foreign(folder)


@pytest.mark.parametrize("kind", ["standard", "jumprelu"])
@pytest.mark.parametrize("less", [True, False])
def test_a_latent_is_set_and_the_error_term_kept(lens, tmp_path, kind, less):
    made, found = sae(tmp_path / "sae", kind, apply_b_dec_to_input=less)

    def encode(x):
        before = (x - made["b_dec"] * less) @ made["W_enc"] + made["b_enc"]
        return before.relu() * (before > made.get("threshold", torch.zeros(LATENTS)))

    def decode(f):
        return f @ made["W_dec"] + made["b_dec"]

    on = int((encode(BASE) > 0).sum(dim=0).argmax())  # It speaks in some of these.
    assert (encode(BASE)[:, on] > 0).sum() > 0
    for value, wanted in ((5.0, 5.0), (None, encode(SOURCE)[:, on])):
        changed = encode(BASE)
        changed[:, on] = wanted
        expected = decode(changed) + (BASE - decode(encode(BASE)))
        patch = sl.own_patch(lens, found, "@END", rows=[on], value=value)
        torch.testing.assert_close(BASE + patch.delta(BASE, SOURCE), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(SubspaceError, match="one latent is set"):
        sl.own_patch(lens, found, "@END", rows=[1, 2])
    with pytest.raises(SubspaceError, match="latent takes no alpha"):
        sl.own_patch(lens, found, "@END", rows=[1], alpha=2)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("topk", {}),
        ("gated", {}),
        ("standard", {"normalize_activations": "layer_norm"}),
        ("standard", {"activation_fn": "tanh-relu"}),
        ("standard", {"apply_b_dec_to_input": None}),
        ("standard", {"model_from_pretrained_kwargs": {"center_writing_weights": True}}),
    ],
)
def test_a_latent_that_is_not_known_alone_is_refused(lens, tmp_path, kind, config):
    _, found = sae(tmp_path / "sae", kind, **config)
    with pytest.raises(SubspaceError, match="is not set alone"):
        sl.own_patch(lens, found, "@END", rows=[3])


def test_a_latent_of_dictionary_learning(lens, tmp_path):
    state = {
        "encoder.weight": normal(LATENTS, WIDTH), "encoder.bias": normal(LATENTS, seed=1),
        "decoder.weight": normal(WIDTH, LATENTS, seed=2), "bias": normal(WIDTH, seed=3),
    }  # fmt: skip
    torch.save(state, tmp_path / "ae.pt")
    patch = sl.own_patch(lens, read_foreign(tmp_path / "ae.pt"), SITE, rows=[5], value=2.0)
    before = (BASE - state["bias"]) @ state["encoder.weight"].T + state["encoder.bias"]
    expected = (2.0 - before.relu()[:, 5])[:, None] * state["decoder.weight"][:, 5]
    torch.testing.assert_close(patch.delta(BASE, SOURCE), expected, rtol=1e-4, atol=1e-4)
    torch.save(state | {"r_mag": normal(LATENTS)}, tmp_path / "gated.pt")
    with pytest.raises(SubspaceError, match="is not set alone"):
        sl.own_patch(lens, read_foreign(tmp_path / "gated.pt"), SITE, rows=[5])


def test_additions_and_erasers(lens):
    vectors = {1: normal(WIDTH), 2: normal(WIDTH, seed=1)}
    steering = read_foreign(SimpleNamespace(layer_activations=vectors, layer_type="decoder_block"))
    patch = sl.own_patch(lens, steering, "L2.resid_post@END", alpha=-2)
    torch.testing.assert_close(patch.delta(BASE, SOURCE), (-2 * vectors[2]).expand(5, -1))
    with pytest.raises(SubspaceError, match="add takes no value"):
        sl.own_patch(lens, steering, "L2.resid_post@END", value=2)
    left, right, bias = normal(WIDTH, 2), normal(2, WIDTH, seed=1), normal(WIDTH, seed=2)
    eraser = read_foreign(SimpleNamespace(proj_left=left, proj_right=right, bias=bias))
    patch = sl.own_patch(lens, eraser, SITE)
    expected = -((BASE - bias) @ right.T) @ left.T
    torch.testing.assert_close(patch.delta(BASE, SOURCE), expected, rtol=1e-4, atol=1e-4)


def part(operation: str, **numbers: Tensor) -> Foreign:
    basis = torch.linalg.qr(normal(WIDTH, 2))[0]
    made = Part(
        shape=(WIDTH, 2), columns=lambda _: basis, operation=operation,
        numbers={name: lambda x=x: x for name, x in numbers.items()},
    )  # fmt: skip
    return Foreign(tool="some", kind="made", parts={"one": made}, origin="memory")


def test_the_edit_of_loreft_and_what_is_not_said(lens):
    r, w, b = torch.linalg.qr(normal(WIDTH, 2))[0], normal(2, WIDTH, seed=1), normal(2, seed=2)
    patch = sl.own_patch(lens, part("reft", weight=w, bias=b, rotate_layer=r), SITE)
    expected = (BASE @ w.T + b - BASE @ r) @ r.T
    torch.testing.assert_close(patch.delta(BASE, SOURCE), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(SubspaceError, match="no point that it leaves alone"):
        sl.own_patch(lens, part("reft", weight=r.T.contiguous(), bias=b, rotate_layer=r), SITE)
    basis = torch.linalg.qr(normal(WIDTH, 2))[0]
    patch = sl.own_patch(lens, part("interchange"), SITE)
    expected = (SOURCE - BASE) @ basis @ basis.T
    torch.testing.assert_close(patch.delta(BASE, SOURCE), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(SubspaceError, match="does not say what is done"):
        sl.own_patch(lens, part("unsaid"), SITE)
