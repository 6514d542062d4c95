"""What is said: corrected for the search, ranked, and never more than the audits say."""

from __future__ import annotations

import pytest

from helpers_find import make_place
from helpers_records import make_record
from subspacelens.audit.record import Controls, Spiked
from subspacelens.core.records import Estimate
from subspacelens.find.answer import corrected, counted, in_words, outcome_of, ranked
from subspacelens.find.record import Share


def place(site: str, label, does: float, whole: float = 1.0):
    """A place whose subspace and whole component do this much."""
    own = make_place(site, label)

    def effect(fldd: float):
        return own.effect.model_copy(update={"fldd": Estimate(value=fldd)})

    return own.model_copy(update={"effect": effect(does), "whole": effect(whole)})


def test_faithful_first_then_by_what_the_subspace_does_of_the_whole():
    weak, strong = (
        place("L1.mlp_act@END", "faithful", 0.2, 0.2),
        place("L2.resid_post@END", "faithful", 1.4, 1.0),
    )
    part = place("L3.resid_post@END", "partial", 0.5, 2.0)
    assert ranked([part, weak, strong]) == [strong, weak, part]


@pytest.mark.parametrize(
    ("label", "q", "expected"),
    [("faithful", 0.04, "faithful"), ("faithful", 0.06, "undetermined"),
     ("illusory", 0.5, "illusory")],
)  # fmt: skip
def test_what_chance_does_in_a_search_is_not_found(label, q, expected):
    verdict = corrected(make_record(label).verdict, q)
    assert verdict.label == expected
    if q > 0.05 and label == "faithful":
        assert verdict.code == "chance" and "q = 0.06" in verdict.reasons[0]


def test_controls_are_counted_by_kind():
    labels = [
        *(("faithful", said) for said in ("faithful", "partial", "illusory")),
        *(("illusory", said) for said in ("illusory", "undetermined")),
        ("mixed", "mixed"),
    ]
    spikes = [Spiked(model=0, kind=k, share=0, fldd=1, label=said) for k, said in labels]
    count = counted(Controls.without("none").model_copy(update={"spikes": spikes}))
    assert count is not None and (count.right, count.of) == (3, 5)
    assert counted(None) is None


def test_the_answer_in_words():
    good = place("L5.resid_post@S2", "faithful", 0.97)
    bad = make_place("L6.mlp_act@S2", "illusory")
    text = in_words("found", [good], [bad], [], [])
    assert text.startswith("The feature lives at L5.resid_post@S2 (k = 1, faithful, .97 of the")
    assert "L6.mlp_act@S2 would have fooled you" in text
    nowhere = in_words("nowhere", [], [], [], [Share(site="L1.mlp_act@END", whole=0.12)])
    assert nowhere == (
        "No site of one column carries it alone; the largest shares: L1.mlp_act@END (.12)."
    )
    open_ = make_place("L5.resid_post@S2", "undetermined")
    assert in_words("undetermined", [], [], [open_], []).endswith(
        "can be relied on: L5.resid_post@S2 (undetermined)."
    )


def test_without_a_candidate_the_feature_is_nowhere():
    trap = make_place("L6.mlp_act@S2", "illusory")
    candidate = make_place("L5.resid_post@S2", "undetermined")
    assert outcome_of([], [trap]) == "nowhere"
    assert outcome_of([], [trap, candidate]) == "undetermined"
    assert outcome_of([make_place("L5.resid_post@S2", "faithful")], [trap]) == "found"
