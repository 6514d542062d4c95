"""From evidence to a verdict: a short rule that a reader can check by hand.

Three tests vote. Each asks how much of the effect survives where an illusion would lose it: when
the whole component is patched, when only the connected part is, when only what naturally varies
is. A test votes *illusory* if the upper end of its interval is below a third, *faithful* if the
lower end is above a third. Two votes on one side and none on the other decide.
"""

from __future__ import annotations

from ..results import Estimate, Test, Verdict

VOTERS = ("full_component", "row_effect", "support")
THRESHOLD = 1 / 3
SMALLEST_FLDD = 0.1
SMALLEST_UNITS = 16


def decide(
    tests: dict[str, Test],
    effect: Estimate,
    fldd: Estimate,
    units: int,
    *,
    exact: bool,
    rank_too_low: bool = False,
) -> Verdict:
    """`effect` (nats) and `fldd` are the subspace patch's, `units` the number of distinct base
    prompts; `exact` says that the row/null split is by construction, else it has no vote.
    `rank_too_low`: what is read downstream has at most one dimension more than the subspace, so
    that every direction which is read at all acts alike and none can be told from another."""
    voters = [name for name in VOTERS if tests[name].value is not None]
    if not exact:
        voters = [name for name in voters if name != "row_effect"]
    score = _score([tests[name] for name in voters])
    assumptions = [
        "The component's border is meaningful: its neighbours could carry the feature too.",
        "The row/null split is exact: what the site writes passes through one linear map."
        if exact
        else "At this site nothing is disconnected by construction: the row/null split stands for "
        "a few readers only and does not vote.",
        "The natural support is estimated from few prompts of one task; a rare but real feature "
        "can look dormant.",
    ]

    def verdict(label, reasons, objection) -> Verdict:
        return Verdict(
            label=label, score=score, reasons=reasons, assumptions=assumptions, objection=objection
        )

    if units < SMALLEST_UNITS:
        return verdict(
            "undetermined",
            [f"{units} distinct base prompts are too few: {SMALLEST_UNITS} at least"],
            "More pairs could settle it.",
        )
    if fldd.value is None or effect.low is None or effect.value is None:
        return verdict(
            "undetermined",
            ["the model has no logit difference on these pairs, so there is nothing to explain"],
            "Another metric, or pairs on which the model does the task, could settle it.",
        )
    if effect.low <= 0 or fldd.value < SMALLEST_FLDD:
        return verdict(
            "undetermined",
            [
                f"the effect is too small to explain: FLDD {fldd.value:.2f}, "
                f"{effect.value:.2f} nats [{effect.low:.2f}, {effect.high:.2f}]"
            ],
            "A subspace without effect is neither faithful nor an illusion of one.",
        )
    if rank_too_low:
        return verdict(
            "undetermined",
            [
                "what is read downstream has too low a rank for the row/null split: whatever is "
                "read acts like every other direction that is"
            ],
            "A faithful direction and an illusory one do exactly the same here.",
        )
    against = [n for n in voters if _high(tests[n]) < THRESHOLD]
    for_it = [n for n in voters if _low(tests[n]) > THRESHOLD]
    ranked = sorted(voters, key=lambda n: -abs(_value(tests[n]) - THRESHOLD))
    if len(against) >= 2 and not for_it:
        return verdict(
            "illusory",
            [_reason(n, tests[n]) for n in ranked if n in against],
            "Null components alone are no proof of an illusion: natural data need not be "
            "orthogonal to the kernel (Wu et al. 2024), and a part that seems dormant on these "
            "prompts may be used on others.",
        )
    if len(for_it) >= 2 and not against:
        return verdict(
            "faithful",
            [_reason(n, tests[n]) for n in ranked if n in for_it],
            "A faithful and a dormant channel that write the same direction cannot be told apart "
            "by one linear site and natural activations alone.",
        )
    return verdict(
        "undetermined",
        [_reason(n, tests[n]) for n in ranked]
        or ["none of the tests that decide could be computed here"],
        "The tests contradict each other or their intervals are too wide; more pairs, or a site "
        "where the split is not void, could settle it.",
    )


def _score(tests: list[Test]) -> float:
    """Mean share of the effect that the voting tests lose, 0.5 where none could vote."""
    lost = [1 - min(1.0, max(0.0, _value(test))) for test in tests]
    return sum(lost) / len(lost) if lost else 0.5


def _value(test: Test) -> float:
    assert test.value is not None
    return test.value


def _low(test: Test) -> float:
    return _value(test) if test.low is None else test.low


def _high(test: Test) -> float:
    return _value(test) if test.high is None else test.high


def _reason(name: str, test: Test) -> str:
    return f"{test.reading} ({name} {_value(test):.2f} [{_low(test):.2f}, {_high(test):.2f}])"
