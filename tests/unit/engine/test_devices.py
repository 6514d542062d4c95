"""Blocks on several devices, and low precision: the same results as in one place.

Without a GPU all devices are the CPU, but Accelerate's own hooks and replaced forwards are there.
"""

from __future__ import annotations

import pytest
import torch
from accelerate import dispatch_model

from helpers_models import lens_of, tiny_model
from helpers_oracle import random_pairs
from subspacelens.certify import centred, require
from subspacelens.core.errors import ModelError
from subspacelens.core.geometry import Support
from subspacelens.core.site import STREAMS, Site
from subspacelens.engine.capture import Capture, capture
from subspacelens.engine.fused import fused_parts
from subspacelens.engine.store import kept_capture
from subspacelens.fit import das
from subspacelens.model.lens import LensModel, wrap

FAMILIES = ("llama", "gpt2", "gemma2", "gpt_neox", "mixtral")
LENGTHS = [(9, 4), (12, 7), (9, 4), (10, 5), (8, 7)]

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


def sites(lens: LensModel) -> list[Site]:
    found = [
        Site(layer, stream, label)
        for stream in STREAMS
        for layer, label in ((1, "X"), (2, "X"), (3, "END"))
        if stream not in lens.map.blocks[layer].missing
    ]
    return [*found, Site(2, "head_z", "X", head=1)]


def device_map(lens: LensModel, first: str | int, second: str | int) -> dict[str, str | int]:
    """Blocks 0 and 1 and what comes before them on one device, the others on another."""
    names = {id(module): name for name, module in lens.model.named_modules()}
    blocks = [names[id(block.module)] for block in lens.map.blocks]
    found: dict[str, str | int] = {}
    where = first
    for name, module in lens.model.named_modules():
        if name == blocks[2]:
            where = second
        if name in blocks or not any(True for _ in module.children()):
            inside = any(name.startswith(f"{block}.") for block in blocks)
            if not inside:
                early = module is lens.model.get_input_embeddings() or "position" in name
                found[name] = first if early else where
    return found


def dispatched(family: str, first: str | int, second: str | int, **options) -> LensModel:
    model = tiny_model(family, **options)
    # With another main device Accelerate would take "cpu" for a place to keep weights, not to run.
    model = dispatch_model(
        model,
        device_map(lens_of(model), first, second),
        main_device="cpu",
        force_hooks=True,
        skip_keys=getattr(model, "_skip_keys_device_placement", None),
    )
    return lens_of(model)


def results(lens: LensModel) -> tuple[Capture, dict[Site, torch.Tensor], dict[Site, torch.Tensor]]:
    """A capture, and by site the outcomes of the full patch and its gradient."""
    captured = capture(lens, random_pairs(LENGTHS), sites(lens))
    outcomes, gradients = {}, {}
    for site in captured.sites:
        replay = captured.at(site)
        delta = captured.difference(site)
        outcomes[site] = replay.delta_outcomes(delta).logit_diff
        leaf = delta[None].clone().requires_grad_(True)
        total = torch.zeros_like(leaf)
        for piece in replay.pieces():
            found = piece.logit_diff(leaf[:, piece.pairs.to(leaf.device)])
            total += torch.autograd.grad(found.sum(), leaf)[0]
        gradients[site] = total[0]
    return captured, outcomes, gradients


