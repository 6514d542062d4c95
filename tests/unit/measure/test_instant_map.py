"""The instant map: its numbers are those of replays, and small patches do what it predicts."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from helpers_models import tiny_model
from helpers_oracle import random_pairs
from subspacelens import survey
from subspacelens.core.errors import ResultError, SiteError, TaskError
from subspacelens.core.first_order import first_order
from subspacelens.core.records import ModelRecord
from subspacelens.engine.capture import capture
from subspacelens.engine.patches import Full
from subspacelens.measure.maps import InstantMap, StreamScores, instant_map, patching_map
from subspacelens.measure.maps.scoring import along_path, available, differing
from subspacelens.model.lens import LensModel, wrap
from subspacelens.report.instant_page import reading, render_instant, write_instant_page
from subspacelens.report.map_page import render_map
from subspacelens.tasks.pairset import Pair, PairSet, Prompt

LENGTHS = [(9, 4), (12, 7), (9, 0), (11, 6), (8, 7)]
HOSTILE = "</script><script>alert(1)</script><img/src=x>\"'&\u2028"


def lens_of(family: str) -> LensModel:
    return wrap(tiny_model(family), None, family)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def lens() -> LensModel:
    return lens_of("gpt2")


@pytest.fixture(scope="module")
def pairs() -> PairSet:
    return random_pairs(LENGTHS)


@pytest.fixture(scope="module")
def found(lens, pairs) -> InstantMap:
    return instant_map(lens, pairs, None, ["X", "END"])


def test_every_site_and_head_has_a_score(lens, found):
    sites = [score.site for score in found.sites()]
    assert len(set(sites)) == len(sites) == 2 * 4 * (6 + 4)
    assert found.streams == available(lens) and len(found.streams) == 7
    assert found.passes == 1 and not found.refined
    assert survey.instant_map is instant_map  # type: ignore[attr-defined]


def test_scores_are_those_of_replays_of_the_site(lens, pairs, found):
    for name in ("L1.mlp_act@X", "L2.head_z.3@END", "L0.resid_pre@X", "L3.attn_out@END"):
        replay, score = capture(lens, pairs, [name]).at(name), found.at(name)
        closed = first_order(replay.difference, replay.gradients())
        assert score.whole == pytest.approx(closed.whole, rel=1e-7, abs=1e-12)
        assert score.das == pytest.approx(closed.effect(1), rel=1e-7)
        assert score.cosine == pytest.approx(closed.cosine, rel=1e-7, abs=1e-9)


def test_a_small_patch_does_what_is_predicted(lens, pairs):
    """The whole component's prediction against replays of a twentieth of its patch."""
    found = instant_map(lens, pairs, ["mlp_act", "resid_post", "attn_out"], ["X"])
    captured = capture(lens, pairs, [score.site for score in found.sites()])
    for score in found.sites():
        replay = captured.at(score.site)
        step = 0.05 * replay.difference
        up, down = (replay.delta_outcomes(sign * step).logit_diff.double() for sign in (1, -1))
        seen = float((down - up).mean()) / 0.1
        assert score.whole == pytest.approx(seen, rel=0.02, abs=2e-3)


def test_more_dimensions_find_more(lens, pairs, found):
    wider = instant_map(lens, pairs, ["mlp_act", "head_z"], ["X"], dim=3)
    for score in wider.sites():
        least = found.at(score.site).das
        assert score.das > least or (score.site.layer == 3 and score.das == pytest.approx(least))
        assert score.whole == pytest.approx(found.at(score.site).whole)
    whole = instant_map(lens, pairs, ["head_z"], ["X"], dim=8)
    for score in whole.sites():
        assert score.das == pytest.approx(score.whole)
        assert score.illusion == pytest.approx(0, abs=1e-9) or np.isnan(score.illusion)


def test_refined_sites_predict_the_whole_component(lens, pairs, found):
    """Completeness: with the gradient averaged along the path the prediction is the effect."""
    names = ["L1.mlp_act@X", "L2.resid_pre@END", "L1.head_z.2@X", "L0.attn_out@END"]
    refined = instant_map(lens, pairs, found.streams, ["X", "END"], refine=names)
    seen = patching_map(lens, pairs, found.streams, ["X", "END"])
    assert set(refined.refined) == set(names)
    for name in names:
        error = abs(refined.at(name).whole - seen.at(name).nats)
        assert error < 0.03 + 0.1 * abs(seen.at(name).nats)
    straight, along = (
        sum(abs(map.at(name).whole - seen.at(name).nats) for name in names)
        for map in (found, refined)
    )
    assert along < straight / 5
    other = "L2.mlp_act@X"
    assert refined.at(other).das == pytest.approx(found.at(other).das)


def test_the_mean_along_a_path_is_complete(lens, pairs):
    name = "L2.mlp_act@X"
    replay = capture(lens, pairs, [name]).at(name)
    predicted = -(replay.difference * along_path(replay)).sum(1)
    drop = replay.clean.logit_diff - replay.outcomes(Full()).logit_diff
    torch.testing.assert_close(predicted.float(), drop, atol=0.02, rtol=0.02)


def test_the_strongest_are_refined(lens, pairs, found):
    refined = instant_map(lens, pairs, None, ["X", "END"], refine=3)
    assert set(refined.refined) == set(found.best(3))


def test_a_tight_budget_takes_more_passes_and_gives_the_same(lens, pairs, found):
    tight = instant_map(lens, pairs, None, ["X", "END"], memory=20_000)
    assert tight.passes > 5
    for score in tight.sites():
        assert score.das == pytest.approx(found.at(score.site).das)


