"""The faster forms, against Transformers' own modules and PyTorch's own attention."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers_models import tiny_lens
from subspacelens.engine.fused import RMSNorm, fused_parts, packed_attention


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
