"""What controls say in words, and what they do to a verdict."""

from __future__ import annotations

from ..record import Controls, Verdict
from ..verdict import BANDS

USED = ("faithful", "partial")
"""Verdicts that say that the model's own way was patched."""
PAIRS = 64
"""Pairs of either split on which spikes are judged: with more of them an audit errs less often."""
OBJECTION = (
    "Spikes are like the subspace in size, noise and number of dimensions, not in everything: the "
    "audit could be right here for a reason that no spike shows."
)


def in_words(controls: Controls, pairs: int) -> list[str]:
    """Sentences for the card, the terminal and the page; `pairs`: how many the subspace was judged
    on."""
    pairs = min(pairs, PAIRS)
    if not controls.spikes:
        return [f"No calibration: {controls.void}."]
    rows = {
        kind: [row for row in controls.spikes if row.kind == kind]
        for kind in ("faithful", "illusory")
    }
    planted = len(rows["faithful"]) + len(rows["illusory"])
    right = sum(
        row.label in (USED if kind == "faithful" else ("illusory",))
        for kind, each in rows.items()
        for row in each
    )
    undecided = sum(
        row.label in ("undetermined", "mixed") for each in rows.values() for row in each
    )
    lines = [
        f"Here the audit was right on {right} of {planted} planted subspaces and undecided on "
        f"{undecided}; {_called(rows['illusory'], USED, 'illusion', 'faithful')}, "
        f"{_called(rows['faithful'], ('illusory',), 'faithful one', 'illusory')}."
    ]
    if controls.sees is not None:
        lines.append(
            f"Smallest share of illusion that it sees with {pairs} pairs: {controls.sees:.0%}."
        )
    else:
        lines.append(f"With {pairs} pairs no share of illusion is seen in four of five mixtures.")
    if controls.likelihood_ratio is not None:
        lines.append(
            f"This verdict is {controls.likelihood_ratio:.2g} times as likely for a spike of its "
            "kind as for one of the other."
        )
    if controls.void:
        lines.append(f"No calibration: {controls.void}.")
    return lines


def _called(rows, labels: tuple[str, ...], what: str, name: str) -> str:
    count = sum(row.label in labels for row in rows)
    return f"{count or 'no'} {what}{'' if count < 2 else 's'} called {name}"


def tempered(verdict: Verdict, controls: Controls) -> Verdict:
    """The verdict as it is where spikes bear it out, or where there is no calibration, and
    *undetermined* where they do not."""
    if controls.borne_out is not False:
        return verdict
    score = 3 * verdict.score - BANDS[verdict.label]
    return verdict.model_copy(
        update={
            "label": "undetermined",
            "code": "controls",
            "score": (BANDS["undetermined"] + min(1.0, max(0.0, score))) / 3,
            "reasons": [
                f"the rule says {verdict.label}, and planted subspaces of known truth do not bear "
                "it out at this site",
                *verdict.reasons,
            ],
            "objection": OBJECTION,
        }
    )
