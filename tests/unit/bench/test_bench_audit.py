"""The benchmark plants what it says, scores as it should, and finds the audit right where it is."""

from __future__ import annotations

import pytest
import torch

from helpers_knowing import knowing_lens, knowing_task
from subspacelens.audit.addition.controls import planted as planted_vectors
from subspacelens.audit.controls.bed import Bed
from subspacelens.audit.controls.run import planted_models
from subspacelens.audit.controls.spikes import KINDS, Plan, channels_of, spikes
from subspacelens.audit.judging import setting_at
from subspacelens.bench import audit_table, bench_audit, roc_figure
from subspacelens.bench.audit import Result
from subspacelens.bench.places import places
from subspacelens.bench.scores import summary
from subspacelens.core.errors import TaskError
from subspacelens.core.site import Site
from subspacelens.engine.capture import capture
from subspacelens.engine.effect import fldd_of
from subspacelens.engine.patches import SubspacePatch
from subspacelens.engine.task_capture import capture_task
from subspacelens.fit.closed_form import between_means, by_class
from subspacelens.measure.planting import plant

SITES = [Site.parse(text) for text in ("L2.mlp_act@END", "L2.head_z.1@END", "L2.resid_post@END")]


@pytest.mark.parametrize(
    ("site", "k"), [*((site, 1) for site in SITES), (SITES[0], 3), (SITES[1], 3)], ids=str
)
def test_each_kind_does_what_it_is_meant_to(site, k):
    """Sensors and dormants alone do nothing to speak of; what reads the one and writes the other
    does; a channel does; and a reading has the noise that was asked for."""
    lens, task = knowing_lens(), knowing_task(48)
    captured = capture(lens, task.train, [site])
    bed = Bed.of(captured, site)
    beside = lens.map.writer(site) is not None
    plan = Plan(
        k=k, fldd=0.5, within=0.2, shared=0.5, drift=0.01, angle=40, mix=45, column=2.0,
        write="gradient",
    )  # fmt: skip
    channels = channels_of(bed, plan, torch.Generator().manual_seed(0), beside=beside)
    planted = plant(captured, site, channels).at(site)
    clean = planted.clean.logit_diff.double().numpy()
    found = {spike.kind: spike for spike in spikes(plan, channels, beside=beside)}
    assert tuple(found) == KINDS
    fldd = {}
    for kind, spike in found.items():
        torch.testing.assert_close(spike.basis.T @ spike.basis, torch.eye(k).double())
        fldd[kind] = float(fldd_of(planted.effect(SubspacePatch(spike.basis)).drop, clean))
    assert abs(fldd["sensor"]) < 1e-6 and abs(fldd["dormant"]) < 0.05
    assert fldd["faithful"] > 0.15 and fldd["illusory"] > 0.05
    assert 0 < found["mixed"].share < 1
    if k == 1:
        reading = planted.base.double() @ found["sensor"].basis[:, 0]
        z = torch.tensor([pair.z[0] for pair in task.train])
        within = sum(float((z == c).double().mean() * reading[z == c].var()) for c in (0, 1))
        assert within / float(reading.var()) == pytest.approx(0.2, abs=0.1)


def test_a_stream_without_room_for_so_many_directions_is_not_planted():
    """At this site one direction is left for dormants: a second would be rounding."""
    lens, task = knowing_lens(), knowing_task(48)
    captures = capture_task(lens, task, [SITES[2]])
    setting, *_ = setting_at(captures, SITES[2])
    bed = Bed.of(captures.train, SITES[2])
    plans = [
        Plan(
            k=k, fldd=0.5, within=0.2, shared=0.5, drift=0.01, angle=40, mix=45, column=2.0,
            write="gradient",
        )
        for k in (3, 1)
    ]  # fmt: skip
    with pytest.raises(TaskError, match="find no directions of their own"):
        channels_of(bed, plans[0], torch.Generator().manual_seed(0), beside=False)
    (planted,) = planted_models(setting, bed, plans, KINDS, seed=0)
    assert planted.plan == plans[1]
    assert len(list(planted_vectors(setting, plans, seed=0))) == 1


@pytest.mark.parametrize("site", SITES[:2], ids=str)
def test_dormants_are_dormant_and_move_the_answer(site):
    """Nothing that the site writes, nor a channel, follows z along what a dormant writes."""
    lens, task = knowing_lens(), knowing_task(48)
    captured = capture(lens, task.train, [site])
    bed = Bed.of(captured, site)
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        ours, theirs = bed.halves(generator)
        torch.testing.assert_close(
            ours.T @ theirs, torch.zeros(ours.shape[1], theirs.shape[1]).double()
        )
        dormant, channel = bed.dormant(theirs, generator), bed.written("half", ours, generator)
        x, z = by_class(captured.at(site))
        written = captured.at(site).writer.double() @ between_means(x.double(), z)
        assert abs(dormant @ written) < 1e-6 * written.norm() and abs(dormant @ channel) < 1e-6
        assert min(dormant @ bed.pull, channel @ bed.pull) > 0.05 * bed.pull.norm()


def test_halves_have_an_illusion_beside_every_faithful_dimension():
    site = SITES[0]
    bed = Bed.of(capture(knowing_lens(), knowing_task().train, [site]), site)
    plan = Plan(
        k=1, fldd=0.5, within=0.2, shared=0, drift=0.1, angle=45, mix=45, column=2.0, write="half"
    )
    channels = channels_of(bed, plan, torch.Generator().manual_seed(0), beside=True)
    (halves,) = spikes(plan, channels, beside=True, kinds=("halves",))
    parts = spikes(plan, channels, beside=True, kinds=("faithful", "illusory"))
    torch.testing.assert_close(halves.basis, torch.cat([part.basis for part in parts], dim=1))


