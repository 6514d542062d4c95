"""Patching maps: every cell is the plain-hook number, and a saved map is read back the same."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from helpers_models import lens_of, tiny_lens
from helpers_oracle import activation, hooked_logits, random_pairs
from subspacelens.core.errors import ResultError, SiteError, TaskError
from subspacelens.core.records import ModelRecord
from subspacelens.core.site import Site
from subspacelens.measure.maps import PatchingMap, StreamEffects, making, patching_map
from subspacelens.model.lens import LensModel
from subspacelens.report import map_page
from subspacelens.report.map_page import render_map, write_map_page
from subspacelens.tasks.pairset import PairSet, Prompt

LENGTHS = [(9, 4), (12, 7), (9, 0), (11, 6), (8, 7)]
STREAMS = ("resid_pre", "resid_post", "mlp_act", "mlp_out", "attn_out", "head_z")
HOSTILE = "</script><script>alert(1)</script><img/src=x>\"'&\u2028"


@pytest.fixture(scope="module", params=["llama", "gpt2", "gpt_neox"])
def lens(request) -> LensModel:
    return tiny_lens(request.param)


@pytest.fixture(scope="module")
def pairs() -> PairSet:
    return random_pairs(LENGTHS)


def by_hooks(lens: LensModel, pairs: PairSet, site: Site | None) -> tuple[float, float]:
    """Mean logit difference and share of targets on top, one full pass a pair."""
    differences, hits = [], []
    for pair in pairs:
        with torch.no_grad():
            if site is None:
                logits = lens.model(torch.tensor([pair.base.ids])).logits[0, -1]
            else:
                source = activation(lens, pair.source, site)
                column = pair.base.columns[site.label]
                logits = hooked_logits(
                    lens, pair.base.ids, site, column, lambda _, source=source: source
                )
        differences.append(float(logits[pair.answer] - logits[pair.target]))
        hits.append(int(logits.argmax()) == pair.target)
    return float(np.mean(differences)), float(np.mean(hits))


def preferring(lens: LensModel, pairs: PairSet) -> PairSet:
    """The pairs with the model's own most likely tokens as answers: base's and source's."""

    def top(prompt: Prompt) -> int:
        with torch.no_grad():
            return int(lens.model(torch.tensor([prompt.ids])).logits[0, -1].argmax())

    chosen = [replace(p, answer=top(p.base), target=top(p.source)) for p in pairs]
    return PairSet("random", "test", tuple(p for p in chosen if p.answer != p.target))


def test_some_layers_alone_and_two_parts_of_one_map(lens, pairs):
    whole = patching_map(lens, pairs, ["attn_out", "head_z"], ["X"])
    last = len(lens.map.blocks) - 1
    heads = patching_map(lens, pairs, ["head_z"], ["X"], layers=[last])
    both = patching_map(lens, pairs, ["attn_out"], ["X"]).beside(heads)
    found, expected = (each.effects["X", "head_z"].nats for each in (both, whole))
    assert np.isnan(found[:last]).all()
    np.testing.assert_allclose(found[last], expected[last], atol=1e-5)
    assert PatchingMap.from_json(both.to_json()).streams == ("attn_out", "head_z")
    with pytest.raises(SiteError, match="not two parts of one map"):
        both.beside(heads)
    with pytest.raises(SiteError, match="not two parts of one map"):
        whole.beside(patching_map(lens, pairs[:3], ["mlp_out"], ["X"]))
    with pytest.raises(SiteError, match="no layer to map"):
        patching_map(lens, pairs, ["attn_out"], ["X"], layers=[last + 1])


def test_cells_equal_plain_hooks(lens, pairs):
    pairs = preferring(lens, pairs)
    found = patching_map(lens, pairs, STREAMS, ["X", "END"])
    clean, _ = by_hooks(lens, pairs, None)
    assert found.clean_logit_diff == pytest.approx(clean, rel=1e-5)
    assert found.clean_top_answer == 1
    assert found.captures == 1
    cells = list(found.sites())
    assert len(cells) == 2 * 4 * (len(STREAMS) - 1 + 4)
    for cell in cells:
        patched, iia = by_hooks(lens, pairs, cell.site)
        assert cell.nats == pytest.approx(clean - patched, rel=1e-5, abs=1e-5)
        assert cell.fldd == pytest.approx(1 - patched / clean, rel=1e-5, abs=1e-5)
        assert cell.iia == iia
    assert {cell.site.head for cell in cells if cell.site.stream == "head_z"} == {0, 1, 2, 3}
    assert found.at("L3.resid_post@END").iia == 1


def test_a_tight_budget_takes_more_captures_and_gives_the_same(lens, pairs, monkeypatch):
    whole = patching_map(lens, pairs, ["resid_post", "head_z"], ["X", "END"])
    taken, capture = [], making.capture
    monkeypatch.setattr(making, "capture", lambda *a, **k: taken.append(1) or capture(*a, **k))
    tight = patching_map(lens, pairs, ["resid_post", "head_z"], ["X", "END"], memory=1)
    assert tight.captures == len(taken) == 16
    taken.clear()
    some = patching_map(lens, pairs, ["resid_post", "head_z"], ["X", "END"], memory=200_000)
    assert 1 < some.captures == len(taken) < 16
    for key, expected in whole.effects.items():
        for other in (tight, some):
            np.testing.assert_allclose(other.effects[key].nats, expected.nats, rtol=1e-5, atol=1e-6)
            np.testing.assert_array_equal(other.effects[key].iia, expected.iia)


