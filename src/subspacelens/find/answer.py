"""From audits to an answer: corrected for how many sites were looked at, ranked, and in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import false_discovery_control

from ..audit.controls.words import USED
from ..audit.record import Controls, Verdict
from ..audit.screening import pooled
from ..audit.verdict import CHANCE, OBJECTIONS
from ..core.format import short
from ..core.records import Estimate
from ..core.site import Site
from .cell import Done
from .record import FOUND, ControlsCount, Outcome, Place, Prediction, Share

SHOWN = 3


def chances(done: Sequence[Done]) -> tuple[list[float], list[float]]:
    """Of every site chance's p-value, of all random subspaces of the search together as in a
    screen, and the false discovery rate at which it does more than chance."""
    if not done:
        return [], []
    own = np.array([each.site.own for each in done])
    _, ps = pooled(own, np.array([each.site.null for each in done]))
    return ps.tolist(), false_discovery_control(ps).tolist()


def corrected(verdict: Verdict, q: float) -> Verdict:
    """The verdict, but *undetermined* where it needs more than chance and `q` is too large."""
    if q <= CHANCE or verdict.label not in (*FOUND, "mixed"):
        return verdict
    reason = f"of as many sites as were looked at, one does so much by chance (q = {q:.2g})"
    return verdict.model_copy(
        update={
            "label": "undetermined", "code": "chance", "objection": OBJECTIONS["chance"],
            "reasons": [reason, *verdict.reasons],
        }
    )  # fmt: skip


def place_of(
    done: Done, p: float, q: float, seen: Mapping[Site, Prediction], folder: str | None
) -> Place:
    """What stands of a site in the record, without writers and readers."""
    record, site = done.audit.record, done.chosen.site
    verdict = corrected(record.verdict, q)
    return Place(
        site=str(site), layer=site.layer, stream=site.stream, head=site.head, column=site.label,
        role=done.chosen.role, why=done.chosen.why, seen=seen[site], dim=record.subspace.dim,
        fit=record.subspace.fit, tried=done.site.tried, effect=record.effect("subspace"),
        whole=record.effect("full"), share=_share(record.tests.get("full_component")),
        label=verdict.label, code=verdict.code, score=verdict.score, reasons=verdict.reasons, p=p,
        q=q, controls=counted(record.controls), folder=folder, cpu_seconds=done.site.cpu_seconds,
    )  # fmt: skip


def _share(inverse: Estimate | None) -> Estimate:
    """What the subspace does over what the whole does, from the ratio the other way round."""
    value = inverse.value if inverse is not None else None
    if inverse is None or not value:
        return Estimate(value=None)
    if inverse.low is None or inverse.high is None or inverse.low <= 0 <= inverse.high:
        return Estimate(value=1 / value)
    return Estimate(value=1 / value, low=1 / inverse.high, high=1 / inverse.low)


def counted(controls: Controls | None) -> ControlsCount | None:
    """On how many planted subspaces of one kind the audit was right."""
    if controls is None:
        return None
    told = [spike for spike in controls.spikes if spike.kind in ("faithful", "illusory")]
    right = sum(
        spike.label in (USED if spike.kind == "faithful" else ("illusory",)) for spike in told
    )
    return ControlsCount(right=right, of=len(told), void=controls.void)


def ranked(places: Sequence[Place]) -> list[Place]:
    """Faithful before partial, and each by how much the subspace does of what all there does: its
    FLDD, or that of the whole component where that is less."""

    def does(place: Place) -> float:
        return min(place.effect.fldd.value or 0.0, place.whole.fldd.value or 0.0)

    return sorted(places, key=lambda place: (place.label != "faithful", -does(place)))


def outcome_of(found: Sequence[Place], audited: Sequence[Place]) -> Outcome:
    if found:
        return "found"
    return "undetermined" if any(p.role == "candidate" for p in audited) else "nowhere"


def in_words(
    outcome: Outcome,
    found: Sequence[Place],
    fooled: Sequence[Place],
    undetermined: Sequence[Place],
    largest: Sequence[Share],
    lacking: str = "",
) -> str:
    """One or two sentences."""
    if outcome == "lacking":
        return f"The model does not do this task: {lacking}. No site was searched."
    if outcome == "found":
        text = f"The feature lives at {_listed([_place(each) for each in found])}."
    elif outcome == "nowhere":
        shares = _listed([f"{each.site} ({short(each.whole)})" for each in largest[:SHOWN]])
        text = "No site of one column carries it alone"
        text += f"; the largest shares: {shares}." if shares else "."
    else:
        looked = [each for each in (*undetermined, *fooled) if each.role == "candidate"]
        shown = _listed([f"{each.site} ({each.label})" for each in looked[:SHOWN]])
        text = f"No subspace that was found can be relied on: {shown}."
    if fooled:
        count = len(fooled)
        sites = _listed([each.site for each in fooled[:SHOWN]])
        more = f" and {count - SHOWN} more" if count > SHOWN else ""
        text += f" {sites}{more} would have fooled you: what a subspace does there is not what the "
        text += "model does."
    return text


def _place(place: Place) -> str:
    facts = [f"k = {place.dim}", place.label]
    if place.share.value is not None:
        facts.append(f"{short(place.share.value)} of the whole effect")
    if place.controls is not None and place.controls.of:
        facts.append(f"right on {place.controls.right} of {place.controls.of} controls")
    return f"{place.site} ({', '.join(facts)})"


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
