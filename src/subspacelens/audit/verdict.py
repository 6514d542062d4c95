"""From evidence to a verdict: a short rule that a reader can check by hand.

A faithful subspace meets conditions that an illusory one must fail somewhere. Each is a share: what
is left of the effect when the whole component is patched, when only the connected part is, what
nature writes when it moves the reading, what is left of the write where activations vary. Where the
split is exact, one condition that fails clearly (upper end of its interval below a third) is enough
for *illusory*, and *faithful* needs all of them to hold clearly (lower end above a third, and no
value beyond `MOST`). At other sites the two conditions that exist must agree.
"""

from __future__ import annotations

from math import inf, prod

from ..core.records import Estimate
from .record import Test, Verdict

EXACT = ("full_component", "row_effect", "covariation")
OTHER = ("full_component", "support")
CONDITIONS = (*EXACT, "read_source", "support")
THRESHOLD = 1 / 3
MOST = {"covariation": 2.0}
"""A condition may also hold too much: where nature writes twice what the patch does when it moves
the reading, something else that follows the reading writes most of it."""
ENOUGH = 1 / 2
SMALLEST_FLDD = 0.15
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
    prompts in the smaller split; `exact` says that the row/null split is by construction.
    `rank_too_low`: what is read downstream has at most one dimension more than the subspace, so
    that every direction which is read at all acts alike and none can be told from another.

    `score`, from 0 (faithful) to 1 (illusory), is 1 less the product of what is left: see `_left`.
    It ranks subspaces and decides nothing: a faithful one of which most is sensed by the
    disconnected part has a high score.
    """
    needed = EXACT if exact else OTHER
    found = [name for name in needed if name in tests and tests[name].value is not None]
    score = 1 - _left(tests, exact)
    assumptions = [
        "The component's border is meaningful: its neighbours could carry the feature too.",
        "The row/null split is exact: what the site writes passes through one linear map."
        if exact
        else "At this site nothing is disconnected by construction: the row/null split stands for "
        "a few readers only and decides nothing.",
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
            [
                f"{units} distinct base prompts, to fit or to judge on, are too few: "
                f"{SMALLEST_UNITS} at least"
            ],
            "More pairs could settle it.",
        )
    if fldd.value is None or effect.low is None or effect.value is None:
        return verdict(
            "undetermined",
            ["the model has no logit difference on these pairs, so there is nothing to explain"],
            "Another metric, or pairs on which the model does the task, could settle it.",
        )
    if effect.high is not None and effect.high < 0:
        return verdict(
            "undetermined",
            [
                f"the patch makes the answer stronger: {effect.value:.2f} nats "
                f"[{effect.low:.2f}, {effect.high:.2f}]"
            ],
            "What is to be explained is an effect towards the source's answer.",
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
    failing = [name for name in found if _high(tests[name]) < THRESHOLD]
    holding = [
        name
        for name in found
        if _low(tests[name]) > THRESHOLD and _value(tests[name]) < MOST.get(name, inf)
    ]
    if failing and (exact or len(failing) == len(needed)):
        failing.sort(key=lambda name: _value(tests[name]))
        return verdict(
            "illusory",
            [_reason(name, tests[name]) for name in failing],
            "Null components alone are no proof of an illusion: natural data need not be "
            "orthogonal to the kernel (Wu et al. 2024), and a part that seems dormant on these "
            "prompts may be used on others."
            + "".join(f" Against it: {tests[name].reading}." for name in holding),
        )
    if len(holding) == len(needed):
        return verdict(
            "faithful",
            [_reason(name, tests[name]) for name in holding],
            "A dormant channel that writes the same as a faithful one, and reads what follows z "
            "with the very same error, cannot be told from it by one site and natural activations.",
        )
    beyond = [
        f"{name} is beyond {most:g}: something else that follows the reading writes most of it"
        for name, most in MOST.items()
        if name in found and _value(tests[name]) >= most
    ]
    missing = [
        f"{name}: {tests[name].reading}" for name in needed if name not in found and name in tests
    ]
    return verdict(
        "undetermined",
        missing + [_reason(name, tests[name]) for name in found if name not in holding] + beyond,
        "The conditions contradict each other, their intervals are too wide, or one could not be "
        "tested; more pairs, or a site where the split is not void, could settle it.",
    )


def _left(tests: dict[str, Test], exact: bool) -> float:
    """Product of what is left of the effect, each condition cut to [0, 1], 1/2 where it is void. A
    condition counts in units of `ENOUGH`: that it holds even better says nothing. What the
    connected part reads counts as it is, and tells mixtures apart."""

    def share(name: str, unit: float) -> float:
        value = tests[name].value if name in tests else None
        return 0.5 if value is None else min(1.0, max(0.0, value / unit))

    left = prod(share(name, ENOUGH) for name in (EXACT if exact else OTHER))
    return left * (1 - share("read_source", 1.0)) if exact else left


def _value(test: Test) -> float:
    assert test.value is not None
    return test.value


def _low(test: Test) -> float:
    return _value(test) if test.low is None else test.low


def _high(test: Test) -> float:
    return _value(test) if test.high is None else test.high


def _reason(name: str, test: Test) -> str:
    return f"{test.reading} ({name} {_value(test):.2f} [{_low(test):.2f}, {_high(test):.2f}])"
