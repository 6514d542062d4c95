"""Certificates: every architecture passes, and every kind of sabotage is caught by name."""

from __future__ import annotations

import gc
import importlib
import math
import weakref
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from helpers_models import FAMILIES, VOCABULARY, tiny_lens
from helpers_oracle import random_pairs
from subspacelens.certify import (
    TOLERANCES,
    centred,
    certify,
    doctor_rows,
    require,
    require_streams,
    trial_pairs,
)
from subspacelens.core.errors import ModelError, SiteError, TaskError
from subspacelens.core.geometry import Split
from subspacelens.core.site import EXPERT, STREAMS, Site
from subspacelens.engine.capture import capture
from subspacelens.model.lens import LensModel
from subspacelens.model.mapping import build_map
from subspacelens.model.mapping.values import Block, Linear
from subspacelens.model.mapping.ways import After, Before, Within

certificate = importlib.import_module("subspacelens.certify.certificate")
examination = importlib.import_module("subspacelens.certify.examination")

LAYER_NORM = ("gpt2", "gpt_neo", "gpt_neox", "phi", "opt", "falcon", "starcoder2", "stablelm")
LAYER_NORM = (*LAYER_NORM, "bloom", "mpt")


@pytest.fixture(scope="module", params=FAMILIES)
def lens(request) -> LensModel:
    return tiny_lens(request.param)


@pytest.fixture
def llama() -> LensModel:
    return tiny_lens("llama")


def with_block(lens: LensModel, layer: int, **changes) -> LensModel:
    """The same model under a map that is wrong about one block."""
    blocks = list(lens.map.blocks)
    blocks[layer] = replace(blocks[layer], **changes)
    return LensModel(lens.model, lens.tokenizer, lens.id, replace(lens.map, blocks=tuple(blocks)))


def refused(lens: LensModel, site: Site, proof: str) -> str:
    """The proof that failed is the named one, and `require` says so in one line."""
    certificate = certify(lens, site)
    assert not certificate.passed
    assert certificate.failures[0].name == proof, certificate.proofs
    with pytest.raises(SiteError, match=f"failed the proof '{proof}'") as raised:
        require(lens, site)
    text = str(raised.value)
    assert str(site) in text and "\n" not in text and "error" in text
    return text


# Every architecture, every stream.


def test_every_stream_of_every_family_certifies(lens):
    for layer in (0, 2, 3):
        for stream in lens.map.blocks[layer].entries:
            number = 1 if stream == EXPERT else None
            assert require(lens, Site(layer, stream, "END", number)).passed
    assert require(lens, Site(1, "head_z", "anything", head=2)).passed
    for stream, heads in lens.map.blocks[1].projected.items():
        if heads.mixed is None:
            assert require(lens, Site(1, stream, "END", head=len(heads.starts) - 1)).passed


def test_what_the_family_lacks_is_refused_with_the_reason(lens):
    for stream, reason in lens.map.blocks[1].missing.items():
        with pytest.raises(SiteError, match=stream):
            certify(lens, Site(1, stream, "END"))
        (row,) = doctor_rows(lens, [Site(1, stream, "END")])
        assert row.certificate is None and row.reason == reason and not row.passed


def test_layer_norm_models_are_centred_and_others_are_not(lens):
    assert centred(lens) == (lens.id in LAYER_NORM)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "olmo2"])
def test_lower_precision_has_its_own_tolerance(family, dtype):
    lens = tiny_lens(family, dtype=dtype)
    for stream in ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"):
        certificate = require(lens, Site(1, stream, "END"))
        assert {p.tolerance for p in certificate.proofs} >= {TOLERANCES[dtype].values}
    assert centred(lens) == (family == "gpt2")


def test_a_dtype_without_tolerances_is_refused(llama, monkeypatch):
    monkeypatch.delitem(TOLERANCES, torch.float64)
    with pytest.raises(ModelError, match="no site can be certified in"):
        certify(llama, Site(1, "resid_post", "END"))