def test_labels_before_the_first_difference_are_left_out():
    columns = {"A": 0, "X": 2, "END": 4}
    base, source = (Prompt("", (5, 6, third, 8, 9), columns) for third in (7, 3))
    pair = Pair(base=base, source=source, answer=11, target=12)
    assert differing(PairSet("one", "test", (pair,))) == ("X", "END")


def test_labels_in_other_columns_of_base_and_source_wait_to_be_asked_for():
    moved = random_pairs(LENGTHS, shift=1)
    assert differing(moved) == ("END",) and differing(moved, shifted=True) == ("X", "END")


def test_bad_requests_are_refused_by_name(lens, pairs):
    with pytest.raises(SiteError, match="unknown stream 'resid'"):
        instant_map(lens, pairs, ["resid"], ["X"])
    with pytest.raises(SiteError, match="no stream"):
        instant_map(lens, pairs, [], ["X"])
    with pytest.raises(SiteError, match=r"L0\.resid_mid@X"):
        instant_map(lens_of("gpt_neox"), pairs, ["resid_mid"], ["X"])
    with pytest.raises(SiteError, match="dim=0"):
        instant_map(lens, pairs, dim=0)
    with pytest.raises(SiteError, match=r"L1.mlp_act@END cannot be refined"):
        instant_map(lens, pairs, ["mlp_act"], ["X"], refine=["L1.mlp_act@END"])
    with pytest.raises(TaskError, match="no label 'S2', only X, END"):
        instant_map(lens, pairs, ["mlp_act"], ["S2"])
    with pytest.raises(TaskError, match="no label"):
        instant_map(lens, pairs, ["mlp_act"], [])
    with pytest.raises(TaskError, match="at least one pair"):
        instant_map(lens, pairs, limit=0)


def made(label: str = "S2", *, clean: float = 2.0, **changes) -> InstantMap:
    """A made-up map of four layers."""
    rng = np.random.default_rng(0)
    effects = {}
    for of in (label, "END"):
        for stream, cells in (("resid_post", 1), ("head_z", 3)):
            whole, das = rng.normal(size=(4, cells)), rng.uniform(0.1, 3, size=(4, cells))
            share = rng.uniform(size=(4, cells))
            scale = 1 / clean if clean > 0 else np.nan
            effects[of, stream] = StreamScores(
                whole, das, scale * whole, scale * das, 1 - share, share
            )
    effects["END", "resid_post"].illusion[2] = np.nan
    values = dict(
        model=ModelRecord(id="a/model", weights_sha256="0" * 64, dtype="float32"),
        task="ioi", split="test", pairs=24, pairs_sha256="1" * 64, shifted=False,
        clean_logit_diff=clean, clean_top_answer=0.9, labels=(label, "END"),
        streams=("resid_post", "head_z"), layers=4, effects=effects, dim=1,
        refined=(f"L1.resid_post@{label}",), passes=1, seconds=12.3,
    )  # fmt: skip
    return InstantMap(**(values | changes))  # type: ignore[arg-type]


def test_json_round_trip(tmp_path):
    found = made()
    found.save(tmp_path / "instant.json")
    again = InstantMap.load(tmp_path / "instant.json")
    assert again.to_json() == found.to_json()
    assert again.refined == found.refined
    np.testing.assert_equal(
        [vars(score) for score in again.sites()], [vars(score) for score in found.sites()]
    )
    data = json.loads(found.to_json())
    assert data["schema"] == "subspacelens.instant/1"
    assert data["effects"]["S2"]["head_z"]["illusion"][3][1] == found.at("L3.head_z.1@S2").illusion
    assert "24 pairs" in repr(found) and found.best(1)[0] in found._repr_html_()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("schema"), "schema"),
        (lambda d: d.update(dim=0), "dim"),
        (lambda d: d["effects"]["S2"].pop("head_z"), "effects of S2 are not those of the streams"),
        (lambda d: d["effects"]["S2"]["head_z"]["das"].pop(), "4 layers x 3"),
    ],
)
def test_damage_is_named(change, message):
    data = json.loads(made().to_json())
    change(data)
    with pytest.raises(ResultError, match=message):
        InstantMap.from_json(json.dumps(data))


def test_the_page_shows_everything_and_no_name_gets_out_of_its_place(tmp_path):
    hostile = ModelRecord(id=HOSTILE, weights_sha256="0" * 64, dtype="float32")
    page = render_instant(made(task=HOSTILE, model=hostile))
    assert "<script>alert" not in page and "<img/src" not in page
    path = write_instant_page(made(), tmp_path)
    text = path.read_text()
    assert path.name == "instant.html" and (tmp_path / "instant.json").exists()
    assert text.count('class="figure"') == 2 * 6
    assert "L1.resid_post@S2</code> refined" in text and "share of illusion" in text
    assert "there is no share of a preference" not in text
    against = render_instant(made(clean=-1.0))
    assert "there is no share of a preference" in against and ">nan" not in against.lower()


def test_reading_names_the_sites_with_least_and_most_illusion():
    found = made()
    text = reading(found, "S2")
    best = max(score.das for score in found.sites())
    strong = [score for score in found.sites(label="S2") if score.das >= best / 2]
    least = min(strong, key=lambda score: score.illusion)
    assert f"{len(strong)} site" in text and str(least.site) in text


def test_a_patching_map_shows_it_beside(lens, pairs):
    streams, labels = ["resid_post", "head_z"], ["X", "END"]
    seen = patching_map(lens, pairs, streams, labels)
    with_it = render_map(seen, instant_map(lens, pairs, streams, labels))
    without = render_map(seen)
    assert "of it illusion" in with_it and "of it illusion" not in without
    assert with_it.count('class="figure"') == without.count('class="figure"') + 2 * 2
