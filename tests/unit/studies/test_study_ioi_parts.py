"""The parts of the IOI study on tiny random models, each against an oracle of its own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from helpers_models import FAMILIES
from helpers_oracle import random_pairs
from helpers_tokenizer import ioi_tokenizer
from subspacelens import Site, capture, ioi, wrap
from subspacelens.bench.tiny import make_loud
from subspacelens.core.errors import ModelError
from subspacelens.core.geometry import Split
from subspacelens.core.records import ModelRecord
from subspacelens.engine import random_weights
from subspacelens.engine.effect import Effect
from subspacelens.engine.outcomes import Outcomes
from subspacelens.engine.patches import Full, SubspacePatch
from subspacelens.engine.random_weights import mlp_input, random_mlp, random_model
from subspacelens.fit import mean_difference, random
from subspacelens.measure.maps import PatchingMap, StreamEffects
from subspacelens.measure.readers import ReaderShare, frozen
from subspacelens.studies.ioi import circuit as ioi_circuit
from subspacelens.studies.ioi import table as ioi_table
from subspacelens.studies.ioi.constructed import constructed_illusion
from subspacelens.studies.ioi.contrast import contrasts
from subspacelens.studies.ioi.data import shuffled_labels, with_first_token
from subspacelens.studies.ioi.directions import v_grads
from subspacelens.studies.ioi.dormant import dormant
from subspacelens.studies.ioi.heads import query_maps, score_gradients, watch
from subspacelens.studies.ioi.success import writers
from subspacelens.studies.ioi.table import Evaluation, evaluate
from subspacelens.tasks.ioi_variants import ioi_variants


def ioi_lens(family: str, dtype: torch.dtype = torch.float32, **changes):
    torch.manual_seed(0)
    tokenizer = ioi_tokenizer(bos=False)
    shape = FAMILIES[family] | dict(bos_token_id=0, eos_token_id=1) | changes
    config = AutoConfig.for_model(family, vocab_size=len(tokenizer), **shape)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval().requires_grad_(False)
    make_loud(model)
    return wrap(model, tokenizer, family)


@pytest.fixture(scope="module")
def llama():
    return ioi_lens("llama", torch.float64)


@pytest.fixture(scope="module")
def pairs(llama):
    return ioi(llama.tokenizer, train=10, test=1, held_out=0).train


END, S2 = Site(1, "resid_post", "END"), Site(1, "resid_post", "S2")


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_heads_look_where_the_model_itself_says(family):
    lens = ioi_lens(family)
    pairs = ioi(lens.tokenizer, train=6, test=1, held_out=0).train
    watched = watch(lens, pairs, END, torch.zeros(len(pairs), lens.map.d_model))
    assert lens.model.config._attn_implementation == "sdpa"
    lens.model.set_attn_implementation("eager")
    for row, pair in enumerate(pairs.pairs):
        given = lens.model(torch.tensor([pair.base.ids]), output_attentions=True).attentions
        for label, values in (("IO", watched.io), ("S1", watched.subject)):
            expected = torch.stack([a[0, :, -1, pair.base.columns[label]] for a in given])
            torch.testing.assert_close(values[row].float(), expected, rtol=1e-4, atol=1e-6)
    lens.model.set_attn_implementation("sdpa")


def test_pushes_of_all_heads_are_what_attention_adds(llama, pairs):
    site = Site(2, "attn_out", "END")
    captured = capture(llama, pairs, [site, Site(3, "resid_post", "END")])
    watched = watch(llama, pairs, END, torch.zeros(len(pairs), llama.map.d_model))
    last = captured.base[Site(3, "resid_post", "END")]
    scale = (llama.map.tail.norms[0](last) / last).detach()
    rows = llama.map.tail.head.weight
    answers = torch.tensor([(p.answer, p.target) for p in pairs.pairs])
    towards = (rows[answers[:, 0]] - rows[answers[:, 1]]) * scale
    expected = (captured.base[site] * towards).sum(1)
    torch.testing.assert_close(watched.attribution[:, 2].sum(1), expected, rtol=1e-5, atol=1e-6)
    logit_diff = (last * towards).sum(1).float()
    torch.testing.assert_close(logit_diff, captured.clean.logit_diff, rtol=1e-4, atol=1e-5)


def test_score_gradients_are_finite_differences(llama, pairs):
    heads = [(2, 1), (3, 0)]
    gradients = score_gradients(llama, pairs, [END, S2], heads)[END]
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(llama.map.d_model, dtype=torch.float64, generator=generator)
    step = 1e-2 * direction.expand(len(pairs), -1)
    sign = torch.tensor([1.0 if p.base.columns["IO"] < p.base.columns["S1"] else -1.0
                         for p in pairs.pairs])  # fmt: skip
    ends = [watch(llama, pairs, END, s * step).score * sign[:, None, None] for s in (1, -1)]
    for place, (layer, head) in enumerate(heads):
        numeric = (ends[0] - ends[1])[:, layer, head] / 2e-2
        torch.testing.assert_close(gradients[place] @ direction, numeric, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize(
    ("family", "start"),
    [("llama", lambda head, w: head * w), ("gpt2", lambda head, w: head * w),
     ("gpt_neox", lambda head, w: 3 * head * w)],
)  # fmt: skip
def test_query_maps_are_found_in_fused_and_separate_projections(family, start):
    lens = ioi_lens(family)
    pairs = ioi(lens.tokenizer, train=2, test=1, held_out=0).train
    width = lens.map.d_model // 4
    for share, head in zip(query_maps(lens, pairs, END, [(2, 1), (3, 3)]), (1, 3), strict=True):
        assert (share.rows.start, share.rows.stop) == (
            start(head, width),
            start(head, width) + width,
        )
        assert share.reader.attention and share.layer in (2, 3)


def test_a_model_that_hides_its_attention_is_refused(llama, pairs, monkeypatch):
    kind = type(llama.model.model.layers[0].self_attn)
    forward = kind.forward
    monkeypatch.setattr(kind, "forward", lambda *a, **k: (forward(*a, **k)[0], None))
    with pytest.raises(ModelError, match="does not give its attention weights"):
        watch(llama, pairs, END, torch.zeros(len(pairs), llama.map.d_model))
    assert llama.model.config._attn_implementation == "sdpa"


def test_freezing_every_reader_leaves_the_direct_path(llama, pairs):
    captured = capture(llama, pairs, [END, Site(3, "resid_post", "END")])
    delta = Full().delta(captured.base[END], captured.source[END])
    everyone = tuple(
        ReaderShare("", layer, reader, slice(None), 0.0)
        for layer in (2, 3)
        for reader in llama.map.blocks[layer].readers
    )
    replay = captured.at(END)
    outcomes = frozen(replay, delta, everyone)
    logits = llama.map.tail.logits(captured.base[Site(3, "resid_post", "END")] + delta)
    answers = torch.tensor([(p.answer, p.target) for p in pairs.pairs])
    expected = logits.gather(1, answers)
    torch.testing.assert_close(outcomes.logit_diff, (expected[:, 0] - expected[:, 1]).float())
    assert torch.equal(outcomes.top, logits.argmax(1))
    torch.testing.assert_close(
        frozen(replay, delta, ()).logit_diff, replay.delta_outcomes(delta).logit_diff
    )


def test_freezing_at_an_inner_token(llama, pairs):
    """With everything that reads S2 kept, a patch of S2 changes nothing at the last token."""
    captured = capture(llama, pairs, [S2])
    delta = Full().delta(captured.base[S2], captured.source[S2]) + 1
    everyone = tuple(
        ReaderShare("", layer, reader, slice(None), 0.0)
        for layer in (2, 3)
        for reader in llama.map.blocks[layer].readers
    )
    replay = captured.at(S2)
    assert not torch.allclose(replay.delta_outcomes(delta).logit_diff, captured.clean.logit_diff)
    outcomes = frozen(replay, delta, everyone)
    torch.testing.assert_close(outcomes.logit_diff, captured.clean.logit_diff, rtol=1e-4, atol=1e-5)


def test_writers_add_up_to_what_differs(llama, pairs, monkeypatch):
    monkeypatch.setattr("subspacelens.studies.ioi.success.WRITERS", 1000)
    captured = capture(llama, pairs, [END])
    v = mean_difference(llama, captured, END)
    rows = writers(llama, pairs, v)
    assert len(rows) == 2 * (1 + llama.map.blocks[0].n_heads)
    assert sum(row.share for row in rows) == pytest.approx(1, abs=1e-6)


MLP = Site(2, "mlp_act", "END")
MIDDLE = Site(2, "resid_mid", "END")


def test_random_mlp_writes_what_its_copy_would(llama, pairs):
    out = Site(2, "mlp_out", "END")
    captured = capture(llama, pairs, [MLP, MIDDLE, out])
    told, random_features = random_mlp(llama, captured, MLP, seed=3)
    assert not torch.allclose(random_features.base[MLP], captured.base[MLP])
    change = random_features.difference(MLP) @ told.map.writer(MLP).T
    at_output = captured.at(out).delta_outcomes(change)
    outcomes = random_features.at(MLP).delta_outcomes(random_features.difference(MLP))
    torch.testing.assert_close(outcomes.logit_diff, at_output.logit_diff)
    assert torch.equal(llama.map.writer(MLP), llama.model.model.layers[2].mlp.down_proj.weight)


def test_random_mlp_with_its_own_weights_is_the_mlp(llama, pairs, monkeypatch):
    monkeypatch.setattr(random_weights, "_randomise", lambda module, seed, kind: None)
    captured = capture(llama, pairs, [MLP, MIDDLE])
    told, same = random_mlp(llama, captured, MLP)
    torch.testing.assert_close(same.base[MLP], captured.base[MLP])
    torch.testing.assert_close(same.source[MLP], captured.source[MLP])
    assert torch.equal(told.map.writer(MLP), llama.map.writer(MLP))


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "phi3"])
def test_random_mlp_on_other_families(family, monkeypatch):
    lens = ioi_lens(family)
    site = replace(MLP, layer=1)
    captured = capture(lens, random_pairs([(9, 4)] * 6), [site, mlp_input(lens, site)])
    monkeypatch.setattr(random_weights, "_randomise", lambda module, seed, kind: None)
    told, same = random_mlp(lens, captured, site)
    torch.testing.assert_close(same.base[site], captured.base[site])
    assert torch.equal(told.map.writer(site), lens.map.writer(site))


def test_shuffled_weights_are_the_real_ones_in_another_order(llama, pairs):
    captured = capture(llama, pairs, [MLP, MIDDLE])
    told, _ = random_mlp(llama, captured, MLP, seed=3, kind="shuffled")
    ours, real = told.map.writer(MLP), llama.map.writer(MLP)
    assert not torch.equal(ours, real)
    assert torch.equal(ours.flatten().sort().values, real.flatten().sort().values)


def test_random_model_keeps_shape_and_spread_and_leaves_the_model(llama):
    before = {name: p.clone() for name, p in llama.model.named_parameters()}
    copy = random_model(llama, seed=1)
    for name, parameter in copy.model.named_parameters():
        own = before[name]
        assert torch.equal(own, dict(llama.model.named_parameters())[name])
        if own.ndim == 2:
            assert not torch.allclose(own, parameter)
            assert parameter.std() == pytest.approx(float(own.std()), rel=0.1)


def test_constructed_illusion_senses_in_the_kernel_and_writes_the_target(llama, pairs):
    captured = capture(llama, pairs, [MLP, END])
    target = random(llama, captured, END)
    v = constructed_illusion(captured, MLP, target).basis.double()
    weight = llama.map.writer(MLP)
    split = Split.of(weight)
    row, null = split.row(v), split.null(v)
    assert float(row.norm()) == pytest.approx(0.5**0.5, abs=1e-5) == float(null.norm())
    written = weight @ v
    cosine = (written.T @ target.basis.double()).abs() / written.norm()
    assert float(cosine) == pytest.approx(1, abs=1e-5)


def test_chunks_change_nothing(llama, pairs, monkeypatch):
    captured = capture(llama, pairs, [MLP, END])
    patches = {
        site: {"full": Full(), "v": SubspacePatch(random(llama, captured, site).basis), "no": None}
        for site in (MLP, END)
    }
    whole = evaluate(llama, pairs, patches, keep=[END])
    monkeypatch.setattr(ioi_table, "CHUNK", 3)
    pieces = evaluate(llama, pairs, patches, keep=[END])
    for site in (MLP, END):
        assert pieces.effects[site].keys() == {"full", "v"}
        for name, effect in whole.effects[site].items():
            torch.testing.assert_close(
                pieces.effects[site][name].patched.logit_diff, effect.patched.logit_diff
            )
    torch.testing.assert_close(pieces.activations[END][1], captured.source[END])
    direct = captured.at(END).delta_outcomes(captured.difference(END))
    torch.testing.assert_close(whole.effects[END]["full"].patched.logit_diff, direct.logit_diff)
    assert [row.patch for row in whole.rows()] == ["full", "v", "full", "v"]


def test_the_papers_numbers_stand_at_end_only(llama, pairs):
    at_s2 = Site(2, "mlp_act", "S2")
    evaluation = evaluate(llama, pairs, {MLP: {"full": Full()}, at_s2: {"full": Full()}})
    first, second = evaluation.rows(paper=True)
    assert first.paper is not None and (first.paper.fldd, first.paper.iia) == (-0.08, 0.0)
    assert second.paper is None and all(row.paper is None for row in evaluation.rows())


def made_map(curves: dict[str, list[float]], clean: float = 4.0) -> PatchingMap:
    """A map with these FLDD curves by stream, the same at both labels."""

    def effects(values: list[float], width: int = 1) -> StreamEffects:
        fldd = np.zeros((len(values), width))
        fldd[:, 0] = values
        return StreamEffects(fldd, fldd * clean, np.zeros_like(fldd))

    layers = len(curves["resid_post"])
    streams = {s: curves.get(s, [0.0] * layers) for s in ioi_circuit.STREAMS}
    return PatchingMap(
        model=ModelRecord(id="made", weights_sha256="", dtype="float32"),
        task="ioi",
        split="train",
        pairs=4,
        pairs_sha256="",
        shifted=False,
        clean_logit_diff=clean,
        clean_top_answer=1.0,
        labels=ioi_circuit.LABELS,
        streams=ioi_circuit.STREAMS,
        layers=layers,
        effects={
            (label, stream): effects(values, 4 if stream == "head_z" else 1)
            for label in ioi_circuit.LABELS
            for stream, values in streams.items()
        },
        captures=1,
        seconds=0.0,
    )


def test_the_circuit_is_read_off_the_curves(llama):
    lens = replace(llama, map=replace(llama.map, blocks=llama.map.blocks * 2))
    map = made_map(
        {
            "resid_post": [0.0, 0.1, 0.9, 1.0, 1.0, 0.6, 0.05, 0.0],
            "attn_out": [0.0, 0.1, 0.7, 0.0, 0.0, 0.0, 0.0, -0.3],
        }
    )
    bottleneck, mlps = ioi_circuit._between(lens, map, "END")
    assert bottleneck == Site(2, "resid_post", "END")
    assert mlps == tuple(Site(layer, "mlp_act", "END") for layer in (2, 3, 4))
    roles = ioi_circuit._passed(map, bottleneck, mlps)
    assert [r.component for r in roles if r.role == "reading layer"] == ["L5", "L6"]
    writers = [r.component for r in ioi_circuit._writers(map, "END")]
    assert writers == ["L2.attn_out@END"]


def test_a_signal_that_is_never_whole_still_gives_sites(llama):
    map = made_map({"resid_post": [0.0, 0.2, 0.1, 0.0], "attn_out": [0.0, 0.0, 0.0, 0.1]})
    bottleneck, mlps = ioi_circuit._between(llama, map, "S2")
    assert bottleneck == Site(2, "resid_post", "S2") and mlps == (Site(2, "mlp_act", "S2"),)


def test_first_token_moves_every_label_by_one(llama, pairs):
    moved = with_first_token(pairs, 0)
    assert with_first_token(moved, 0) == moved
    for old, new in zip(pairs, moved, strict=True):
        assert new.base.ids == (0, *old.base.ids)
        assert new.base.columns == {label: c + 1 for label, c in old.base.columns.items()}


def test_shuffled_labels_exchange_half_of_either_direction(pairs):
    odd, flipped = shuffled_labels(pairs, 0)
    for z in (0, 1):
        mine = [f for f, pair in zip(flipped, pairs, strict=True) if pair.z[0] == z]
        assert sum(mine) == len(mine) // 2
    for flip, old, new in zip(flipped, pairs, odd, strict=True):
        assert (new.answer, new.target) == (
            (old.target, old.answer) if flip else (old.answer, old.target)
        )
        assert (new.base, new.source) == (old.base, old.source)


def test_variants_say_what_they_are(llama):
    variants = ioi_variants(llama.tokenizer, size=20)
    assert list(variants) == ["shorter prefix", "longer prefix", "third name", "natural text"]
    usual = ioi(llama.tokenizer, train=4, test=4, held_out=0)
    length = min(len(pair.base.ids) for pair in usual.test)
    assert min(len(pair.base.ids) for pair in variants["shorter prefix"]) < length
    assert min(len(pair.base.ids) for pair in variants["longer prefix"]) > length
    assert (
        len({pair.template for pair in ioi_variants(llama.tokenizer, size=64)["natural text"]})
        >= 12
    )
    for kind, several in variants.items():
        for pair in several:
            names = [pair.base.ids[pair.base.columns[label]] for label in ("IO", "S1", "S2")]
            assert names == [pair.answer, pair.target, pair.target]
            columns = [pair.base.columns[label] for label in ("IO", "S1")]
            rest = [token for i, token in enumerate(pair.base.ids) if i not in columns]
            others = [token for i, token in enumerate(pair.source.ids) if i not in columns]
            assert rest == others and pair.base.columns["S2"] == pair.source.columns["S2"], kind


def test_score_gradients_leave_out_what_no_head_reads(llama, pairs):
    behind = Site(3, "resid_post", "END")
    gradients = score_gradients(llama, pairs, [END, behind], [(2, 1)])
    assert bool(gradients[END].any()) and not bool(gradients[behind].any())
    assert set(v_grads(llama, pairs, [END, behind], ((2, 1),))) == {END}


def made_evaluation(pairs, drops: dict[str, float], stream: str) -> tuple[Evaluation, Site]:
    """Outcomes in which every patch lowers a logit difference of about 1 by a share."""
    n = len(pairs)
    clean = 1 + 0.1 * np.sin(np.arange(n))
    site = Site(2, stream, "END")
    top = torch.zeros(n, dtype=torch.long)
    unpatched = Outcomes(torch.tensor(clean), top)
    effects = {
        name: Effect(pairs, unpatched, Outcomes(torch.tensor(clean * (1 - share)), top))
        for name, share in drops.items()
    }
    return Evaluation(pairs, unpatched, {site: effects}, {}), site


@pytest.mark.parametrize(
    ("full", "row", "null", "met"),
    [(0.2, 0.4, 0.0, True), (0.3, 0.4, 0.0, False), (0.2, 0.6, 0.0, False),
     (0.2, 0.4, 0.02, False), (-0.3, 0.1, 0.0, True)],
)  # fmt: skip
def test_the_rule_of_an_illusion(pairs, full, row, null, met):
    drops = {"full": full, "v_MLP": 1.0, "v_MLP row": row, "v_MLP null": null}
    (contrast,) = contrasts(made_evaluation(pairs, drops, "mlp_act")[0], "made")
    assert (contrast.rule, contrast.pairs, contrast.met, contrast.sure) == (
        "illusion",
        "made",
        met,
        met,
    )
    assert contrast.whole.value == pytest.approx(full) and contrast.read.value == pytest.approx(row)


@pytest.mark.parametrize(("along", "met"), [(1.15, True), (1.0, False)])
def test_the_rule_of_a_feature(pairs, along, met):
    drops = {"full": 1.0, "v_resid": 1.4, "v_resid along readers": along, "v_resid null": 0.1}
    (contrast,) = contrasts(made_evaluation(pairs, drops, "resid_post")[0], "made")
    assert (contrast.rule, contrast.met) == ("feature", met)
    assert contrast.read.value == pytest.approx(along / 1.4)


def test_no_effect_meets_no_rule(pairs):
    drops = {"full": -0.5, "v_MLP": -0.1, "v_MLP row": -0.01, "v_MLP null": 0.0}
    (contrast,) = contrasts(made_evaluation(pairs, drops, "mlp_act")[0], "made")
    assert not contrast.met and not contrast.sure


def test_reading_by_either_part_adds_up(llama, pairs):
    out = Site(2, "resid_post", "END")
    captured = capture(llama, pairs, [MLP])
    if captured.clean.logit_diff.mean() < 0:  # a random model, which has no right answers
        captured = capture(llama, pairs.exchanged(), [MLP])
    v = random(llama, captured, MLP, seed=5)
    shown = dormant(captured.at(MLP), v, random(llama, capture(llama, pairs, [out]), out))
    delta = SubspacePatch(v.basis).delta(captured.base[MLP], captured.source[MLP])
    drop = captured.clean.logit_diff - captured.at(MLP).delta_outcomes(delta).logit_diff
    assert shown.effect.value == pytest.approx(float(drop.sum() / captured.clean.logit_diff.sum()))
    assert 0 <= shown.in_range <= 1 and len(shown.along_v_grad.patched.z0) == len(pairs) // 2
