"""Control vectors, featurizers, erasers, objects in memory, and what is no format at all."""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from helpers_models import tiny_lens
from subspacelens import SiteError, SubspaceError
from subspacelens.core.geometry import principal_angles
from subspacelens.fit import given
from subspacelens.fit.foreign import from_foreign
from subspacelens.interop import read_foreign, recognised

WIDTH = 32


@pytest.fixture(scope="module")
def lens():
    return tiny_lens("llama", dtype=torch.float32)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def same_span(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and float(principal_angles(a, b).max()) < 1e-3


def control_vector(path, layers=(1, 2), architecture="controlvector"):
    writer = GGUFWriter(path, architecture)
    writer.add_string(f"{architecture}.model_hint", "llama")
    writer.add_uint32(f"{architecture}.layer_count", len(layers))
    for layer in layers:
        writer.add_tensor(f"direction.{layer}", normal(WIDTH, seed=layer).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_control_vector_is_added_to_the_output_of_its_block(lens, tmp_path):
    found = read_foreign(control_vector(tmp_path / "v.gguf"))
    assert (found.model, list(found.parts)) == ("llama", ["direction.1", "direction.2"])
    two = from_foreign(lens, found, "L2.resid_post@END")
    assert two.fit["key"] == "direction.2" and two.fit["operation"] == "add"
    assert same_span(two.basis, normal(WIDTH, seed=2)[:, None])
    assert two.fit["norm"] == pytest.approx(float(normal(WIDTH, seed=2).norm()), rel=1e-6)
    one = from_foreign(lens, found, "@END", key="direction.1")
    assert str(one.site) == "L1.resid_post@END"
    with pytest.raises(SubspaceError, match="name one with --key"):
        from_foreign(lens, found, "@END")
    with pytest.raises(SiteError, match=r"belongs at L1.resid_post .*not L2.resid_post"):
        from_foreign(lens, found, "L2.resid_post@END", key="direction.1")
    far = read_foreign(control_vector(tmp_path / "far.gguf", layers=(9,)))
    with pytest.raises(SiteError, match="layers 0 to 3"):
        from_foreign(lens, far, "@END")
    assert recognised(control_vector(tmp_path / "model.gguf", architecture="llama")) is None


def test_steering_vectors_mean_the_place_that_they_name(lens):
    vectors = {1: normal(WIDTH), 2: normal(WIDTH, seed=1)}
    for kind, stream in (("decoder_block", "resid_post"), ("mlp", "mlp_out")):
        found = read_foreign(SimpleNamespace(layer_activations=vectors, layer_type=kind))
        one = from_foreign(lens, found, "@END", key="direction.2")
        assert str(one.site) == f"L2.{stream}@END" and one.fit["tool"] == "steering-vectors"
    found = read_foreign(SimpleNamespace(layer_activations=vectors, layer_type="input_layernorm"))
    with pytest.raises(SiteError, match="layer_type 'input_layernorm' is no site"):
        from_foreign(lens, found, "@END", key="direction.2")


def test_a_vector_alone_says_neither_where_nor_what_for(lens, tmp_path):
    torch.save(normal(WIDTH), tmp_path / "layer_2.pt")  # EasyEdit
    torch.save(normal(5, WIDTH), tmp_path / "DiffMean_weight.pt")  # AxBench
    for name, row in (("layer_2.pt", None), ("DiffMean_weight.pt", 3)):
        assert recognised(tmp_path / name) is None
        one = given(lens, "L1.resid_post@END", tmp_path / name, row=row)
        assert str(one.site) == "L1.resid_post@END"  # what was said, whatever the file is called
        assert one.fit["operation"] == "unsaid"


def featurizer(path, matrix: Tensor, indices=None) -> None:
    info = {
        "featurizer_class": "SubspaceFeaturizerModule", "n_features": matrix.shape[1],
        "additional_config": {"rotation_matrix": matrix, "requires_grad": True},
    }  # fmt: skip
    torch.save({"model_info": info, "state_dict": {}}, path)
    name = path.name.removesuffix("_featurizer") + "_indices"
    path.with_name(name).write_text(json.dumps(indices))


def test_featurizers(lens, tmp_path):
    matrix = torch.linalg.qr(normal(WIDTH, 4)).Q.contiguous()
    path = tmp_path / "ResidualStream(Layer:2,Token:last)_featurizer"
    for indices in (None, [1, 3]):
        featurizer(path, matrix, indices)
        one = from_foreign(lens, read_foreign(path), "L1.resid_post@END")
        assert same_span(one.basis, matrix if indices is None else matrix[:, indices])
        inverse = path.with_name(path.name.replace("_feat", "_inverse_feat"))
        inverse.write_bytes(path.read_bytes())
        assert from_foreign(lens, read_foreign(inverse), "L1.resid_post@END").dim == one.dim
    featurizer(path, matrix, [4])
    with pytest.raises(SubspaceError, match="of 4 features"):
        read_foreign(path)
    torch.save({"model_info": {"featurizer_class": "IdentityFeaturizerModule"}}, path)
    with pytest.raises(SubspaceError, match="has no rotation"):
        from_foreign(lens, read_foreign(path), "L1.resid_post@END")
    names = ("weight[k=4,seed=0]", "weight[k=2,seed=1]")
    entries = dict(zip(names, (matrix, matrix[:, :2].contiguous()), strict=True))
    save_file(entries, tmp_path / "new.safetensors")
    found = read_foreign(tmp_path / "new.safetensors")
    assert from_foreign(lens, found, "L1.resid_post@END", key=names[1]).dim == 2


def eraser(oblique: bool) -> dict[str, Tensor]:
    left = normal(WIDTH, 2)
    if not oblique:
        left = torch.linalg.qr(left).Q
    right = torch.linalg.pinv(normal(WIDTH, 2, seed=1) if oblique else left)
    return {"proj_left": left, "proj_right": right, "bias": normal(WIDTH)}


def test_an_oblique_eraser_is_no_subspace(lens, tmp_path):
    numbers = eraser(oblique=True)
    torch.save(numbers, tmp_path / "leace.pt")
    save_file(numbers, tmp_path / "leace.safetensors")
    for thing in (
        tmp_path / "leace.pt",
        tmp_path / "leace.safetensors",
        SimpleNamespace(**numbers),
    ):
        found = read_foreign(thing)
        with pytest.raises(SubspaceError, match="holds writes, reads: name one with --key"):
            from_foreign(lens, found, "L1.resid_post@END")
        written = from_foreign(lens, found, "L1.resid_post@END", key="writes")
        read = from_foreign(lens, found, "L1.resid_post@END", key="reads")
        assert same_span(written.basis, numbers["proj_left"])
        assert same_span(read.basis, numbers["proj_right"].T)
        assert "oblique" in written.fit["notes"] and written.fit["operation"] == "erase"
    numbers = eraser(oblique=False)
    torch.save(numbers, tmp_path / "orth.pt")
    found = read_foreign(tmp_path / "orth.pt")
    one = from_foreign(lens, found, "L1.resid_post@END")
    assert same_span(one.basis, numbers["proj_left"]) and found.kind.startswith("orthogonal")


class Learned(nn.Module):
    """What TransformerLens' `fit_das` trains."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.proj = parametrizations.orthogonal(nn.Linear(k, WIDTH, bias=False))

    @property
    def basis(self) -> Tensor:
        return self.proj.weight


@dataclass
class Result:
    subspace: Learned
    hook_name: str


def test_what_transformer_lens_fitted(lens, tmp_path):
    made = Learned(2)
    one = from_foreign(lens, read_foreign(Result(made, "blocks.2.hook_resid_mid")), "@END")
    assert str(one.site) == "L2.resid_mid@END" and same_span(one.basis, made.basis.detach())
    torch.save(made.state_dict(), tmp_path / "das.pt")
    again = from_foreign(lens, read_foreign(tmp_path / "das.pt"), "L2.resid_mid@END")
    assert same_span(again.basis, made.basis.detach())


class Shell:
    def __reduce__(self):
        return print, ("this must not be run",)


def test_a_pickle_is_not_run(tmp_path, capsys):
    (tmp_path / "das_mlp8").write_bytes(pickle.dumps({"v": Shell()}))
    torch.save({"proj_left": Shell(), "proj_right": Shell()}, tmp_path / "eraser.pt")
    for name in ("das_mlp8", "eraser.pt"):
        with pytest.raises(SubspaceError, match="pickle, which runs code"):
            read_foreign(tmp_path / name)
    assert capsys.readouterr().out == ""


def test_what_two_readers_know_is_refused(tmp_path):
    save_file(eraser(oblique=True) | {
        "W_enc": normal(WIDTH, 4), "W_dec": normal(4, WIDTH), "b_dec": normal(WIDTH),
    }, tmp_path / "both.safetensors")  # fmt: skip
    with pytest.raises(SubspaceError, match=r"SAE weights and as LEACE|LEACE eraser and as SAE"):
        read_foreign(tmp_path / "both.safetensors")


def test_what_no_reader_knows(tmp_path):
    np.save(tmp_path / "v.npy", np.ones(WIDTH))
    assert recognised(tmp_path / "v.npy") is None
    with pytest.raises(SubspaceError, match="no format that is known: "):
        read_foreign(tmp_path / "v.npy")
    with pytest.raises(SubspaceError, match="cannot be read"):
        read_foreign(tmp_path / "absent")
    with pytest.raises(SubspaceError, match="a dict is no object"):
        read_foreign({})
    (tmp_path / "short.gguf").write_bytes(b"GGUF")
    with pytest.raises(SubspaceError, match="cannot be read"):
        read_foreign(tmp_path / "short.gguf")
