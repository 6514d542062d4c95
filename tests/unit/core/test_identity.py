"""Whose numbers these are: equal for equal models, and for no others."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from helpers_models import FAMILIES, lens_of, tiny_model
from subspacelens.core.errors import ModelError, SubspaceError
from subspacelens.core.identity import MODEL, NUMBERS, Identity, identity_of
from subspacelens.engine.fused import fused_parts
from subspacelens.model.lens import unchanged


@pytest.fixture
def model():
    return tiny_model("llama", 0)


def here(model: nn.Module) -> Identity:
    return identity_of(model, "tiny")


def test_the_same_model_is_equal_whatever_it_is_called(model):
    again = identity_of(tiny_model("llama", 0), "another name")
    assert here(model) == again and here(model).key == again.key
    assert here(model).differences(again) == () and again.lasting
    again.require(here(model), "a capture")


def steer(_module, _args, output):
    return output


def no_hook(model):
    model.model.layers[1].mlp.register_forward_hook(steer)


def no_pre_hook(model):
    model.model.layers[1].mlp.register_forward_pre_hook(lambda module, args: None)


def another_forward(model):
    mlp = model.model.layers[0].mlp
    mlp.forward = lambda x: 2 * type(mlp).forward(mlp, x)


def weights_by_data(model):
    model.lm_head.weight.data[3, 5] += 1e-6


def one_column_negated(model):
    model.model.layers[0].mlp.down_proj.weight.data[:, 1] *= -1


def a_weight_replaced(model):
    layer = model.model.layers[0].mlp.down_proj
    layer.weight = nn.Parameter(layer.weight.detach() * 2)


def rope_theta(model):
    model.config.rope_parameters["rope_theta"] = 77.0


def eps_of_the_configuration(model):
    model.config.rms_norm_eps = 0.5


def eps_of_a_live_module(model):
    model.model.norm.variance_epsilon = 0.5


def a_buffer_by_data(model):
    model.model.rotary_emb.inv_freq.data[0] *= 1.001


def another_activation(model):
    model.model.layers[0].mlp.act_fn = nn.ReLU()


CHANGES = [
    (no_hook, "hooks"), (no_pre_hook, "hooks"), (another_forward, "hooks"),
    (weights_by_data, "weights"), (one_column_negated, "weights"), (a_weight_replaced, "weights"),
    (rope_theta, "configuration"), (eps_of_the_configuration, "configuration"),
    (eps_of_a_live_module, "settings"), (a_buffer_by_data, "buffers"),
    (another_activation, "settings"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "what"), CHANGES, ids=lambda x: getattr(x, "__name__", x))
def test_a_change_is_noticed_and_named(model, change, what):
    before = here(model)
    change(model)
    after = here(model)
    (difference,) = before.differences(after, MODEL)
    assert what in difference and before != after and before.key != after.key
    with pytest.raises(SubspaceError, match=rf"^the file was made with model tiny, .*{what}"):
        before.require(after, "the file", MODEL, SubspaceError)


def test_what_is_taken_back_is_the_same_again(model):
    before = here(model)
    weight = model.model.layers[0].mlp.down_proj.weight
    kept = weight.detach().clone()
    weight.data.mul_(-1)
    assert here(model) != before
    weight.data.copy_(kept)
    handle = model.model.norm.register_forward_hook(steer)
    assert here(model) != before
    handle.remove()
    assert here(model) == before


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_every_single_bit_of_a_weight_counts(dtype):
    model = nn.ModuleDict({"a": nn.Linear(9, 7, dtype=dtype)})
    before = here(model)
    flat = model["a"].weight.data.view(-1).view(torch.uint8)
    for place in range(len(flat)):
        for bit in (0, 7):
            flat[place] ^= 1 << bit
            assert here(model) != before
            flat[place] ^= 1 << bit
    flat = model["a"].weight.data
    flat.neg_()
    assert here(model) != before


def test_a_dtype_is_a_part_of_what_the_numbers_are(model):
    before = here(model)
    after = here(model.float())
    words = " ".join(before.differences(after))
    assert "dtype (float64, not float32)" in words and "weights" in words


def test_library_versions_and_attention_are_parts_of_numbers_but_not_of_the_model(model):
    before = here(model)
    model.config._attn_implementation = "eager"
    after = here(model)
    assert before != after and before.differences(after, MODEL) == ()
    assert "library versions" in before.differences(after, NUMBERS)[0]


def test_a_hook_of_another_process_is_another_hook(model):
    no_hook(model)
    now = here(model)
    assert now == here(model) and not now.lasting
    script = (
        f"import sys; sys.path[:0] = {[str(Path(__file__).parents[2])]!r}\n"
        "from helpers_models import tiny_model\n"
        "from subspacelens.core.identity import identity_of\n"
        "model = tiny_model('llama', 0)\n"
        "print(identity_of(model, 'clean').to_json())\n"
        "model.model.layers[1].mlp.register_forward_hook(lambda module, args, output: output)\n"
        "print(identity_of(model, 'hooked').to_json())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    clean, hooked = map(Identity.from_json, done.stdout.splitlines())
    assert hooked.differences(now, MODEL) and not hooked.lasting
    assert clean == here(tiny_model("llama", 0))


@pytest.mark.parametrize("family", FAMILIES)
def test_passes_of_the_model_change_nothing(family):
    model = tiny_model(family, 0)
    before = here(model)
    ids = torch.arange(1, 10)[None]
    with torch.no_grad():
        model(input_ids=ids, output_hidden_states=True, use_cache=True)
    assert here(model).differences(before) == ()
    assert here(tiny_model(family, 0)) == before and here(tiny_model(family, 1)) != before


def test_another_hook_in_the_same_place_is_another_model(model):
    @contextmanager
    def steering(by: float):
        handle = model.model.norm.register_forward_hook(lambda m, a, out: out + by)
        yield
        handle.remove()

    with steering(1.0):
        once = here(model)
    with steering(2.0):
        assert here(model) != once


def test_the_engine_at_work_does_not_count(model):
    lens = lens_of(model)
    before = lens.identity
    with fused_parts(lens).used():
        assert lens.identity == before
    assert before.weights == lens.weights_sha256


def test_what_is_one_whole_reads_the_model_once(model):
    lens = lens_of(model)
    before = lens.identity
    with unchanged(lens):
        with torch.no_grad():
            next(model.parameters()).mul_(1.5)
        assert lens.identity == before and lens.weights_sha256 == before.weights
    assert lens.identity.differences(before) and lens.weights_sha256 != before.weights


def test_offloaded_weights_have_no_identity(model):
    model.lm_head.to("meta")
    with pytest.raises(ModelError, match=r"lm_head.weight is not in memory"):
        here(model)


def test_it_is_read_back_or_refused(model):
    now = here(model)
    assert Identity.from_json(now.to_json()) == now
    for text in ("[]", "{}", '"a"', now.to_json().replace('"float64"', "3")):
        with pytest.raises(ValueError):
            Identity.from_json(text)
