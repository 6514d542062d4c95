"""Spike-in controls: what they count, what they say, and what they do to a verdict."""

from __future__ import annotations

from dataclasses import replace

import pytest

from helpers_knowing import knowing_lens, knowing_task
from helpers_records import make_record
from subspacelens.audit import audit
from subspacelens.audit.controls.run import AUDITED, ENOUGH, TRIED, summed, until_enough
from subspacelens.audit.controls.words import USED, in_words, tempered
from subspacelens.audit.evidence import Setting
from subspacelens.audit.judging import judge, judge_blind, set_apart
from subspacelens.audit.record import Controls, Spiked, Verdict
from subspacelens.audit.verdict import NEEDED, OTHER
from subspacelens.core.site import Site
from subspacelens.engine.task_capture import capture_task
from subspacelens.fit import FITS, das
from subspacelens.report.page import render
from subspacelens.tasks import Task
from subspacelens.tasks.pairset import PairSet


def spiked(kind: str, label: str, fldd: float = 0.5, share: float | None = None, model: int = 0):
    truth = {"faithful": 0.0, "illusory": 1.0}.get(kind, share)
    return Spiked(model=model, kind=kind, share=truth, fldd=fldd, label=label)


def rows(faithful: list[str], illusory: list[str], mixed: list[tuple[float, str]] = ()):
    sizes = (0.4, 0.6)
    return [
        *(spiked("faithful", label, sizes[i % 2]) for i, label in enumerate(faithful)),
        *(spiked("illusory", label, sizes[i % 2]) for i, label in enumerate(illusory)),
        *(spiked("mixed", label, 0.5, share) for share, label in mixed),
    ]


RIGHT = rows(["faithful"] * ENOUGH, ["illusory"] * ENOUGH)


def test_a_rule_that_is_right_bears_its_verdicts_out():
    for label in ("faithful", "partial", "illusory"):
        found = summed(RIGHT, label, 0.5)
        assert found.borne_out and not found.void and found.likelihood_ratio > 20
        assert found.false_faithful.value == 0 and 0.2 < found.false_faithful.high < 0.3
    assert summed(RIGHT, "undetermined", 0.5).borne_out is None
    assert summed(RIGHT, "mixed", 0.5).borne_out is None


@pytest.mark.parametrize(
    ("label", "faithful", "illusory", "borne_out"),
    [
        ("faithful", ["faithful"] * 12, ["faithful"] * 1 + ["illusory"] * 11, True),
        ("faithful", ["faithful"] * 12, ["partial"] * 2 + ["illusory"] * 10, False),
        ("illusory", ["illusory"] * 2 + ["faithful"] * 10, ["illusory"] * 12, False),
        ("illusory", ["undetermined"] * 12, ["illusory"] * 12, True),
        ("faithful", ["undetermined"] * 12, ["undetermined"] * 12, False),
        ("faithful", ["faithful"] * 2 + ["undetermined"] * 10, ["faithful"] + ["illusory"] * 11,
         False),
    ],
)  # fmt: skip
def test_a_verdict_needs_spikes_of_its_kind_and_none_of_the_other(
    label, faithful, illusory, borne_out
):
    assert summed(rows(faithful, illusory), label, 0.5).borne_out is borne_out


def test_no_calibration_where_too_few_do_enough_or_none_is_alike():
    few = summed(rows(["faithful"] * 11, ["illusory"] * 12), "faithful", 0.5)
    assert "only 11 planted channels" in few.void
    weak = [*RIGHT[:-1], spiked("illusory", "undetermined", 0.1)]
    assert "11 planted illusions" in summed(weak, "faithful", 0.5).void
    assert "none of the spikes'" in summed(RIGHT, "faithful", 0.9).void
    assert few.borne_out is None and summed(RIGHT, "faithful", 0.9).borne_out is None
    wrong = rows(["faithful"] * 4, ["faithful"] * 3)
    assert summed(wrong, "faithful", 0.5).void and summed(wrong, "faithful", 0.5).borne_out is False
    none = Controls.without("the pairs carry no z")
    assert in_words(none, 40) == ["No calibration: the pairs carry no z."]


def test_planting_goes_on_until_enough_of_either_kind_can_be_judged():
    def model(number: int, illusory: float):
        rows = [
            spiked("faithful", "faithful", model=number),
            spiked("illusory", "illusory", illusory, model=number),
            spiked("mixed", "mixed", 0.5, 0.5, model=number),
        ]
        return [(row.kind, lambda row=row: row) for row in rows]

    left = iter([model(n, 0.1 if n % 4 == 0 else 0.5) for n in range(TRIED)])
    rows = until_enough(left, "L1.mlp_act@END")
    models = {kind: [row.model for row in rows if row.kind == kind] for kind in AUDITED}
    assert models["illusory"] == list(range(ENOUGH + 4))
    assert models["faithful"] == models["mixed"] == list(range(ENOUGH)), "no more than it takes"
    assert not summed(rows, "illusory", 0.5).void and len(list(left)) == TRIED - ENOUGH - 4
    weak = until_enough([model(n, 0.1) for n in range(TRIED)], "L1.mlp_act@END")
    assert len(weak) == 2 * ENOUGH + TRIED
    assert "0 planted illusions" in summed(weak, "faithful", 0.5).void