# What a certificate says.


def test_proofs_are_named_and_measured(llama):
    certificate = certify(llama, Site(1, "mlp_act", "S2"))
    names = [proof.name for proof in certificate.proofs]
    assert names == [
        "hook fires",
        "kernel",
        "projectors",
        "hook identity",
        "hook writes",
        "hook acts",
        "writer",
        "kernel patch",
        "capture",
        "no-op replay",
        "replay",
        "logit difference",
        "gradient",
        "batch",
        "left as found",
    ]
    for proof in certificate.proofs:
        assert proof.passed == (proof.error <= proof.tolerance)
        assert math.isfinite(proof.error) and proof.text
    assert repr(certificate) == "Certificate(L1.mlp_act@S2: all 15 proofs passed)"
    page = certificate._repr_html_()
    assert "no-op replay" in page and "✗" not in page


def test_the_kernel_is_proven_only_where_there_is_a_writer(llama):
    kernel = {"kernel", "projectors", "writer", "kernel patch"}
    names = {
        site: {proof.name for proof in certify(llama, site).proofs}
        for site in (
            Site(1, "resid_post", "END"),
            Site(1, "mlp_out", "END"),
            Site(1, "mlp_act", "END"),
            Site(1, "head_z", "END"),
        )
    }
    found = [names[site] & kernel for site in names]
    # The output projection is square and of full rank, so nothing lies in its kernel.
    assert found == [set(), set(), kernel, kernel - {"kernel patch"}]


def test_a_failed_certificate_looks_failed(llama):
    other = with_block(llama, 1, down_proj=llama.map.blocks[2].down_proj)
    certificate = certify(other, Site(1, "mlp_act", "END"))
    assert repr(certificate) == "Certificate(L1.mlp_act@END: FAILED hook fires)"
    assert "✗" in certificate._repr_html_()


def test_without_sites_the_doctor_looks_at_three_layers():
    rows = doctor_rows(tiny_lens("mixtral"))
    assert [row.site.layer for row in rows[:: len(STREAMS)]] == [0, 2, 3]
    assert len(rows) == 3 * len(STREAMS)
    for row in rows:
        assert row.passed == (row.site.stream != "mlp_act")
        assert bool(row.reason) != row.passed


def test_a_layer_that_is_not_there_is_refused(llama):
    with pytest.raises(SiteError, match="layers 0 to 3"):
        certify(llama, Site(4, "mlp_act", "END"))
    (row,) = doctor_rows(llama, [Site(4, "mlp_act", "END")])
    assert "layers 0 to 3" in row.reason


@pytest.mark.parametrize("wrong", ["attn_q", "attn_v"])
def test_keys_that_are_queries_or_values_are_caught(wrong):
    lens = tiny_lens("gpt_neox")
    projected = lens.map.blocks[1].projected
    other = with_block(lens, 1, projected=projected | {"attn_k": projected[wrong]})
    refused(other, Site(1, "attn_k", "END"), "heads")


@pytest.mark.parametrize("stream", ["attn_q", "attn_k", "attn_v"])
def test_heads_that_are_counted_wrongly_are_caught(llama, stream):
    projected = llama.map.blocks[1].projected
    turned = replace(projected[stream], starts=projected[stream].starts[::-1])
    other = with_block(llama, 1, projected=projected | {stream: turned})
    refused(other, Site(1, stream, "END", head=0), "heads")


def test_pairs_of_the_user_can_be_the_prompts(llama):
    pairs = random_pairs([(9, 3), (7, 2), (12, 6)])
    certificate = require(llama, Site(1, "mlp_act", "X"), pairs=pairs)
    assert "7 and 12 tokens" in next(p.text for p in certificate.proofs if p.name == "batch")
    assert require(llama, Site(1, "mlp_act", "END"), pairs=pairs[:1]).passed
    with pytest.raises(TaskError, match="no label 'S2'"):
        certify(llama, Site(1, "mlp_act", "S2"), pairs=pairs)


