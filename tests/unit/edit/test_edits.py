"""Patch to edit and back, proven in float64 against the model, full passes and an optimiser."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers_interrupts import interrupted_everywhere
from helpers_models import lens_of, tiny_lens, tiny_model
from helpers_oracle import activation, hooked_logits, random_pairs
from subspacelens import LensModel, Site
from subspacelens.core.errors import EditError, SiteError
from subspacelens.edit import (
    RankOneEdit,
    SecondMoment,
    ZeroSetter,
    edit_from_patch,
    edited,
    edited_each,
    key_vector,
)
from subspacelens.engine.capture import capture
from subspacelens.engine.patches import (
    PairwisePatch,
    PairwiseZeroSetting,
    SubspacePatch,
    ZeroSetting,
)
from subspacelens.engine.recall import recall

SITE = Site.parse("L1.mlp_act@X")


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def lens(request) -> LensModel:
    return tiny_lens(request.param, dtype=torch.float64)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def moment_of(dim: int, seed: int = 0, tokens: int = 400) -> SecondMoment:
    x = randn(tokens, dim, seed=seed) @ randn(dim, dim, seed=seed + 1)
    return SecondMoment(x.T @ x / tokens, tokens, 1.0)


@st.composite
def layers(draw):
    """A down-projection W, Σ, and an edit a bᵀ."""
    out, dim = draw(st.integers(2, 5)), draw(st.integers(7, 12))
    seed = draw(st.integers(0, 10**6))
    weight = randn(out, dim, seed=seed)
    return weight, moment_of(dim, seed), randn(1, out, seed=seed + 2), randn(1, dim, seed=seed + 3)


@settings(deadline=None, max_examples=40)
@given(layers())
def test_patch_becomes_an_edit_that_is_exact_at_its_token(layer):
    weight, moment, _, key = layer
    source, v = randn(*key.shape, seed=9), torch.nn.functional.normalize(randn(*key.shape), dim=-1)
    (edit,) = edit_from_patch(weight, 0, v, key, source, moment)
    patched = key[0] + SubspacePatch(v.T).delta(key, source)[0]
    torch.testing.assert_close((weight + torch.outer(edit.a, edit.b)) @ key[0], weight @ patched)


@settings(deadline=None, max_examples=40)
@given(layers(), st.integers(0, 10**6))
def test_no_other_vector_that_reads_the_key_is_quieter(layer, seed):
    _, moment, _, key = layer
    (b,) = key_vector(moment, key)
    assert float(b @ key[0]) == pytest.approx(1)
    other = randn(len(b), seed=seed)
    other = b + other - (other @ key[0]) / (key[0] @ key[0]) * key[0]
    assert float(b @ moment.matrix @ b) <= float(other @ moment.matrix @ other) * (1 + 1e-9)


@settings(deadline=None, max_examples=25)
@given(layers())
def test_zero_setting_closed_form_is_what_an_optimiser_finds(layer):
    """E[‖(W - W v vᵀ) x - (W + a bᵀ) x‖²] over v with W v ∥ a, by scipy, without the formulas."""
    weight, moment, a, b = layer
    setter = ZeroSetter.of(weight, moment)
    found = setter.directions(a, b)
    v, sign = found.v[0], float(found.sign[0])
    w, sigma, goal = weight.numpy(), moment.matrix.numpy(), np.outer(a[0], b[0])
    along = w @ v.numpy()
    on_a = (along @ goal[:, 0]) / (goal[:, 0] @ goal[:, 0]) * goal[:, 0]
    np.testing.assert_allclose(along, on_a, atol=1e-8 * (1 + np.abs(along).max()))

    def missed(direction: np.ndarray, sign: float) -> float:
        gap = -sign * np.outer(w @ direction, direction) - goal
        return float(np.trace(gap @ sigma @ gap.T))

    null = np.linalg.svd(w)[2][len(w) :].T
    onto = np.linalg.pinv(w) @ a[0].numpy()

    def objective(x: np.ndarray) -> float:
        return missed(np.exp(x[0]) * onto + null @ x[1:], sign)

    start = np.append(np.log(float(found.beta[0].sqrt())), null.T @ v.numpy())
    best = scipy.optimize.minimize(objective, start + 0.3, method="BFGS", options={"gtol": 1e-9})
    mine = missed(v.numpy(), sign)
    assert mine <= best.fun * (1 + 1e-6) + 1e-10
    expected = float(found.residual[0]) * float(a[0] @ a[0])
    assert mine == pytest.approx(expected, rel=1e-6, abs=1e-10)


@settings(deadline=None, max_examples=25)
@given(layers())
def test_an_edit_that_a_patch_can_make_is_found_again(layer):
    """b = -v, a = W v: then x - v vᵀx does exactly what the edit does."""
    weight, moment, _, v = layer
    found = ZeroSetter.of(weight, moment).directions(v @ weight.T, -v)
    torch.testing.assert_close(found.v, v, rtol=1e-6, atol=1e-8)
    assert float(found.residual[0]) == pytest.approx(0, abs=1e-8)
    mirrored = ZeroSetter.of(weight, moment).directions(v @ weight.T, v)
    torch.testing.assert_close(mirrored.v.abs(), v.abs(), rtol=1e-6, atol=1e-8)
    assert float(mirrored.sign[0]) == -1


def test_pairwise_patches_are_one_patch_a_pair():
    base, source, v = randn(4, 6), randn(4, 6, seed=1), randn(4, 6, seed=2)
    unit = torch.nn.functional.normalize(v, dim=-1)
    many = PairwisePatch(unit, unit).delta(base, source)
    zero = PairwiseZeroSetting(v, torch.tensor([1.0, 1, -1, 1])).delta(base, source)
    for i in range(4):
        one = SubspacePatch(unit[i][:, None]).delta(base[i : i + 1], source[i : i + 1])[0]
        torch.testing.assert_close(many[i], one)
        sign = -1 if i == 2 else 1
        torch.testing.assert_close(zero[i], sign * ZeroSetting(v[i]).delta(base[i], source[i]))


@pytest.fixture(scope="module")
def edits(lens):
    pairs = random_pairs([(8, 4), (9, 5), (8, 2)])
    captured = capture(lens, pairs, [SITE])
    v = torch.nn.functional.normalize(randn(3, lens.map.dim(SITE)), dim=-1)
    weight = lens.map.writer(SITE)
    moment = moment_of(lens.map.dim(SITE))
    base, source = captured.base[SITE], captured.source[SITE]
    return pairs, edit_from_patch(weight, 1, v, base, source, moment), v


def test_edit_in_the_weights_does_what_the_patch_does_at_the_token(lens, edits):
    pairs, made, v = edits
    weight = lens.map.writer(SITE)
    for pair, edit, direction in zip(pairs.pairs, made, v, strict=True):
        before, source = (activation(lens, p, SITE) for p in (pair.base, pair.source))
        patched = before + direction * (direction @ (source - before))
        written = {}

        def see(h, written=written):
            written["after"] = lens.map.writer(SITE) @ h
            return h

        with edited(lens, edit):
            hooked_logits(lens, pair.base.ids, SITE, pair.base.columns["X"], see)
        torch.testing.assert_close(written["after"], weight @ patched)


def test_weights_are_restored_bit_by_bit_even_after_an_error(lens, edits):
    _, made, _ = edits
    before = {name: p.detach().clone() for name, p in lens.model.named_parameters()}
    with pytest.raises(RuntimeError, match="inside"), edited(lens, *made):
        assert not torch.equal(
            lens.map.blocks[1].down_proj.module.weight,
            before[f"{lens.map.blocks[1].down_proj.name}.weight"],
        )
        raise RuntimeError("inside")
    with (
        pytest.raises(EditError, match="does not fit"),
        edited(lens, made[0], RankOneEdit(1, torch.ones(3), torch.ones(4))),
    ):
        pass
    assert all(torch.equal(p, before[name]) for name, p in lens.model.named_parameters())


def test_contexts_closed_out_of_order_leave_nothing(lens, edits):
    _, (first, second, third), _ = edits
    weight = lens.map.blocks[1].down_proj.module.weight
    before = weight.detach().clone()
    with edited(lens, second):
        only_second = weight.detach().clone()
    one, two, three = edited(lens, first), edited(lens, second, third), edited(lens, first)
    one.__enter__()
    two.__enter__()
    with edited(lens, third):
        one.__exit__(None, None, None)
    three.__enter__()
    two.__exit__(None, None, None)
    three.__exit__(None, None, None)
    assert torch.equal(weight, before)
    assert torch.is_grad_enabled()
    outer, inner = edited(lens, first), edited(lens, second)
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    assert torch.equal(weight, only_second)
    inner.__exit__(None, None, None)
    assert torch.equal(weight, before)


def test_an_interrupt_at_any_moment_leaves_no_edit(lens, edits, monkeypatch):
    _, (first, second, _), _ = edits
    weight = lens.map.blocks[1].down_proj.module.weight
    before = weight.detach().clone()

    def operation() -> None:
        with edited(lens, first), edited(lens, second):
            pass

    moments = 0
    for interrupted in interrupted_everywhere(operation, monkeypatch):
        moments += 1
        assert interrupted
        assert torch.equal(weight, before)
    assert moments > 50


def test_many_edits_in_one_pass_equal_one_at_a_time(lens, edits):
    pairs, made, _ = edits
    prompts = [pair.base for pair in pairs.pairs]
    tokens = torch.tensor([[p.answer, p.target] for p in pairs.pairs])
    together = recall(
        lens, prompts, tokens, around=lambda rows: edited_each(lens, [made[i] for i in rows])
    )
    for i, edit in enumerate(made):
        with edited(lens, edit):
            alone = recall(lens, prompts[i : i + 1], tokens[i : i + 1])
        torch.testing.assert_close(together.log_probs[i], alone.log_probs[0])
        assert int(together.top[i]) == int(alone.top[0])
    with (
        pytest.raises(EditError, match="one layer"),
        edited_each(lens, [made[0], RankOneEdit(2, made[0].a, made[0].b)]),
    ):
        pass
    modules = list(lens.model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in modules)


def test_a_layer_that_is_not_there_is_not_edited(lens, edits):
    _, (edit, *_), _ = edits
    weight = lens.map.blocks[-1].down_proj.module.weight
    before = weight.detach().clone()
    for layer in (-1, 4):
        with pytest.raises(SiteError), edited(lens, replace(edit, layer=layer)):
            pass
    assert torch.equal(weight, before)


def test_saved_edits_come_back_and_know_their_model(lens, edits, tmp_path):
    _, (edit, *_), _ = edits
    path = tmp_path / "edit.safetensors"
    edit.save(path, lens)
    again = RankOneEdit.load(path, lens)
    assert again.layer == 1 and torch.equal(again.a, edit.a) and torch.equal(again.b, edit.b)
    other = lens_of(tiny_model("llama", dtype=torch.float32), "other")
    mismatch = rf"was made with model {lens.id}, not with other .*weights"
    with pytest.raises(EditError, match=mismatch):
        RankOneEdit.load(path, other)
    with edited(lens, edit), pytest.raises(EditError, match=f"was made with model {lens.id}"):
        RankOneEdit.load(path, lens)
    path.write_bytes(b"damaged")
    with pytest.raises(EditError, match="cannot be read"):
        RankOneEdit.load(path, lens)