def same_results(lens: LensModel, other: LensModel, tolerance: float) -> None:
    assert lens.map.streams == other.map.streams
    first, second = results(lens), results(other)
    close = dict(rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(second[0].clean.logit_diff, first[0].clean.logit_diff, **close)
    for site in first[0].sites:
        for one, two in zip(
            (first[0].base[site], first[0].source[site], first[1][site], first[2][site]),
            (second[0].base[site], second[0].source[site], second[1][site], second[2][site]),
            strict=True,
        ):
            torch.testing.assert_close(
                two.cpu(), one.cpu(), **close, msg=lambda m, s=site: f"{s}: {m}"
            )


# Blocks on several devices.


@pytest.mark.parametrize("family", FAMILIES)
def test_a_dispatched_model_gives_the_same(family):
    lens = dispatched(family, "cpu", "cpu")
    assert all(hasattr(block.module, "_hf_hook") for block in lens.map.blocks)
    same_results(lens_of(tiny_model(family)), lens, 1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_dispatched_model_certifies_and_stays_as_it_was(family):
    lens = dispatched(family, "cpu", "cpu")
    before = {name: module.__dict__.get("forward") for name, module in lens.model.named_modules()}
    for site in sites(lens):
        assert require(lens, site).passed
    after = {name: module.__dict__.get("forward") for name, module in lens.model.named_modules()}
    assert before == after and any(before.values())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_model_with_offloaded_weights_is_refused_in_one_line(family, tmp_path):
    model = tiny_model(family)
    places = device_map(lens_of(model), "cpu", "disk")
    model = dispatch_model(model, places, main_device="cpu", offload_dir=tmp_path)
    assert any(parameter.is_meta for parameter in model.parameters())
    with pytest.raises(
        ModelError, match=r"^weights that are not in memory .*: \d+, such as [^\n]*$"
    ):
        wrap(model, None, "tiny")  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_dispatched_model_is_replayed_from_the_disk(family, tmp_path):
    lens, pairs = dispatched(family, "cpu", "cpu"), random_pairs(LENGTHS)
    where = [Site(1, "resid_post", "X"), Site(3, "mlp_act", "END")]
    there, stored = (
        kept_capture(lens, pairs, where, tmp_path / str(room), memory=room) for room in (2**30, 1)
    )
    assert all(bucket.stored for parts in stored.buckets.values() for bucket in parts)
    for site in where:
        delta = there.difference(site)
        ours, theirs = (c.at(site).delta_outcomes(delta).logit_diff for c in (stored, there))
        torch.testing.assert_close(ours, theirs)


@pytest.mark.gpu
@cuda
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_on_the_gpu_gives_the_same(family):
    on_gpu = lens_of(tiny_model(family).to("cuda"))  # type: ignore[arg-type]
    same_results(lens_of(tiny_model(family)), on_gpu, 1e-6)
    for site in sites(on_gpu):
        assert require(on_gpu, site).passed


@pytest.mark.gpu
@cuda
@pytest.mark.parametrize("order", ["cpu first", "gpu first"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_on_cpu_and_gpu_gives_the_same(family, order):
    places = ("cpu", 0) if order == "cpu first" else (0, "cpu")
    lens = dispatched(family, *places)
    devices = {parameter.device.type for parameter in lens.model.parameters()}
    assert "cuda" in devices
    same_results(lens_of(tiny_model(family)), lens, 1e-6)
    for site in sites(lens):
        assert require(lens, site).passed


# Low precision.


def low_precision(family: str, device: str) -> LensModel:
    return lens_of(tiny_model(family, dtype=torch.bfloat16).to(device))  # type: ignore[arg-type]


DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, cuda])]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_models_are_close_to_themselves_in_float32(family, device):
    """The same weights: those of bfloat16, exactly."""
    lens = low_precision(family, device)
    model = tiny_model(family, dtype=torch.bfloat16).to(torch.float32)
    reference = lens_of(model.to(device))  # type: ignore[arg-type]
    captured, outcomes, _ = results(lens)
    exact, expected, _ = results(reference)
    assert lens.dtype == torch.bfloat16 and captured.base[captured.sites[0]].dtype == lens.dtype
    assert captured.clean.logit_diff.dtype == torch.float32
    spread = exact.clean.logit_diff.std()
    assert (captured.clean.logit_diff - exact.clean.logit_diff).abs().mean() < 0.1 * spread
    for site in captured.sites:
        assert outcomes[site].dtype == torch.float32
        assert (outcomes[site] - expected[site]).abs().mean() < 0.2 * spread, site


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "gpt_neox", "mixtral"])
def test_low_precision_keeps_the_faster_attention(family, dtype, device):
    model = tiny_model(family, dtype=dtype).to(device)  # type: ignore[arg-type]
    parts = fused_parts(lens_of(model))
    assert parts.configs and parts.split


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_sites_certify(family, device):
    lens = low_precision(family, device)
    for site in sites(lens):
        if site.stream not in ("mlp_act", "head_z"):
            assert require(lens, site).passed
    assert centred(lens) == (family in ("gpt2", "gpt_neox"))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_sites_with_a_writer_certify(family, device):
    lens = low_precision(family, device)
    for site in sites(lens):
        if site.stream in ("mlp_act", "head_z"):
            assert require(lens, site).passed


@pytest.mark.parametrize("device", DEVICES)
def test_statistics_of_bfloat16_activations_are_not_bfloat16(device):
    lens = low_precision("llama", device)
    site = Site(1, "resid_post", "X")
    captured = capture(lens, random_pairs(LENGTHS), [site])
    assert Support.of(captured.base[site]).axes.dtype == torch.float64
    subspace = das(lens, captured, site, steps=3)
    assert subspace.basis.dtype == torch.float32
    norm = subspace.basis.double().norm(dim=0)
    torch.testing.assert_close(norm, torch.ones_like(norm), rtol=0, atol=1e-6)


def test_a_wrapped_model_is_not_moved_or_converted():
    model = tiny_model("llama", dtype=torch.bfloat16)
    lens = wrap(model, None, "tiny")  # type: ignore[arg-type]
    assert lens.model is model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
