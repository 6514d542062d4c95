"""Writers of the stream add up to it, in families of every build."""

from __future__ import annotations

import pytest
import torch

from helpers_models import tiny_lens
from helpers_oracle import random_pairs
from subspacelens.core.errors import SiteError
from subspacelens.core.site import Site
from subspacelens.engine.capture import capture
from subspacelens.find.sources import needed, parts_of, sources
from subspacelens.fit.subspace import Subspace
from subspacelens.measure.patch import patch

SITE = Site(2, "resid_post", "END")


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "gpt_neox", "olmo2", "phi"])
def test_parts_add_up(family):
    lens = tiny_lens(family)
    captured = capture(lens, random_pairs([(7, 3)] * 6), needed(lens, SITE))
    parts = parts_of(captured, SITE)
    total = torch.stack([part.change for part in parts]).sum(0)
    assert torch.allclose(total, captured.difference(SITE), atol=1e-8)
    assert {part.layer for part in parts} == {None, 0, 1, 2}
    told_apart = any(part.head is not None for part in parts)
    assert told_apart == (family not in ("gemma2", "olmo2"))  # a norm follows the attention


def test_a_sum_that_is_wrong_is_noticed():
    lens = tiny_lens("llama")
    captured = capture(lens, random_pairs([(7, 3)] * 6), needed(lens, SITE))
    captured.source[Site(1, "resid_post", "END")].mul_(1.1)
    with pytest.raises(SiteError, match="what its writers add is not what is there"):
        parts_of(captured, SITE)


def test_a_writer_is_patched_alone():
    """Of the embedding, against a patch with a change that was computed here."""
    lens, pairs = tiny_lens("llama"), random_pairs([(7, 3)] * 6)
    basis = torch.linalg.qr(torch.randn(32, 1, generator=torch.Generator().manual_seed(0)))[0]
    subspace = Subspace.of(lens, SITE, basis)
    writers, readers = sources(lens, pairs, subspace, shifted=False, memory=None)
    captured = capture(lens, pairs, [SITE, Site(0, "resid_pre", "END")])
    change = captured.difference("L0.resid_pre@END")

    class Alone:
        def delta(self, base, source):
            v = subspace.basis.to(base)
            return (change @ v) @ v.T

    both = patch(lens, captured, SITE, {"own": subspace, "part": Alone()})
    (embedding,) = [writer for writer in writers if writer.name == "embedding"]
    share = both["part"].nats.value / both["own"].nats.value
    assert embedding.effect == pytest.approx(share, rel=1e-3)
    assert readers and all(reader.layer > 2 for reader in readers)


def test_of_an_mlp_there_are_readers_alone():
    lens, pairs = tiny_lens("llama"), random_pairs([(7, 3)] * 6)
    site = Site(1, "mlp_act", "END")
    basis = torch.linalg.qr(torch.randn(56, 1, generator=torch.Generator().manual_seed(0)))[0]
    writers, readers = sources(
        lens, pairs, Subspace.of(lens, site, basis), shifted=False, memory=None
    )
    assert not writers and readers
