"""Other tools' names for a site, in every architecture, and the tensors that are others."""

from __future__ import annotations

import pytest

from helpers_models import tiny_lens
from subspacelens import Site, SiteError
from subspacelens.interop.foreign import Name
from subspacelens.interop.names import site_named, spellings, spot_of

FAMILIES = ("llama", "gpt2", "gemma2", "gpt_neox", "opt")


@pytest.fixture(scope="module", params=FAMILIES)
def lens(request):
    return tiny_lens(request.param)


def test_every_name_of_a_site_leads_back_to_it(lens):
    for stream in lens.map.blocks[1].entries:
        site = Site(1, stream, "END")
        names = {each.tool: each.name for each in spellings(lens, site)}
        for tool in ("TransformerLens", "module path", "nnsight", "nnterp"):
            if names[tool] is not None:
                assert site_named(f"{names[tool]}@END", lens) == site, (tool, names[tool])
        component = names["pyvene"]
        if component is None:
            assert stream in ("attn_q", "attn_k", "attn_v")
            continue
        name = Name("module path", component) if "." in component else Name(
            "pyvene", f"layer.1.comp.{component}"
        )  # fmt: skip
        assert spot_of(name, lens).at("END") == site, component


def test_hooks_of_transformer_lens_need_no_model():
    for text, site in (
        ("blocks.18.mlp.hook_post@S2", "L18.mlp_act@S2"),
        ("blocks.3.hook_resid_pre@END", "L3.resid_pre@END"),
        ("blocks.9.attn.hook_z.3@END", "L9.head_z.3@END"),
        ("L18.mlp_act@S2", "L18.mlp_act@S2"),
    ):
        assert str(site_named(text)) == site
    for wrong in ("blocks.1.mlp.hook_pre@S2", "blocks.1.hook_resid_pre", "L1.mlp@S2", "x.input@S2"):
        with pytest.raises(SiteError):
            site_named(wrong)


def test_mlp_activation_is_told_apart_by_what_flows_through_it():
    name = Name("pyvene", "layer.1.comp.mlp_activation")
    assert str(spot_of(name, tiny_lens("gpt2"))) == "L1.mlp_act"
    assert str(spot_of(name, tiny_lens("gpt_neox"))) == "L1.mlp_act"
    for family in ("llama", "gemma2", "qwen3"):
        with pytest.raises(SiteError, match=r"L1.mlp_act is as wide and another tensor \(cosine"):
            spot_of(name, tiny_lens(family))


def test_what_a_norm_follows_is_another_tensor_in_transformer_lens():
    gemma, llama = tiny_lens("gemma2"), tiny_lens("llama")
    for hook in ("hook_mlp_out", "hook_attn_out"):
        assert site_named(f"blocks.1.{hook}@END", llama).stream == hook.removeprefix("hook_")
        with pytest.raises(SiteError, match="behind the norm that follows"):
            site_named(f"blocks.1.{hook}@END", gemma)
    (first, *_) = spellings(gemma, Site.parse("L1.mlp_out@END"))
    assert first.name == "blocks.1.mlp.hook_out" and "another tensor" in first.note


def test_what_is_written_between_attention_and_mlp_is_not_the_stream():
    for each in spellings(tiny_lens("llama"), Site.parse("L1.resid_mid@END")):
        assert each.name is None or "only the MLP reads" in each.note


def test_centred_streams_are_said():
    (first, *_) = spellings(tiny_lens("gpt2"), Site.parse("L1.resid_post@END"))
    assert "its mean over the dimensions is taken out" in first.note
    assert spellings(tiny_lens("llama"), Site.parse("L1.resid_post@END"))[0].note == ""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("model.layers.1.mlp.input@END", "no site of llama"),
        ("model.layers.9.output@END", "no modules there"),
        ("model.norm.output@END", "is in no block"),
        ("model.layers.1.self_attn.q_proj.input@END", "another tensor"),
        ("model.layers.1.mlp.act_fn@END", "ends with .input or .output"),
    ],
)
def test_paths_that_are_no_site(text, reason):
    with pytest.raises(SiteError, match=reason):
        site_named(text, tiny_lens("llama"))