def test_probing_prompts_avoid_special_tokens(llama):
    words = range(90, 95)
    tokenizer = type("Tokenizer", (), {"all_special_ids": [*range(90)], "__len__": lambda _: 95})()
    pairs = trial_pairs(LensModel(llama.model, tokenizer, "llama", llama.map))
    assert {t for p in pairs for t in (*p.base.ids, *p.source.ids, p.answer)} <= set(words)
    assert pairs == trial_pairs(LensModel(llama.model, tokenizer, "llama", llama.map))
    plain = trial_pairs(llama)
    assert {t for p in plain for t in p.base.ids} <= set(range(VOCABULARY)) - {1, 2}
    only = type("Tokenizer", (), {"all_special_ids": [*range(96)], "__len__": lambda _: 97})()
    with pytest.raises(ModelError, match="fewer than two tokens"):
        trial_pairs(LensModel(llama.model, only, "llama", llama.map))


def test_of_many_layers_the_middle_one_of_each_stream_is_tried(llama, monkeypatch):
    tried = []
    monkeypatch.setattr(certificate, "require", lambda _, site: tried.append(str(site)))
    sites = [Site(layer, name, "X") for name in ("mlp_act", "resid_post") for layer in (3, 0, 1)]
    require_streams(llama, sites)
    assert tried == ["L1.mlp_act@X", "L1.resid_post@X"]


# How long it holds.


def test_a_certificate_is_made_once(llama, monkeypatch):
    first = certify(llama, Site(1, "mlp_act", "S2"))
    yes = centred(llama)
    monkeypatch.setattr(certificate, "Examination", None)
    monkeypatch.setattr(certificate, "is_centred", None)
    assert certify(llama, Site(1, "mlp_act", "S2")) == first
    assert certify(llama, Site(1, "mlp_act", "END")).proofs == first.proofs
    assert centred(llama) == yes
    for other in (Site(2, "mlp_act", "S2"), Site(1, "mlp_out", "S2")):
        with pytest.raises(TypeError):
            certify(llama, other)


@pytest.mark.parametrize(
    "change",
    [
        "weight",
        "hook",
        "forward",
        "norm",
        "data",
        "eps",
        "buffer",
        "config",
        "dtype",
    ],
)
def test_a_changed_model_is_certified_anew(llama, change):
    site = Site(1, "mlp_act", "S2")
    first = certify(llama, site)
    layer = llama.model.model.layers[1]
    if change == "weight":
        layer.mlp.down_proj.weight.mul_(1.5)
    elif change == "hook":
        layer.mlp.register_forward_hook(lambda *_: None)
    elif change == "forward":
        layer.mlp.forward = layer.mlp.forward
    elif change == "norm":
        norm = llama.model.model.layers[2].input_layernorm
        norm.weight.data = norm.weight.data + torch.rand(32, dtype=torch.float64)
    elif change == "data":
        layer.mlp.down_proj.weight.data.mul_(1.5)
    elif change == "eps":
        layer.input_layernorm.variance_epsilon = 0.1
    elif change == "buffer":
        llama.model.model.rotary_emb.inv_freq.data.mul_(0.5)
    elif change == "config":
        llama.model.config.rope_parameters["rope_theta"] = 500.0
    else:
        llama.model.to(torch.float32)
    again = certify(llama, site)
    assert again.proofs is not first.proofs
    assert again.passed, again.failures


def test_the_cache_keeps_no_model_alive():
    lens = tiny_lens("gpt2")
    certify(lens, Site(1, "resid_post", "S2"))
    there = weakref.ref(lens), weakref.ref(lens.model)
    assert lens in certificate._certificates
    del lens
    gc.collect()
    assert [one() for one in there] == [None, None]


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_it_works_in_any_gradient_mode(llama, context):
    with context():
        assert require(llama, Site(1, "mlp_act", "S2")).passed
        assert not centred(llama)