def test_it_chooses_its_own_places_and_scores_them(tmp_path):
    """A model without a tokenizer and pairs of random tokens: all that it takes is z."""
    lens, task = knowing_lens(), knowing_task()
    streams = [site.stream for site in places(lens, task, 1)]
    assert streams == ["mlp_act", "head_z", "resid_post"]
    result = bench_audit(lens, {"random": task}, tmp_path, count=1, models=2, blind=6)
    assert {case["kind"] for case in result["cases"]} == set(KINDS)
    assert {case["where"] for case in result["cases"]} >= {"MLP", "head"}
    assert len(result["random"]) == 18
    assert not any(row["verdict"] in ("faithful", "partial") for row in result["random"])
    assert {row["truth"] for row in result["attacks"]} == {"faithful", "illusory", "halves"}
    assert {row["model"] for row in result["random"] + result["attacks"]} == {lens.id}
    scores = result["scores"]["all"]
    assert scores["count"] == len(result["cases"]) >= 20
    assert scores["miss_rate"]["hits"] == scores["inactive_called_faithful"]["hits"] == 0
    done = sorted(tmp_path.rglob("*.json"))
    done[0].unlink()
    stamps = [path.stat().st_mtime_ns for path in done[1:]]
    again = bench_audit(lens, {"random": task}, tmp_path, count=1, models=2, blind=6)
    assert again["cases"] == result["cases"]
    assert stamps == [path.stat().st_mtime_ns for path in done[1:]]
    text = audit_table(result)
    assert "| AUROC of the score |" in text and "uniformly random" in text
    assert roc_figure(result).data


def made(kind: str, verdict: str, score: float, model: int, **changes) -> Result:
    share = {"faithful": 0.0, "illusory": 1.0, "mixed": 0.5}.get(kind)
    values = dict(
        model="m", task="t", site=f"s{model % 2}", where="MLP", planted=model, plan={}, kind=kind,
        share=share, fldd=0.5, score=score, verdict=verdict, code="fails",
        tests={"row_effect": 1 - score}, ends={}, few={}, degenerate=False,
    )  # fmt: skip
    return Result(**(values | changes))


def test_scores_are_counted_as_they_should_be():
    results = [
        made("faithful", "faithful", 0.1, 0),
        made("faithful", "illusory", 0.9, 1),
        made("illusory", "illusory", 1.0, 0),
        made("illusory", "faithful", 0.2, 2),
        made("illusory", "undetermined", 0.5, 3),
        made("illusory", "undetermined", 0.6, 3, degenerate=True),
        made("sensor", "faithful", 0.0, 0),
        *(made("mixed", "faithful", s, 0, share=s) for s in (0.2, 0.4, 0.6)),
    ]
    scores = summary(results)
    assert scores["miss_rate"]["hits"] == 1 and scores["miss_rate"]["of"] == 3
    assert scores["false_alarm_rate"]["value"] == 0.5
    assert scores["undetermined_rate"]["value"] == pytest.approx(1 / 5)
    assert scores["undetermined_for"] == {"fails": 1}
    assert scores["inactive_called_faithful"]["value"] == 1
    assert scores["right_illusory"]["hits"] == scores["right_faithful"]["hits"] == 1
    assert scores["mixed"] == {"faithful": 3}
    assert scores["spearman_mixed"] == pytest.approx(1)
    # Of the 6 couples, the faithful case at 0.1 is below all three, that at 0.9 below one.
    assert scores["auroc"]["value"] == pytest.approx(4 / 6)
    assert scores["by_test"]["row_effect"]["value"] == pytest.approx(4 / 6)
    assert scores["auroc"]["low"] <= 4 / 6 <= scores["auroc"]["high"]


def test_cases_of_one_planted_model_are_one_unit_of_a_rate():
    def width(rate: dict) -> float:
        return rate["high"] - rate["low"]

    def miss_rate(cases: int) -> dict:
        verdicts = ["faithful"] * 3 + ["illusory"] * 9
        results = [made("illusory", v, 0.5, m) for m, v in enumerate(verdicts)]
        return summary(results * cases)["miss_rate"]

    assert miss_rate(8)["of"] == 8 * miss_rate(1)["of"] == 96
    assert width(miss_rate(8)) == pytest.approx(width(miss_rate(1)))
    never = summary([made("illusory", "illusory", 0.5, m) for m in (0, 1) for _ in range(50)])
    assert never["miss_rate"]["high"] > 0.5


def test_the_table_names_controls_and_what_was_left_out():
    scores = summary([made("faithful", "faithful", 0.1, 0), made("illusory", "faithful", 0.9, 1)])
    row = dict(
        site="L1.mlp_act@X", kind="das", fldd=0.5, expected="faithful", verdict="illusory",
        score=0.75,
    )  # fmt: skip
    bare = {
        "scores": {"all": scores},
        "cases": [{}, {}],
        "random": [],
        "attacks": [],
        "trained": {"rates": {}},
    }
    text = audit_table(bare | {"controls": [row], "skipped": ["one model"]})
    assert "| illusory called faithful | 1 of 1, 100%" in text
    assert "| `L1.mlp_act@X` | das | 0.50 | faithful | illusory | 0.75 |" in text
    assert "- one model" in text
    text = audit_table(bare | {"controls": [], "skipped": []})
    assert "expected" not in text and "Left out" not in text
