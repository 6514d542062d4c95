"""The map names the right modules in every architecture, and what it cannot map it refuses."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from helpers_models import FAMILIES, VOCABULARY, tiny_model
from subspacelens.certify import certify
from subspacelens.core.errors import ModelError, SiteError
from subspacelens.core.site import EXPERT, PROJECTED, STREAMS, Site
from subspacelens.model.lens import wrap
from subspacelens.model.mapping import build_map
from subspacelens.model.mapping.values import ModelMap

# blocks, output projection, down-projection, reader of the stream between attention and MLP
LLAMA = "model.layers", "self_attn.o_proj", "mlp.down_proj", "post_attention_layernorm"
GEMMA = (*LLAMA[:3], "pre_feedforward_layernorm")
GPT2 = "transformer.h", "attn.c_proj", "mlp.c_proj", "ln_2"
MIXTURE = (*LLAMA[:2], None, LLAMA[3])
EXPECTED = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "phi3": LLAMA,
    "stablelm": LLAMA,
    "gemma2": GEMMA,
    "gemma3_text": GEMMA,
    "olmo2": (*LLAMA[:3], "mlp"),
    "starcoder2": (*LLAMA[:2], "mlp.c_proj", LLAMA[3]),
    "gpt2": GPT2,
    "gpt_neo": (GPT2[0], "attn.attention.out_proj", *GPT2[2:]),
    "gpt_neox": ("gpt_neox.layers", "attention.dense", "mlp.dense_4h_to_h", None),
    "phi": ("model.layers", "self_attn.dense", "mlp.fc2", None),
    "opt": ("model.decoder.layers", "self_attn.out_proj", "fc2", "final_layer_norm"),
    "falcon": ("transformer.h", "self_attention.dense", "mlp.dense_4h_to_h", None),
    "bloom": (
        "transformer.h",
        "self_attention.dense",
        "mlp.dense_4h_to_h",
        "post_attention_layernorm",
    ),
    "mpt": ("transformer.blocks", "attn.out_proj", "ffn.down_proj", "norm_2"),
    "mixtral": MIXTURE,
    "qwen3_moe": MIXTURE,
}

GROUPED = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "olmo2")
GROUPED = (*GROUPED, "starcoder2", "stablelm", "mixtral", "qwen3_moe")
"""With half as many keys and values as queries."""
TOGETHER = {"gpt2": "attn.c_attn", "gpt_neox": "attention.query_key_value", "mpt": "attn.Wqkv"}
TOGETHER |= {"phi3": "self_attn.qkv_proj", "falcon": "self_attention.query_key_value"}
TOGETHER |= {"bloom": "self_attention.query_key_value"}
"""One projection makes all three."""


def heads_of(name: str) -> list[int]:
    """How many queries, keys and values there are."""
    return [4, 1, 1] if name == "falcon" else [4, 2, 2] if name in GROUPED else [4, 4, 4]


SMALL = dict(
    hidden_size=32,
    intermediate_size=56,
    num_hidden_layers=2,
    num_attention_heads=4,
    vocab_size=VOCABULARY,
    max_position_embeddings=64,
)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request) -> tuple[str, torch.nn.Module, ModelMap]:
    model = tiny_model(request.param)
    return request.param, model, build_map(model)


def causal(kind: str, **options) -> torch.nn.Module:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **options)
    return AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


def test_every_part_is_the_expected_module(family):
    name, model, model_map = family
    blocks, out, down, reader = EXPECTED[name]
    assert model_map.names == {"blocks": blocks, "unembedding": "lm_head"}
    assert len(model_map.blocks) == 4
    for layer, block in enumerate(model_map.blocks):
        at = f"{blocks}.{layer}"
        assert block.module is model.get_submodule(at)
        assert block.out_proj.name == f"{at}.{out}"
        assert block.out_proj.module is model.get_submodule(f"{at}.{out}")
        if down is None:
            assert block.down_proj is None
        else:
            assert block.down_proj is not None
            assert block.down_proj.name == f"{at}.{down}"
            assert block.down_proj.module is model.get_submodule(f"{at}.{down}")
        expected = None if reader is None else model.get_submodule(f"{at}.{reader}")
        assert block.mid_reader is expected
    assert model_map.tail.head.module is model.get_output_embeddings()
    assert model_map.d_model == 32


def test_dimensions_and_writers_fit_the_modules(family):
    name, _, model_map = family
    for stream in STREAMS:
        site = Site(1, stream, "END")
        block = model_map.blocks[1]
        if stream in block.missing:
            with pytest.raises(SiteError, match=stream):
                model_map.dim(site)
            continue
        dim, writer = model_map.dim(site), model_map.writer(site)
        if stream in PROJECTED:
            assert writer is None and dim == 8 * heads_of(name)[PROJECTED.index(stream)]
        elif stream in ("mlp_act", "head_z"):
            assert writer is not None and writer.shape == (32, dim)
            assert torch.equal(model_map.linear_writer(site), writer)
        else:
            assert writer is None and dim == 32
            with pytest.raises(SiteError, match="does not write to the residual stream by one"):
                model_map.linear_writer(site)
    heads = [Site(1, "head_z", "END", head=h) for h in range(4)]
    writers = [model_map.writer(site) for site in heads]
    assert torch.equal(torch.cat(writers, dim=1), model_map.blocks[1].out_proj.weight)  # type: ignore[arg-type]
    with pytest.raises(SiteError, match="heads 0 to 3, not 4"):
        model_map.dim(Site(1, "head_z", "END", head=4))


def test_projections_compute_what_their_weights_say(family):
    _, _, model_map = family
    for block in model_map.blocks:
        for linear in (block.out_proj, block.down_proj):
            if linear is not None:
                x = torch.randn(3, linear.weight.shape[1], dtype=torch.float64)
                bias = getattr(linear.module, "bias", None)
                expected = x @ linear.weight.T + (0 if bias is None else bias)
                torch.testing.assert_close(linear.module(x), expected)


def test_queries_keys_and_values_are_found_in_the_projections(family):
    name, model, model_map = family
    block, at = model_map.blocks[1], f"{model_map.names['blocks']}.1"
    counts = heads_of(name)
    assert [block.heads(stream) for stream in PROJECTED] == counts
    taken = []
    for stream, short in zip(PROJECTED, "qkv", strict=True):
        heads = block.projected[stream]
        attention = block.out_proj.name.rsplit(".", 1)[0]
        expected = f"{at}.{TOGETHER[name]}" if name in TOGETHER else f"{attention}.{short}_proj"
        assert heads.linear.name == expected
        assert heads.linear.module is model.get_submodule(expected)
        assert (heads.mixed is None) == (name != "olmo2" or stream == "attn_v")
        rows = torch.arange(heads.linear.weight.shape[0])
        taken.append(rows[heads.part()])
        each = [rows[heads.part(head)] for head in range(len(heads.starts))]
        assert torch.equal(torch.cat(each), taken[-1])
    if name in TOGETHER:
        assert torch.equal(torch.cat(taken).sort().values, torch.arange(len(torch.cat(taken))))
    with pytest.raises(SiteError, match=f"key heads 0 to {counts[1] - 1}.*, not {counts[1]}"):
        model_map.block(Site(1, "attn_k", "END", counts[1]))


def test_grouped_heads_in_one_projection_are_told_apart():
    shape = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_kv_heads=2)
    model = causal("falcon", **shape, vocab_size=VOCABULARY, new_decoder_architecture=True)
    lens = wrap(model, None, "falcon")  # type: ignore[arg-type]
    starts = [lens.map.blocks[1].projected[stream].starts for stream in PROJECTED]
    assert starts == [(0, 8, 32, 40), (16, 48), (24, 56)]
    assert certify(lens, Site(1, "attn_v", "END", 1)).passed
    assert certify(lens, Site(1, "attn_k", "END")).passed


def test_heads_that_are_normed_together_have_no_site_each():
    model_map = build_map(tiny_model("olmo2"))
    with pytest.raises(
        SiteError, match=r"L1\.attn_q\.1@END: the heads of attn_q are normed together"
    ):
        model_map.block(Site(1, "attn_q", "END", 1))
    assert model_map.dim(Site(1, "attn_v", "END", 1)) == 8


def test_keys_and_values_that_are_made_in_two_steps_are_refused():
    model = causal(
        "deepseek_v3", **SMALL, num_key_value_heads=4, q_lora_rank=8, kv_lora_rank=8,
        qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8, n_routed_experts=4, n_group=1,
        topk_group=1, num_experts_per_tok=2, moe_intermediate_size=16, first_k_dense_replace=2,
    )  # fmt: skip
    with pytest.raises(SiteError, match="its queries, keys and values were not found in"):
        build_map(model).block(Site(1, "attn_k", "END"))  # type: ignore[arg-type]


def test_streams_say_what_is_there_and_why_not(family):
    name, _, model_map = family
    streams, experts = model_map.streams, {EXPERT} if EXPECTED[name] is MIXTURE else set()
    assert set(streams) == set(STREAMS) | experts
    refused = {stream for stream, answer in streams.items() if answer != "yes"}
    assert refused == set(model_map.blocks[0].missing)
    _, _, down, reader = EXPECTED[name]
    expected = set() if down else {"mlp_act"}
    assert refused == expected | (set() if reader else {"resid_mid"})


def test_a_model_may_be_mapped_again_and_in_any_mode():
    model = tiny_model("llama")
    first = build_map(model)
    model.train()
    second = build_map(model)
    assert model.training
    assert second.names == first.names
    with pytest.raises(ModelError, match="training mode"):
        wrap(model, None)  # type: ignore[arg-type]


# What is refused, and how.


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_a_mixture_of_experts_is_one_writer(kind):
    lens = wrap(tiny_model(kind), None)  # type: ignore[arg-type]
    with pytest.raises(SiteError) as raised:
        lens.map.block(Site(2, "mlp_act", "END"))
    assert str(raised.value) == (
        "site L2.mlp_act@END: model.layers.2 has no single down-projection (a mixture of experts?)"
    )
    assert lens.map.blocks[2].mixture is lens.model.get_submodule("model.layers.2.mlp")
    assert lens.map.writer(Site(2, "mlp_out", "END")) is None
    for stream in ("mlp_out", "resid_mid", "resid_post", "attn_out", "head_z"):
        assert certify(lens, Site(2, stream, "END")).passed


def test_a_shared_expert_is_not_taken_for_the_whole_mlp():
    model = causal(
        "qwen2_moe",
        **SMALL,
        num_key_value_heads=2,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=24,
        shared_expert_intermediate_size=24,
        experts_implementation="eager",
    )
    for parameter in model.parameters():
        parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
    model_map = build_map(model)  # type: ignore[arg-type]
    with pytest.raises(SiteError, match="are not its only writers"):
        model_map.block(Site(1, "mlp_act", "END"))
    assert model_map.block(Site(1, "mlp_out", "END")).mixture is model.model.layers[1].mlp


def test_a_norm_after_the_residual_sum_has_no_mlp_sites():
    model = causal(
        "opt",
        hidden_size=32,
        ffn_dim=56,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        word_embed_proj_dim=32,
        vocab_size=VOCABULARY,
        do_layer_norm_before=False,
    )
    for parameter in model.parameters():
        parameter.copy_(torch.rand_like(parameter))
    missing = build_map(model).blocks[1].missing  # type: ignore[arg-type]
    assert "are not its only writers" in missing["mlp_act"]


REFUSED = {
    "mamba": dict(hidden_size=32, num_hidden_layers=2, state_size=4),
    "rwkv": dict(hidden_size=32, attention_hidden_size=32, num_hidden_layers=2),
    "xlnet": dict(d_model=32, n_layer=2, n_head=4, d_inner=56),
    "openai-gpt": dict(n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "bert": dict(**SMALL, is_decoder=True),
}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("kind", REFUSED)
def test_models_without_a_list_of_caching_blocks_are_refused(kind):
    model = causal(kind, **{"vocab_size": VOCABULARY} | REFUSED[kind])
    with pytest.raises(ModelError) as raised:
        build_map(model)  # type: ignore[arg-type]
    text = str(raised.value)
    assert text.startswith(type(model).__name__) and "\n" not in text


def test_a_model_without_an_unembedding_is_refused():
    config = AutoConfig.for_model("gpt2", n_embd=32, n_layer=2, n_head=4, vocab_size=VOCABULARY)
    with pytest.raises(ModelError, match="GPT2Model has no token embedding or unembedding"):
        build_map(AutoModel.from_config(config).eval())


def test_an_encoder_decoder_is_refused():
    config = T5Config(
        d_model=32,
        d_kv=8,
        d_ff=56,
        num_layers=2,
        num_heads=4,
        vocab_size=VOCABULARY,
        decoder_start_token_id=0,
    )
    with pytest.raises(ModelError, match="T5ForConditionalGeneration"):
        build_map(T5ForConditionalGeneration(config).eval())


@pytest.mark.filterwarnings("ignore")
def test_a_hybrid_of_attention_and_recurrence_is_refused():
    hybrid = dict(num_key_value_heads=2, attn_layer_period=2, attn_layer_offset=1, num_experts=2)
    model = causal("jamba", **SMALL | {"num_hidden_layers": 4}, **hybrid, use_mamba_kernels=False)
    with pytest.raises(ModelError, match="JambaForCausalLM"):
        build_map(model)  # type: ignore[arg-type]
