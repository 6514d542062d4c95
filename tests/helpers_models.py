"""Tiny random models of many families, made from their configurations; nothing is downloaded."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from helpers_tokenizer import ioi_tokenizer
from subspacelens.bench.tiny import make_loud
from subspacelens.model.lens import LensModel
from subspacelens.model.mapping import build_map

VOCABULARY = 97

_ROPE = dict(
    hidden_size=32,
    intermediate_size=56,
    num_hidden_layers=4,
    num_attention_heads=4,
    max_position_embeddings=64,
)
_GQA = _ROPE | dict(num_key_value_heads=2)
_GEMMA = _GQA | dict(head_dim=8)

FAMILIES: dict[str, dict] = {
    "llama": _GQA,
    "mistral": _GQA | dict(sliding_window=5),
    "qwen2": _GQA,
    "qwen3": _GQA | dict(head_dim=8),
    "gemma2": _GEMMA | dict(sliding_window=5),
    "gemma3_text": _GEMMA
    | dict(
        sliding_window=5,
        layer_types=["sliding_attention", "full_attention"] * 2,
    ),
    "gpt2": dict(n_embd=32, n_layer=4, n_head=4, n_positions=64),
    "gpt_neo": dict(
        hidden_size=32,
        num_layers=4,
        num_heads=4,
        attention_types=[[["global", "local"], 2]],
        window_size=5,
        max_position_embeddings=64,
    ),
    "gpt_neox": _ROPE,
    "phi": _ROPE,
    "opt": dict(
        hidden_size=32,
        ffn_dim=56,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=64,
        word_embed_proj_dim=32,
    ),
    "phi3": _GQA | dict(pad_token_id=0),
    "olmo2": _GQA,
    "falcon": dict(hidden_size=32, num_hidden_layers=4, num_attention_heads=4),
    "starcoder2": _GQA,
    "stablelm": _GQA,
    "bloom": dict(hidden_size=32, n_layer=4, n_head=4),
    "mpt": dict(d_model=32, n_layers=4, n_heads=4, max_seq_len=64),
    "mixtral": _GQA | dict(num_local_experts=4, num_experts_per_tok=2),
    "qwen3_moe": _GQA
    | dict(head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24),
}


def tiny_model(
    family: str,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    vocabulary: int = VOCABULARY,
) -> PreTrainedModel:
    """A random model of the family, four blocks of width 32, with weights large enough that every
    part matters (Transformers' own initial scale leaves the blocks nearly silent)."""
    torch.manual_seed(seed)
    special = dict(bos_token_id=1, eos_token_id=2)
    config = AutoConfig.for_model(family, vocab_size=vocabulary, **special | FAMILIES[family])
    moe = dict(experts_implementation="eager") if "num_experts_per_tok" in FAMILIES[family] else {}
    model = (
        AutoModelForCausalLM.from_config(config, dtype=dtype, **moe).eval().requires_grad_(False)
    )
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2:
            parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
        elif "bias" in name:
            parameter.copy_(0.1 * torch.randn_like(parameter))
        else:
            parameter.copy_(parameter * (1 + 0.1 * torch.randn_like(parameter)))
    return model


def lens_of(model: PreTrainedModel, name: str = "tiny") -> LensModel:
    """A model as the library takes it, without a tokenizer."""
    return LensModel(model, None, name, build_map(model))  # type: ignore[arg-type]


def tiny_lens(family: str, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> LensModel:
    """A `tiny_model`, named after its family, as the library takes it."""
    return lens_of(tiny_model(family, seed, dtype), family)


def hub_folder(folder, family: str, tokenizer=None, **shape) -> str:
    """A random model of the family in hub layout, by default with a tokenizer that knows the words
    of IOI."""
    tokenizer = tokenizer or ioi_tokenizer()
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, vocab_size=len(tokenizer), **FAMILIES[family] | shape)
    model = AutoModelForCausalLM.from_config(config).requires_grad_(False)
    make_loud(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
