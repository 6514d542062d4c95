"""Attention over a prefix that is not copied, against PyTorch's own attention over all of it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers_models import FAMILIES, tiny_lens
from subspacelens.engine.fused import fused_parts
from subspacelens.engine.prefix import Prefix, prefix_attention, prefix_of

ALWAYS_JOINED = {"gpt_neo", "falcon", "bloom", "mpt"}
"""They have an attention of their own, or none that is called `sdpa`."""


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.integers(1, 3), st.integers(1, 3),
    st.integers(0, 3), st.integers(0, 2), st.sampled_from(["none", "shared", "rows", "heads"]),
)  # fmt: skip
def test_prefix_attention_is_attention(m, n, groups, repeat, columns, old, between, kind):
    generator = torch.Generator().manual_seed(m + 7 * columns)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    heads, new = groups * repeat, between + columns
    query = random(m * n, heads, columns, 4).requires_grad_()
    key, value = (random(m * n, groups, new, 4).requires_grad_() for _ in range(2))
    old_key, old_value = random(n, groups, old, 4), random(n, groups, old, 4)
    shapes = {"shared": (1, 1), "rows": (n, 1), "heads": (n, heads)}
    bias = None if kind == "none" else random(*shapes[kind], columns, old + new)

    got = prefix_attention(query, key, value, old_key, old_value, bias, 0.3)
    prefix = Prefix(old_key, old_value, old, m)
    whole_key, whole_value = prefix.joined(key, value)
    full = None
    if bias is not None:
        full = bias if kind == "shared" else bias.repeat(m, 1, 1, 1)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query,
        whole_key.repeat_interleave(repeat, 1),
        whole_value.repeat_interleave(repeat, 1),
        attn_mask=full,
        scale=0.3,
    ).transpose(1, 2)
    torch.testing.assert_close(got, expected)
    assert got.is_contiguous()
    pull = random(*got.shape)
    ours = torch.autograd.grad(got, (query, key, value), pull)
    theirs = torch.autograd.grad(expected, (query, key, value), pull)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_a_prefix_is_found_only_through_its_own_answer():
    old = torch.randn(2, 1, 3, 4)
    new = torch.randn(2, 1, 1, 4), torch.randn(2, 1, 1, 4)
    one, other = (Prefix(old, old, 3, 1, split=True) for _ in range(2))
    keys, values = one.update(*new)
    assert prefix_of(keys, values) is one
    assert prefix_of(keys + 0, values) is None
    assert prefix_of(keys + 0, values + 0) is None
    assert prefix_of(keys, other.update(new[0].clone(), new[1].clone())[1]) is None


@pytest.mark.parametrize("family", FAMILIES)
def test_where_the_prefix_is_not_copied(family):
    lens = tiny_lens(family)
    usual = lens.model.config._attn_implementation == "sdpa" and family not in ALWAYS_JOINED
    assert fused_parts(lens).split == usual