def test_only_the_first_pairs_are_used(lens, pairs):
    found = patching_map(lens, pairs, ["resid_post"], ["END"], limit=2)
    assert found.pairs == 2
    assert found.pairs_sha256 == pairs[:2].sha256
    assert patching_map(lens, pairs, ["resid_post"], ["END"], limit=None).pairs == len(pairs)


def test_bad_requests_are_refused_by_name(lens, pairs):
    with pytest.raises(SiteError, match="unknown stream 'resid'"):
        patching_map(lens, pairs, ["resid"], ["X"])
    with pytest.raises(SiteError, match="no stream"):
        patching_map(lens, pairs, [], ["X"])
    with pytest.raises(TaskError, match="no label 'S2', only X, END"):
        patching_map(lens, pairs, ["resid_post"], ["X", "S2"])
    with pytest.raises(TaskError, match="no label to map"):
        patching_map(lens, pairs, ["resid_post"], [])
    with pytest.raises(TaskError, match="at least one pair"):
        patching_map(lens, pairs, ["resid_post"], ["X"], limit=0)
    moved = random_pairs(LENGTHS, shift=1)
    with pytest.raises(TaskError, match="--shifted"):
        patching_map(lens, moved, ["resid_post"], ["X"])
    assert patching_map(lens, moved, ["resid_post"], ["X"], shifted=True).shifted


def test_streams_that_no_layer_has_are_refused(pairs):
    with pytest.raises(SiteError, match=r"L0\.mlp_act@X: .* no single down-projection"):
        patching_map(tiny_lens("mixtral"), pairs, ["resid_post", "mlp_act"], ["X"])
    with pytest.raises(SiteError, match=r"L0\.resid_mid@X"):
        patching_map(tiny_lens("gpt_neox"), pairs, ["resid_mid"], ["X"])


def test_a_stream_that_some_layers_have_leaves_the_others_empty(pairs):
    config = AutoConfig.for_model(
        "qwen3_moe",
        vocab_size=97,
        hidden_size=32,
        intermediate_size=56,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=24,
        mlp_only_layers=[1],
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        config, dtype=torch.float64, experts_implementation="eager"
    )
    model.eval().requires_grad_(False)
    lens = lens_of(model, "mixed")
    found = patching_map(lens, pairs, ["mlp_act"], ["X"])
    assert [cell.site for cell in found.sites()] == [Site(1, "mlp_act", "X")]
    again = PatchingMap.from_json(found.to_json())
    np.testing.assert_array_equal(
        again.effects["X", "mlp_act"].nats, found.effects["X", "mlp_act"].nats
    )
    assert "L0.mlp_act" not in render_map(found)
    assert found._repr_html_().count("<td></td>") == 2


def made(label: str = "S2", *, clean: float = 2.0, heads: int = 3, **changes) -> PatchingMap:
    """A made-up map of four layers."""
    rng = np.random.default_rng(0)
    effects = {}
    for stream, cells in (("resid_post", 1), ("head_z", heads)):
        for of in (label, "END"):
            nats = rng.normal(size=(4, cells))
            fldd = nats / clean
            effects[of, stream] = StreamEffects(fldd, nats, rng.uniform(size=(4, cells)))
    effects[label, "resid_post"].fldd[:, 0] = [0.0, 0.9, 1.0, 0.1]
    effects[label, "resid_post"].nats[:, 0] = [0.0, 1.8, 2.0, 0.2]
    if clean <= 0:
        for of_stream in effects.values():
            of_stream.fldd[:] = np.nan
    values = dict(
        model=ModelRecord(id="a/model", weights_sha256="0" * 64, dtype="float32"),
        task="ioi",
        split="test",
        pairs=24,
        pairs_sha256="1" * 64,
        shifted=False,
        clean_logit_diff=clean,
        clean_top_answer=0.9,
        labels=(label, "END"),
        streams=("resid_post", "head_z"),
        layers=4,
        effects=effects,
        captures=1,
        seconds=12.3,
    )
    return PatchingMap(**(values | changes))  # type: ignore[arg-type]


def test_best_names_sites_in_order_of_strength():
    found = made()
    assert found.best(2, stream="resid_post", label="S2") == [
        "L2.resid_post@S2",
        "L1.resid_post@S2",
    ]
    every = [found.at(site) for site in found.best(100)]
    assert len(every) == 2 * (4 + 12)
    sizes = [abs(cell.nats) for cell in every]
    assert sizes == sorted(sizes, reverse=True)
    assert found.at("L2.head_z.1@END").nats == found.effects["END", "head_z"].nats[2, 1]
    with pytest.raises(SiteError, match=r"L2\.head_z@END is not in this map"):
        found.at("L2.head_z@END")
    assert "24 pairs" in repr(found)
    assert found.best(1)[0] in repr(found)
    assert "head 2" in found._repr_html_()


