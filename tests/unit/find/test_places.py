"""Candidates and traps, chosen from maps of known numbers."""

from __future__ import annotations

import numpy as np
import pytest

from helpers_find import make_find
from subspacelens.core.site import Site
from subspacelens.find.places import candidates, heard, streams_of, traps
from subspacelens.measure.maps import InstantMap, PatchingMap, StreamEffects


@pytest.fixture
def maps() -> tuple[PatchingMap, InstantMap]:
    record = make_find()
    return (
        PatchingMap.from_json(record.patched.model_dump_json(by_alias=True)),
        InstantMap.from_json(record.instant.model_dump_json(by_alias=True)),
    )


def test_of_each_label_the_first_layer_of_the_bottleneck(maps):
    patched, _ = maps
    assert {str(each.site) for each in candidates(patched)} == {
        "L5.resid_post@S2", "L8.resid_post@END",
    }  # fmt: skip


def test_a_layer_that_does_nearly_as_much_comes_first(maps):
    patched, _ = maps
    does = patched.effects["S2", "resid_post"].fldd[:, 0]
    does[:] = [0, 0, 0, 0.5, 0.91, 0.95, 1.0, 0.4, 0, 0, 0, 0]
    first, _ = sorted(candidates(patched), key=lambda each: each.site.label, reverse=True)
    assert first.site == Site(4, "resid_post", "S2")


def test_components_come_behind_the_stream_by_what_they_do(maps):
    patched, _ = maps
    patched.effects["S2", "mlp_act"].fldd[4, 0] = 0.3
    patched.effects["S2", "head_z"].fldd[3, 2] = 0.6
    patched.effects["S2", "head_z"].fldd[3, 1] = 0.14
    names = [str(each.site) for each in candidates(patched)]
    assert names[2:] == ["L3.head_z.2@S2", "L4.mlp_act@S2"]


def test_what_is_not_known_is_no_candidate(maps):
    patched, _ = maps
    for own in patched.effects.values():
        own.fldd[:] = np.nan
    assert candidates(patched) == []


def test_traps_are_where_das_is_predicted_to_do_much_and_the_whole_does_not(maps):
    patched, instant = maps
    taken = [each.site for each in candidates(patched)]
    found = traps(patched, instant, taken)
    assert str(found[0][0].site) == "L6.mlp_act@S2"  # refined first
    assert not {score.site for score, _ in found} & set(taken)
    assert all(does < score.das_fldd / 3 and score.das_fldd >= 0.15 for score, does in found)
    streams = [score.site.label for score, _ in found if score.site.stream == "resid_post"]
    assert len(streams) == len(set(streams))
    assert "L6.mlp_act@S2" not in {
        str(s.site) for s, _ in traps(patched, instant, [*taken, Site(6, "mlp_act", "S2")])
    }


def test_the_mlp_is_searched_by_its_neurons_where_it_has_any():
    assert streams_of(["resid_post", "mlp_act", "mlp_out", "head_z", "attn_out"]) == (
        "resid_post", "mlp_act", "head_z", "attn_out",
    )  # fmt: skip
    assert streams_of(["resid_post", "mlp_out"]) == ("resid_post", "mlp_out")


def test_heads_are_looked_at_where_attention_does_something(maps):
    patched, _ = maps
    both = [np.zeros((12, 1)), np.zeros((12, 1))]
    both[0][3], both[0][5], both[1][7], both[1][8] = 0.04, -0.06, 0.05, np.nan
    for label, does in zip(patched.labels, both, strict=True):
        values = StreamEffects(fldd=does, nats=does, iia=does)
        patched.effects[label, "attn_out"] = values  # type: ignore[index]
    assert heard(patched) == [5, 7]
