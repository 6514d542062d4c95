"""The faster forms, against Transformers' own modules and PyTorch's own attention."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AttentionInterface

from helpers_models import lens_of, tiny_lens, tiny_model
from subspacelens.core.progress import showing_progress
from subspacelens.engine.fused import ATTENTION, RMSNorm, fused_parts, packed_attention
from subspacelens.engine.prefix import Prefix


def test_rms_norm_has_the_right_derivative():
    x = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    gain = torch.randn(7, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: RMSNorm.apply(x, gain, 1e-3), x)


@settings(deadline=None, max_examples=30)
@given(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(0, 3),
    st.sampled_from(["none", "bool", "float", "heads"]),
)  # fmt: skip
def test_packed_attention_is_attention(count, groups, repeat, columns, prefix, kind):
    generator = torch.Generator().manual_seed(count + 7 * columns)

    def random(heads: int, length: int) -> torch.Tensor:
        shape = (count, heads, length, 4)
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    heads, keys = groups * repeat, prefix + columns
    query, key, value = random(heads, columns), random(groups, keys), random(groups, keys)
    causal = torch.ones(columns, keys, dtype=torch.bool).tril(prefix)[None, None]
    additive = torch.zeros(causal.shape, dtype=torch.float64).masked_fill(~causal, -1e30)
    bias = torch.randn(count, heads, columns, keys, generator=generator, dtype=torch.float64)
    mask = {
        "none": None,
        "bool": causal.expand(count, -1, -1, -1),
        "float": additive,
        "heads": additive + bias,
    }[kind]
    got, _ = packed_attention(torch.nn.Identity(), query, key, value, mask, scaling=0.3)
    full = additive + bias if kind == "heads" else additive
    expected = torch.nn.functional.scaled_dot_product_attention(
        query,
        key.repeat_interleave(repeat, 1),
        value.repeat_interleave(repeat, 1),
        attn_mask=full,
        scale=0.3,
    ).transpose(1, 2)
    torch.testing.assert_close(got, expected)
    pull = torch.randn(got.shape, generator=generator, dtype=torch.float64)
    ours = torch.autograd.grad(got, (query, key, value), pull)
    theirs = torch.autograd.grad(expected, (query, key, value), pull)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("family", "norms", "attention"),
    [
        ("llama", 9, True),
        ("gemma3_text", 4 * 6 + 1, True),
        ("gpt2", 0, True),
        ("falcon", 0, False),
        ("bloom", 0, False),
    ],
)
def test_what_is_used_was_proven(family, norms, attention):
    """LayerNorm is one operation already; falcon and bloom do not ask the attention interface."""
    lens = tiny_lens(family, dtype=torch.float32)
    parts = fused_parts(lens)
    assert (len(parts.norms), bool(parts.configs)) == (norms, attention)
    config = lens.model.config
    before = config._attn_implementation
    with pytest.raises(KeyError), parts.used():
        assert (config._attn_implementation == before) != attention
        raise KeyError
    assert config._attn_implementation == before
    assert not any("forward" in module.__dict__ for module in lens.model.modules())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_rounded_once(dtype):
    """Scores of tens of nats, which 8 bits of mantissa would get wrong by tenths."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        (4 * torch.randn(2, heads, 9, 16, generator=generator)).to(dtype).requires_grad_()
        for heads in (4, 2, 2)
    )
    exact = [x.detach().double().requires_grad_() for x in (query, key, value)]

    def whole(query, key, value):
        return torch.nn.functional.scaled_dot_product_attention(
            query, key.repeat_interleave(2, 1), value.repeat_interleave(2, 1), is_causal=True
        ).transpose(1, 2)

    def ours(query, key, value):
        return packed_attention(torch.nn.Identity(), query, key, value, None)[0]

    def split(query, key, value):
        prefix = Prefix(key[:, :, :5].detach(), value[:, :, :5].detach(), 5, 1, split=True)
        new = prefix.update(key[:, :, 5:], value[:, :, 5:])
        return packed_attention(torch.nn.Identity(), query[:, :, 5:], *new, None)[0]

    expected = whole(*exact)
    slopes = torch.autograd.grad(expected[:, 5:].sum(), exact)
    for attention in (ours, split):
        got = attention(query, key, value)[:, -4:]
        assert got.dtype == dtype
        gradients = torch.autograd.grad(got.sum(), (query, key, value))
        both = [
            (mine[:, :, 5:], right[:, :, 5:]) for mine, right in zip(gradients, slopes, strict=True)
        ]
        for mine, right in ((got, expected[:, 5:]), *both):
            assert (mine.double() - right).norm() <= torch.finfo(dtype).eps / 2 * right.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_what_is_not_the_models_attention_is_not_used_and_that_is_said(dtype, monkeypatch, capsys):
    def scaled(module, query, *args, **kwargs):
        return packed_attention(module, query * 1.2, *args, **kwargs)

    monkeypatch.setitem(AttentionInterface._global_mapping, ATTENTION, scaled)
    with showing_progress():
        parts = fused_parts(lens_of(tiny_model("llama", dtype=dtype), f"{dtype}"))
    assert not parts.configs and not parts.split
    assert capsys.readouterr().err.count(f"the attention of {dtype} as it is") == 1