def test_json_round_trip(tmp_path):
    found = made()
    found.save(tmp_path / "map.json")
    again = PatchingMap.load(tmp_path / "map.json")
    assert again.to_json() == found.to_json()
    assert list(again.sites()) == list(found.sites())
    data = json.loads(found.to_json())
    assert data["schema"] == "subspacelens.map/1"
    assert data["effects"]["S2"]["head_z"]["nats"][3][1] == found.at("L3.head_z.1@S2").nats
    absent = made(clean=-1.0)
    again = PatchingMap.from_json(absent.to_json())
    assert all(np.isnan(cell.fldd) for cell in again.sites())
    assert again.best(3) == absent.best(3)


def test_damage_is_named(tmp_path):
    path = tmp_path / "map.json"
    with pytest.raises(ResultError, match="cannot read"):
        PatchingMap.load(path)

    def damaged(change) -> str:
        data = json.loads(made().to_json())
        change(data)
        return json.dumps(data)

    for text, message in (
        ("", "the file"),
        (made().to_json()[:-40], "the file"),
        (damaged(lambda d: d.pop("schema")), "schema"),
        (damaged(lambda d: d.update(schema="subspacelens.map/2")), "schema"),
        (damaged(lambda d: d.update(layers=5)), "not 5 layers x 1"),
        (damaged(lambda d: d.update(layers="x")), "layers"),
        (damaged(lambda d: d.update(more=1)), "more"),
        (damaged(lambda d: d.update(streams=["resid"])), "unknown stream resid"),
        (damaged(lambda d: d["labels"].append("S2")), "named twice"),
        (damaged(lambda d: d["effects"].pop("S2")), "not those of the labels"),
        (damaged(lambda d: d["effects"]["S2"].pop("head_z")), "S2 are not those of the streams"),
        (damaged(lambda d: d["effects"]["S2"]["head_z"]["iia"][2].pop()), "head_z at S2"),
        (damaged(lambda d: d["effects"]["S2"]["head_z"].update(nats=[])), "head_z at S2"),
    ):
        path.write_text(text)
        with pytest.raises(ResultError, match=re.escape(str(path)) + ".*" + message):
            PatchingMap.load(path)


class Page(HTMLParser):
    """Tags, text outside scripts, and the figures' data."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.text, self.figures, self.kind = "", [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "script":
            self.kind = dict(attrs).get("type")

    def handle_data(self, data):
        if self.cdata_elem is None:
            self.text += data
        elif self.kind == "application/json":
            self.figures.append(json.loads(data))


def test_the_page_has_a_picture_for_each_label_and_its_strongest_cells(tmp_path):
    found = made()
    path = write_map_page(found, tmp_path / "new")
    assert path == tmp_path / "new" / "map.html"
    assert PatchingMap.load(path.with_name("map.json")).to_json() == found.to_json()
    page = Page(path.read_text(encoding="utf-8"))
    assert len(page.figures) == 4
    whole, heads = page.figures[:2]
    assert whole["data"][0]["x"] == ["resid_post"]
    assert np.shape(heads["data"][0]["z"]) == (4, 3)
    np.testing.assert_allclose(heads["data"][0]["z"], found.effects["S2", "head_z"].fldd)
    for figure, other in zip(page.figures[:2], page.figures[2:], strict=True):
        scale = figure["data"][0]
        assert scale["zmin"] == -scale["zmax"] == other["data"][0]["zmin"]
    for site in found.best(3, stream="head_z", label="END"):
        assert site in page.text
    assert "rises most across layer 1 (FLDD 0.00 to 0.90)" in page.text
    assert "falls most across layer 3 (FLDD 1.00 to 0.10)" in page.text
    assert path.read_text(encoding="utf-8").count('id="plotly"') == 1


def test_without_a_preference_nats_are_shown():
    page = Page(render_map(made(clean=-1.0)))
    found = made(clean=-1.0)
    np.testing.assert_allclose(page.figures[1]["data"][0]["z"], found.effects["S2", "head_z"].nats)
    assert "FLDD" not in page.figures[1]["data"][0]["customdata"][0][0]


def test_many_heads_have_no_numbers_in_their_cells():
    few, many = (map_page.panels(made(heads=n), "S2")[1] for n in (12, 13))
    assert any(map_page.heatmap(few).data[0].text[0])
    assert not any(map_page.heatmap(many).data[0].text[0])


def test_hostile_strings_stay_text():
    label = "<script>alert(1)<b>\"'&"
    model = ModelRecord(id=HOSTILE, weights_sha256=HOSTILE, dtype=HOSTILE)
    found = made(label, model=model, task=HOSTILE, split=HOSTILE, pairs_sha256=HOSTILE)
    text = render_map(found)
    page, plain = Page(text), Page(render_map(made()))
    assert page.tags == plain.tags
    assert "alert(1)" in page.text
    assert "<script>alert" not in text
    assert not any("<script" in json.dumps(figure) for figure in page.figures)
    assert "<script" not in map_page.svg(found)
    assert "<script" not in found._repr_html_()