def test_the_global_random_state_is_not_touched(llama):
    before = torch.get_rng_state()
    certify(llama, Site(1, "mlp_act", "S2"))
    centred(llama)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_in_training_mode_is_refused(llama):
    llama.model.train()
    with pytest.raises(ModelError, match="training mode"):
        certify(llama, Site(1, "mlp_act", "S2"))


# Sabotage.


def test_a_module_of_another_block(llama):
    other = with_block(llama, 1, down_proj=llama.map.blocks[2].down_proj)
    text = refused(other, Site(1, "mlp_act", "END"), "hook fires")
    assert "0 times within block 1 and 1 times elsewhere" in text


def test_blocks_in_the_wrong_order(llama):
    blocks = llama.map.blocks
    mixed = replace(llama.map, blocks=(blocks[0], blocks[2], blocks[1], blocks[3]))
    other = LensModel(llama.model, llama.tokenizer, "mixed", mixed)
    text = refused(other, Site(1, "resid_post", "END"), "hook fires")
    assert "do not run once each and in its order" in text


class _Scaled(Linear):
    """A projection that is not what the model multiplies with."""

    @property
    def weight(self) -> torch.Tensor:
        return 1.01 * super().weight


def _scaled(linear: Linear | None) -> Linear:
    assert linear is not None
    return _Scaled(linear.name, linear.module, linear.transposed)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "gpt_neox"])
def test_a_wrong_writer_matrix(family):
    lens = tiny_lens(family)
    block = lens.map.blocks[1]
    mlp = with_block(lens, 1, down_proj=_scaled(block.down_proj))
    refused(mlp, Site(1, "mlp_act", "END"), "writer")
    heads = with_block(lens, 1, out_proj=_scaled(block.out_proj))
    refused(heads, Site(1, "head_z", "END", head=1), "writer")


def test_a_transposed_writer_matrix(llama):
    out = llama.map.blocks[1].out_proj
    other = with_block(llama, 1, out_proj=Linear(out.name, out.module, not out.transposed))
    refused(other, Site(1, "head_z", "END"), "writer")


def test_a_block_that_ignores_the_hooked_tensor(llama):
    mlp = llama.model.model.layers[1].mlp

    def forward(x):
        hidden = mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x)
        mlp.down_proj(hidden)
        return functional.linear(hidden, mlp.down_proj.weight)

    mlp.forward = forward
    text = refused(llama, Site(1, "mlp_act", "END"), "hook acts")
    assert "moves the logits by 0 of their spread" in text
    refused(llama, Site(1, "mlp_out", "END"), "hook acts")
    # Neither is such a model mapped to begin with.
    assert "mlp_act" in build_map(llama.model).blocks[1].missing


def test_a_module_that_runs_twice(llama):
    mlp = llama.model.model.layers[1].mlp

    def forward(x):
        hidden = mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x)
        return (mlp.down_proj(hidden) + mlp.down_proj(hidden)) / 2

    mlp.forward = forward
    text = refused(llama, Site(1, "mlp_act", "END"), "hook fires")
    assert "2 times within block 1" in text


def test_a_later_hook_that_undoes_the_write(llama):
    kept = {}
    down = llama.model.model.layers[1].mlp.down_proj

    def restore(_module, args, output):
        kept.setdefault(args[0].shape, output)
        return kept[args[0].shape][:1].expand_as(output)

    down.register_forward_hook(restore)
    assert not certify(llama, Site(1, "mlp_act", "END")).passed


@pytest.mark.parametrize("wrong", [After(), Before()])
def test_a_wrong_entry_into_the_replay(llama, wrong):
    entries = llama.map.blocks[1].entries | {"attn_out": wrong}
    refused(with_block(llama, 1, entries=entries), Site(1, "attn_out", "END"), "replay")


def test_a_wrong_reader_of_resid_mid(llama):
    first = llama.model.model.layers[1].input_layernorm
    other = with_block(llama, 1, mid_reader=first)
    refused(other, Site(1, "resid_mid", "END"), "no-op replay")


