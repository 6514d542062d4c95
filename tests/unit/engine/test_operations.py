"""What people do to activations beside exchanging them, against plain hooks."""

from __future__ import annotations

import pytest
import torch

import subspacelens as sl
from helpers_models import tiny_lens
from helpers_oracle import activation, hooked_logits, random_pairs
from subspacelens.core.errors import TaskError
from subspacelens.core.site import Site
from subspacelens.engine import patches

LENGTHS = [(9, 4), (12, 7), (9, 4)]


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def operations(dim: int):
    """Each patch, and what a hook does at one token to base h, with the source's h'."""
    v, e, w, c, mean, bias = (draw(dim, seed=seed) for seed in range(6))
    basis, left, right = (
        torch.linalg.qr(draw(dim, 2))[0],
        draw(dim, 2, seed=7),
        draw(2, dim, seed=8),
    )
    onto = basis @ basis.T

    def relu(h):
        return torch.relu(e @ (h - c) + 0.3)

    def jump(h, side=1):
        before = side * e @ h + 1.5
        return before if before > 0.5 else 0 * before

    return {
        "add": (sl.patching.Add(v, 0.7), lambda h, _: h + 0.7 * v),
        "zero": (sl.patching.Ablate(basis), lambda h, _: h - onto @ h),
        "mean": (sl.patching.Ablate(basis, mean), lambda h, _: h - onto @ h + onto @ mean),
        "erase": (sl.patching.Erase(left, right, bias),
                  lambda h, _: h - left @ (right @ (h - bias))),
        "oblique": (sl.patching.Erase(left, right), lambda h, _: h - left @ (right @ h)),
        "latent": (sl.patching.SetLatent(e, w, bias=0.3, centre=c, value=2.0),
                   lambda h, _: h + (2.0 - relu(h)) * w),
        "jumprelu": (sl.patching.SetLatent(e, w, bias=1.5, threshold=0.5),
                     lambda h, there: h + (jump(there) - jump(h)) * w),
        "turned": (sl.patching.SetLatent(-e, w, bias=1.5, threshold=0.5),
                   lambda h, there: h + (jump(there, -1) - jump(h, -1)) * w),
    }  # fmt: skip


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("stream", ["mlp_act", "resid_post", "head_z"])
def test_every_operation_is_what_a_plain_hook_does(family, stream):
    lens, site = tiny_lens(family), Site(1, stream, "X", 2 if stream == "head_z" else None)
    pairs = random_pairs(LENGTHS)
    wanted = operations(lens.map.dim(site))
    effects = sl.patch(lens, pairs, site, {name: patch for name, (patch, _) in wanted.items()})
    for name, (_, change) in wanted.items():
        for index, pair in enumerate(pairs):
            there = activation(lens, pair.source, site)
            logits = hooked_logits(
                lens, pair.base.ids, site, pair.base.columns["X"],
                lambda h, change=change, there=there: change(h, there),
            )  # fmt: skip
            expected = float(logits[pair.answer] - logits[pair.target])
            measured = float(effects[name].patched.logit_diff[index])
            assert measured == pytest.approx(expected, abs=1e-4), name
    moved = {name: abs(effect.drop).max() for name, effect in effects.items()}
    either = max(moved.pop("jumprelu"), moved.pop("turned"))  # Of the two one may be silent.
    assert min(either, *moved.values()) > 1e-3


def test_an_addition_is_turned_pair_by_pair():
    base, vector = draw(3, 5), draw(5, seed=1)
    delta = sl.patching.Add(vector, 2.0, torch.tensor([1, -1, 0])).delta(base, base)
    torch.testing.assert_close(delta, torch.stack([2 * vector, -2 * vector, 0 * vector]))


def test_what_is_erased_stays_erased():
    """A projection: doing it again changes nothing."""
    base = draw(4, 6)
    left, right = draw(6, 2, seed=1), draw(2, 6, seed=2)
    right = torch.linalg.inv(right @ left) @ right
    for patch in (
        sl.patching.Ablate(torch.linalg.qr(left)[0], draw(6, seed=3)),
        sl.patching.Erase(left, right, draw(6, seed=3)),
    ):
        once = base + patch.delta(base, base)
        torch.testing.assert_close(once + patch.delta(once, once), once)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize(("where", "first"), [("*", 0), ("X:", "X"), ("X+END", None)])
def test_an_addition_at_several_columns_is_what_plain_hooks_do(family, where, first):
    """Turned pair by pair, and with sources of another length, which it does not read."""
    lens, pairs = tiny_lens(family), random_pairs(LENGTHS, shift=2)
    vector, sign = draw(lens.map.d_model), torch.tensor([1.0, -1.0, 1.0])
    effect = sl.patch(lens, pairs, f"L1.resid_post@{where}", sl.patching.Add(vector, 0.7, sign))
    for index, pair in enumerate(pairs):
        at = [*{pair.base.columns["X"], len(pair.base.ids) - 1}]
        if first is not None:
            at = slice(pair.base.columns[first] if first else 0, None)
        logits = hooked_logits(
            lens, pair.base.ids, Site(1, "resid_post", "X"), at,
            lambda h, s=sign[index]: h + s * 0.7 * vector,
        )  # fmt: skip
        expected = float(logits[pair.answer] - logits[pair.target])
        assert float(effect.patched.logit_diff[index]) == pytest.approx(expected, abs=1e-4)
    assert abs(effect.drop).min() > 1e-3
    if where == "X+END":
        alone = effect.single["L1.resid_post@X"].drop + effect.single["L1.resid_post@END"].drop
        assert alone == pytest.approx(effect.drop - effect.beyond, abs=1e-6)
    with pytest.raises(TaskError, match="no counterpart"):
        sl.patch(lens, pairs, "L1.resid_post@*")


def test_which_patches_read_the_source():
    v, basis = draw(5), torch.linalg.qr(draw(5, 2))[0]
    reading = (patches.Full(), patches.SubspacePatch(basis), patches.SetLatent(v, v))
    alone = (
        patches.NoOp(), patches.ZeroSetting(v), patches.Add(v), patches.Ablate(basis),
        patches.Erase(basis, basis.T), patches.SetLatent(v, v, value=1.0),
        patches.PairwiseZeroSetting(draw(3, 5), torch.ones(3)),
    )  # fmt: skip
    base, one, other = draw(3, 5), draw(3, 5, seed=1), draw(3, 5, seed=2)
    for patch in (*reading, *alone):
        same = torch.equal(patch.delta(base, one), patch.delta(base, other))
        assert patches.reads_source(patch) is not same, patch