def test_the_smallest_share_that_is_seen():
    seen = [(0.6, "illusory"), (0.5, "mixed"), (0.4, "mixed"), (0.3, "illusory")]
    unseen = [(0.2, "faithful"), (0.1, "undetermined")]
    both = ["faithful"] * 12, ["illusory"] * 12
    assert summed(rows(*both, seen + unseen), "faithful", 0.5).sees == 0.2
    assert summed(rows(*both, seen + unseen[:1]), "faithful", 0.5).sees == 0.2
    assert summed(rows(*both, seen[:3] + unseen), "faithful", 0.5).sees == 0.4
    assert summed(rows(*both, seen[:2]), "faithful", 0.5).sees is None


def test_words_count_what_was_planted():
    found = summed(
        rows(["faithful"] * 11 + ["illusory"], ["illusory"] * 10 + ["undetermined", "faithful"]),
        "faithful",
        0.5,
    )
    first, sees, ratio = in_words(found, 60)
    assert "right on 21 of 24" in first and "undecided on 1" in first
    assert "1 illusion called faithful, 1 faithful one called illusory" in first
    assert "60 pairs" in sees and "times as likely" in ratio
    assert "no illusion called faithful" in in_words(summed(RIGHT, "faithful", 0.5), 60)[0]


def test_a_verdict_that_is_not_borne_out_is_undetermined():
    verdict = Verdict(
        label="faithful", code="holds", score=0.1, reasons=["why"], assumptions=[], objection=""
    )
    kept = tempered(verdict, summed(RIGHT, "faithful", 0.5))
    assert kept == verdict == tempered(verdict, Controls.without("no z"))
    wrong = summed(rows(["faithful"] * 12, ["faithful"] * 12), "faithful", 0.5)
    found = tempered(verdict, wrong)
    assert (found.label, found.code) == ("undetermined", "controls")
    assert 1 / 3 <= found.score <= 2 / 3 and found.reasons[1] == "why"


@pytest.fixture(scope="module")
def task() -> Task:
    return knowing_task()


@pytest.mark.parametrize("name", ["L2.mlp_act@END", "L2.resid_post@END"])
def test_an_audit_shows_its_own_error_rate(task, name):
    site = Site.parse(name)
    lens = knowing_lens()
    captures, before = capture_task(lens, task, [site]), lens.weights_sha256
    subspace = das(lens, captures.train, site)
    plain = audit(lens, captures, subspace, budget="fast").record
    assert plain.controls is None and plain.effects["subspace"].fldd.value > 0.15
    checked = [
        audit(lens, captures, subspace, budget="fast", controls=True).record for _ in range(2)
    ]
    first, second = (record.controls for record in checked)
    assert first == second and lens.weights_sha256 == before
    assert checked[0].tests == plain.tests
    assert 0 < len({row.model for row in first.spikes}) <= TRIED
    assert {row.kind for row in first.spikes} == {"faithful", "illusory", "mixed"}
    assert not any(row.kind == "illusory" and row.label in USED for row in first.spikes)
    assert in_words(first, len(task.test))[0].startswith("Here the audit was right on ")


@pytest.mark.parametrize("name", ["L2.mlp_act@END", "L2.head_z.1@END", "L2.resid_post@END"])
def test_what_is_judged_blind_is_judged_by_the_whole_rule(task, name):
    """Every condition of the verdict is there, and none has another value than in the open."""
    site, lens = Site.parse(name), knowing_lens()
    captures = capture_task(lens, task, [site])
    chosen, _ = set_apart(captures, site)
    replay = captures.test.at(site).subset(chosen)
    setting = Setting(captures=captures, replay=replay, chosen=chosen)
    for fit in (das, FITS["mean-difference"]):
        subspace = fit(lens, captures.train, site)
        blind = judge_blind(setting, subspace)
        told = judge(lens, captures, subspace, budget="fast")
        assert (blind.verdict.label, blind.verdict.code) == (told.verdict.label, told.verdict.code)
        for each in NEEDED if blind.case.exact else OTHER:
            assert blind.tests[each].value == pytest.approx(told.tests[each].value, abs=1e-4)


def test_without_z_or_an_effect_nothing_is_planted(task):
    lens, site = knowing_lens(), Site.parse("L2.head_z.2@END")
    captures = capture_task(lens, task, [site])
    subspace = das(lens, captures.train, site)
    found = audit(lens, captures, subspace, budget="fast", controls=True).record.controls
    assert "too little" in found.void
    bare = Task("bare", *(PairSet("bare", s.split, tuple(replace(p, z=None) for p in s))
                          for s in (task.train, task.test)))  # fmt: skip
    captures = capture_task(lens, bare, [site])
    subspace = das(lens, captures.train, site)
    found = audit(lens, captures, subspace, budget="fast", controls=True).record.controls
    assert found.void == "the pairs carry no z" and not found.spikes


def test_the_card_says_what_was_right_and_that_it_is_no_calibration():
    few = summed(rows(["faithful"] * 11, ["illusory"] * 12), "faithful", 0.5)
    record = make_record("illusory").model_copy(update={"controls": few})
    card = render([record], "controls").split('<article class="card')[1].split("</article>")[0]
    assert "right on 23 of 23" in card and "No calibration: only 11 planted channels" in card
