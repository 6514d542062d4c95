"""The IOI study on the real model, part by part and in small: the circuit, three illusions, two
features; then the study whole. It takes a core seven minutes: that the parts make one study, with
its page, is proven on tiny models, an illusion and a feature of this one in `test_main_job.py`."""

from __future__ import annotations

import pytest

from subspacelens import capture_task, ioi
from subspacelens.engine.random_weights import mlp_input
from subspacelens.measure.effects import random_effects
from subspacelens.report.ioi_page import write_ioi
from subspacelens.studies.ioi import reproduce_ioi
from subspacelens.studies.ioi.circuit import find_circuit
from subspacelens.studies.ioi.contrast import contrasts
from subspacelens.studies.ioi.controls import (
    Setup,
    constructed,
    random_mlps,
    random_model_controls,
)
from subspacelens.studies.ioi.data import FRESH, HELD_OUT, study_data, with_first_token
from subspacelens.studies.ioi.directions import find_directions, table_patches
from subspacelens.studies.ioi.plan import Sizes
from subspacelens.studies.ioi.success import success
from subspacelens.studies.ioi.table import evaluate

pytestmark = [pytest.mark.model, pytest.mark.long]

SMALL = Sizes(
    map=2, train=24, test=16, held_out=16, heads=6, fresh=32,
    steps=8, control_steps=4, seeds=2, random_mlps=1,
)  # fmt: skip
BOTTLENECKS = ["L17.resid_post@S2", "L20.resid_post@END"]


@pytest.fixture(scope="module")
def data(lens):
    return study_data(lens, SMALL, bos=False, seed=0)


@pytest.fixture(scope="module")
def circuit(lens, data):
    return find_circuit(lens, data.task.train, None, limit=SMALL.map)


@pytest.fixture(scope="module")
def setups(lens, data, circuit):
    """What is fitted at either label, with the captures that it was fitted on."""
    sites = [site for place in circuit.places for site in (place.bottleneck, *place.mlps)]
    inputs = [mlp_input(lens, site) for place in circuit.places for site in place.mlps]
    captures = capture_task(lens, data.task, [*sites, *inputs])
    return [
        Setup(
            captures, find_directions(captures.train, place, circuit.name_movers, SMALL), SMALL, 0
        )
        for place in circuit.places
    ]


@pytest.fixture(scope="module")
def evaluations(lens, data, circuit, setups):
    """Every patch on fresh pairs and on held-out templates."""
    patches = {
        site: named
        for setup in setups
        for site, named in table_patches(lens, setup.directions).items()
    }
    keep = [place.bottleneck for place in circuit.places]
    return {
        FRESH: evaluate(lens, data.fresh, patches, keep=keep),
        HELD_OUT: evaluate(lens, data.variants[HELD_OUT], patches),
    }


@pytest.fixture(scope="module")
def met(evaluations):
    """By rule, the sites that meet it on pairs of both kinds."""
    found = [c for kind, each in evaluations.items() for c in contrasts(each, kind)]
    sites = dict.fromkeys(contrast.site for contrast in found)
    return {
        rule: [
            site
            for site in sites
            if all(c.met for c in found if c.site == site)
            and all(c.rule == rule for c in found if c.site == site)
        ]
        for rule in ("illusion", "feature")
    }


def test_the_circuit(circuit):
    roles = {(r.label, r.role, r.component) for r in circuit.roles}
    assert ("S2", "writer", "L17.attn_out@S2") in roles
    assert ("END", "writer", "L20.attn_out@END") in roles
    assert ("S2", "reading layer", "L20") in roles and ("END", "reading layer", "L23") in roles
    assert [str(place.bottleneck) for place in circuit.places] == BOTTLENECKS
    assert any(layer == 23 for layer, _ in circuit.name_movers)


def test_three_illusions_on_fresh_pairs_and_on_held_out_templates(met):
    assert len(met["illusion"]) >= 3


def test_two_features_on_both_and_why(lens, met, evaluations, setups):
    assert met["feature"] == BOTTLENECKS
    for setup in setups:
        item = success(lens, evaluations[FRESH], setup.directions, limit=SMALL.heads)
        assert item.separation.value is not None and item.separation.value > 0.95
        assert min(item.cosines.values()) > 5 * item.random_cosine
        left = {row.what: row.left.value or 0 for row in item.frozen}
        assert abs(left["all that attention reads at this token"]) < 0.1
        assert left["all that MLPs read at this token"] > 0.5


def test_the_papers_figures_stand_beside_those_at_the_last_token(evaluations):
    rows = evaluations[FRESH].rows(paper=True)
    assert {row.site.partition("@")[2] for row in rows if row.paper} == {"END"}


def test_illusions_without_a_learnt_feature(setups):
    """In MLPs of random weights, and built without any search."""
    rows = [row for setup in setups for part in (random_mlps, constructed) for row in part(setup)]

    def effects(control: str, patch: str) -> list[float]:
        return [r.fldd.value or 0 for r in rows if (r.control, r.patch) == (control, patch)]

    assert min(effects("random-weight MLP", "v")) > 4 * max(effects("random-weight MLP", "full"))
    assert min(effects("constructed illusion towards v_resid", "v")) > 0.1


def test_random_directions_do_nothing(setups):
    for setup in setups:
        site = setup.directions.main
        replay, v = setup.captures.test.at(site), setup.directions.mlps[site]
        drawn = random_effects(replay, None, v.basis, draws=20, seed=0).record.fldd
        assert drawn.value is not None and abs(drawn.value) < 0.1


def test_a_model_of_random_weights_carries_nothing_over(setups):
    rows = random_model_controls(setups)
    assert len(rows) == 4 and all((row.iia.value or 0) < 0.1 for row in rows)


def test_names_stand_in_the_papers_columns_after_bos(lens):
    pairs = with_first_token(
        ioi(lens.tokenizer, train=4, test=1).train, lens.tokenizer.bos_token_id
    )
    for pair in pairs:
        assert {pair.base.columns["IO"], pair.base.columns["S1"]} == {3, 5}


def test_the_whole_study_in_small(lens, tmp_path):
    study = reproduce_ioi(lens, sizes=SMALL, quick=True)
    assert study.record.sites_where("feature", FRESH, HELD_OUT) == BOTTLENECKS
    assert len(study.record.sites_where("illusion", FRESH, HELD_OUT)) >= 3
    assert all(row.random < 0.1 for row in study.record.selectivity)
    page = write_ioi(study, tmp_path)
    assert page.exists() and (tmp_path / "audits/das/report.html").exists()
