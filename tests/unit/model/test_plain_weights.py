"""Adapters are refused with what to do; quantised weights where they are the site's own."""

from __future__ import annotations

import importlib.util
import shutil

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from helpers_models import tiny_model
from helpers_oracle import random_pairs
from subspacelens.certify import certify, require
from subspacelens.core.errors import ModelError, SiteError
from subspacelens.core.site import Site
from subspacelens.engine.capture import capture
from subspacelens.engine.patches import NoOp
from subspacelens.model.lens import LensModel, wrap
from subspacelens.model.loading import load_model

LENGTHS = [(9, 4), (12, 7), (10, 5)]
MLP, STREAM = Site(1, "mlp_act", "END"), Site(2, "resid_post", "END")


def wrapped(model) -> LensModel:
    return wrap(model, None, "tiny")  # type: ignore[arg-type]


class LowRank(nn.Module):
    """What PEFT puts in the place of a linear map, in short."""

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.merged_adapters: list[str] = []
        self.extra = nn.Linear(base_layer.in_features, base_layer.out_features, bias=False)
        self.extra.to(base_layer.weight.dtype)

    @property
    def weight(self) -> torch.Tensor:
        return self.base_layer.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + 1e-3 * self.extra(x)


class EightBit(nn.Module):
    """A linear map whose weight is whole numbers and a scale a row."""

    def __init__(self, whole: nn.Linear) -> None:
        super().__init__()
        scale = whole.weight.abs().amax(dim=1, keepdim=True) / 127
        rounded = (whole.weight / scale).round().to(torch.int8)
        self.weight = nn.Parameter(rounded, requires_grad=False)
        self.register_buffer("scale", scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weight.to(x.dtype) * self.scale)


def replaced(model, names: tuple[str, ...], kind: type[nn.Module]):
    for block in model.model.layers:
        for part in (block.self_attn, block.mlp):
            for name in names:
                if hasattr(part, name):
                    setattr(part, name, kind(getattr(part, name)))
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("names", [("down_proj",), ("q_proj", "v_proj")])
def test_adapters_beside_the_weights_are_refused(names):
    model = replaced(tiny_model("llama"), names, LowRank)
    count = 4 * len(names)
    with pytest.raises(ModelError, match=rf"\({count} layers, .*merge_and_unload\(\)"):
        wrapped(model)


def test_a_wrapper_of_peft_is_refused():
    model = tiny_model("llama")
    model.peft_config = {}
    with pytest.raises(ModelError, match="get_base_model"):
        wrapped(model)


def test_a_folder_with_an_adapter_is_refused(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="merge_and_unload"):
        load_model(folder, device="cpu")


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="needs peft")
@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["down_proj"], "all-linear"])
def test_adapters_of_peft(targets):
    import peft

    config = peft.LoraConfig(target_modules=targets, task_type="CAUSAL_LM", init_lora_weights=False)
    model = peft.get_peft_model(tiny_model("llama", dtype=torch.float32), config).eval()
    with pytest.raises(ModelError, match="merge_and_unload"):
        wrapped(model)
    model.merge_adapter()
    with pytest.raises(ModelError, match="merge_and_unload"):
        wrapped(model)
    model.unmerge_adapter()
    ids = torch.arange(3, 9)[None]
    expected = model(ids).logits
    merged = model.merge_and_unload()
    lens = wrapped(merged)
    torch.testing.assert_close(lens.model(ids).logits, expected, rtol=1e-3, atol=1e-3)
    assert certify(lens, MLP).passed


def test_sites_of_a_quantised_model_whose_projection_is_a_matrix():
    kept = ("down_proj", "o_proj")
    names = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
    lens = wrapped(replaced(tiny_model("llama"), names, EightBit))
    for site in (MLP, STREAM, Site(1, "head_z", "END")):
        assert require(lens, site).passed, kept
    captured = capture(lens, random_pairs(LENGTHS), [MLP])
    outcomes = captured.at(MLP).outcomes(NoOp())
    torch.testing.assert_close(outcomes.logit_diff, captured.clean.logit_diff)


def test_sites_of_a_quantised_model_whose_projection_is_not():
    lens = wrapped(replaced(tiny_model("llama"), ("down_proj",), EightBit))
    with pytest.raises(SiteError, match=r"4 of its weights are quantised.*model.dequantize\(\)"):
        lens.map.block(MLP)
    assert require(lens, STREAM).passed


def test_a_model_without_any_matrix_is_refused():
    names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    with pytest.raises(ModelError, match=r"28 of its weights are quantised.*dtype=torch.bfloat16"):
        wrapped(replaced(tiny_model("llama"), names, EightBit))


def test_a_model_in_bfloat16_is_taken_as_it_is():
    lens = wrapped(tiny_model("llama", dtype=torch.bfloat16))
    assert lens.dtype == torch.bfloat16
    assert {"mlp_act", "head_z", "resid_mid"} <= set(lens.map.blocks[0].entries)
    for site in (MLP, STREAM):
        assert certify(lens, site).passed
    captured = capture(lens, random_pairs(LENGTHS), [MLP])
    assert captured.base[MLP].dtype == torch.bfloat16