@pytest.mark.parametrize("family", ["gemma2", "bloom", "mpt"])
def test_padding_where_it_changes_something(family):
    lens = tiny_lens(family)
    assert not lens.map.pads
    padded = LensModel(lens.model, lens.tokenizer, "padded", replace(lens.map, pads=True))
    text = refused(padded, Site(1, "resid_post", "END"), "replay")
    assert "not finite" in text


def test_logits_without_their_soft_cap():
    lens = tiny_lens("gemma2")
    tail = replace(lens.map.tail, finish=lambda logits: logits)
    other = LensModel(lens.model, lens.tokenizer, "gemma2", replace(lens.map, tail=tail))
    refused(other, Site(1, "resid_post", "END"), "no-op replay")


def test_a_prompt_that_depends_on_its_batch(llama, monkeypatch):
    def together(lens, pairs, sites, **options):
        captured = capture(lens, pairs, sites, **options)
        if len(pairs) > 1:
            return captured
        buckets = captured.buckets["END"]
        for bucket in buckets:
            for entry in bucket.entries.values():
                entry.mul_(1.001)
        return captured

    monkeypatch.setattr(examination, "capture", together)
    refused(llama, Site(1, "resid_post", "END"), "batch")


def test_a_split_that_is_not_rank_aware(llama, monkeypatch):
    class Careless(Split):
        @classmethod
        def of(cls, weight, *, centred=False):
            return Split(Split.of(weight, centred=centred).rows[:, :-1])

    monkeypatch.setattr(examination, "Split", Careless)
    refused(llama, Site(1, "mlp_act", "END"), "kernel")


def test_a_missing_centring(monkeypatch):
    """A LayerNorm model taken for one that reads the mean has a smaller kernel: nothing breaks.
    The other way round, something does."""
    monkeypatch.setattr(certificate, "_centred", lambda lens, kept: lens.id == "llama")
    assert require(tiny_lens("gpt2"), Site(1, "mlp_act", "END")).passed
    refused(tiny_lens("llama"), Site(1, "mlp_act", "END"), "kernel patch")


def test_a_hook_left_behind(llama, monkeypatch):
    def careless(lens, pairs, sites, **options):
        lens.model.model.layers[2].register_forward_hook(lambda *_: None)
        return capture(lens, pairs, sites, **options)

    monkeypatch.setattr(examination, "capture", careless)
    text = refused(llama, Site(1, "resid_post", "END"), "left as found")
    assert "model.layers.2" in text


def test_a_hook_taken_away(llama, monkeypatch):
    handle = llama.model.model.layers[2].register_forward_hook(lambda *_: None)

    def rude(lens, pairs, sites, **options):
        handle.remove()
        return capture(lens, pairs, sites, **options)

    monkeypatch.setattr(examination, "capture", rude)
    with pytest.raises(SiteError, match=r"'left as found': .* of model\.layers\.2 are not"):
        require(llama, Site(1, "resid_post", "END"))


def test_weights_written_to(llama):
    weight = llama.model.model.layers[2].mlp.up_proj.weight

    def write(*_):
        if not torch.is_grad_enabled():
            weight.mul_(1.0)

    llama.model.register_forward_hook(write)
    text = refused(llama, Site(1, "resid_post", "END"), "left as found")
    assert "model.layers.2.mlp.up_proj.weight" in text


def test_what_breaks_is_a_failed_proof(llama):
    """A map with which the engine cannot even run."""
    block: Block = llama.map.blocks[1]
    entries = block.entries | {"resid_mid": Within()}
    other = with_block(llama, 1, entries=entries, out_proj=block.down_proj)
    certificate = certify(other, Site(1, "head_z", "END"))
    assert not certificate.passed


def test_activations_that_are_not_finite(llama):
    llama.model.model.layers[0].mlp.down_proj.weight[0, 0] = math.nan
    text = refused(llama, Site(1, "resid_post", "END"), "hook identity")
    assert "nan" in text
