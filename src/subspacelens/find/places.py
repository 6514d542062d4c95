"""Where to look: candidates, of which the whole component does much, and traps, of which it does
not although DAS is predicted to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..audit.verdict import SMALLEST_FLDD
from ..core.format import plain
from ..core.site import Site
from ..measure.maps import InstantMap, PatchingMap, SiteScore
from .record import Prediction, Role

STREAM, HEADS, ATTENTION = "resid_post", "head_z", "attn_out"
COMPONENTS = ("mlp_act", "mlp_out", HEADS, ATTENTION)
HEARD = 0.05
"""The heads of a layer are looked at where its attention does this much at some label."""
NEARLY = 0.9
"""A layer does what its neighbour does, if it does this much of it."""
PART = 1 / 3
"""A trap's whole component does less than this of what DAS is predicted to do."""
LISTED = 20

IN_WORDS = {
    "mlp_act": "the MLP", "mlp_out": "the MLP", "attn_out": "the attention of the block",
    "head_z": "the head",
}  # fmt: skip


@dataclass(frozen=True)
class Chosen:
    """A site to fit and to audit at, and why."""

    site: Site
    role: Role
    why: str


def streams_of(available: Sequence[str]) -> tuple[str, ...]:
    """The streams that are searched, of those that a model has."""
    mlp = "mlp_act" if "mlp_act" in available else "mlp_out"
    return tuple(s for s in (STREAM, mlp, HEADS, ATTENTION) if s in available)


def heard(patched: PatchingMap) -> list[int]:
    """The layers whose attention as a whole does at least `HEARD`, one way or the other."""
    does = [np.abs(patched.effects[label, ATTENTION].fldd[:, 0]) for label in patched.labels]
    return np.flatnonzero(np.nanmax(does, axis=0, initial=0) >= HEARD).tolist()


def candidates(patched: PatchingMap) -> list[Chosen]:
    """Sites whose whole component does at least `SMALLEST_FLDD`: of each label one layer of the
    residual stream, the first of those that do nearly as much as the best, side by side with it;
    behind these all MLPs, heads and attentions. Each in the order of what the whole does."""
    found = whole(patched)
    stream, parts = [], []
    for label in patched.labels:
        for site, does in _bottleneck(patched, label):
            why = f"the whole stream does {plain(does)} here, as much as at any layer of {label}"
            stream.append(Chosen(site, "candidate", why))
    for site, does in found.items():
        if site.stream in COMPONENTS and does >= SMALLEST_FLDD:
            why = f"{IN_WORDS[site.stream]} as a whole does {plain(does)}"
            parts.append(Chosen(site, "candidate", why))
    for each in (stream, parts):
        each.sort(key=lambda chosen: -found[chosen.site])
    return stream + parts


def whole(patched: PatchingMap) -> dict[Site, float]:
    """What the whole component does at every site, FLDD; without sites where that is not known."""
    return {each.site: each.fldd for each in patched.sites() if not np.isnan(each.fldd)}


def _bottleneck(patched: PatchingMap, label: str) -> Iterator[tuple[Site, float]]:
    if (label, STREAM) not in patched.effects:
        return
    does = patched.effects[label, STREAM].fldd[:, 0]
    if np.isnan(does).all() or np.nanmax(does) < SMALLEST_FLDD:
        return
    first = int(np.nanargmax(does))
    least = NEARLY * does[first]
    while first > 0 and does[first - 1] >= least:
        first -= 1
    yield Site(first, STREAM, label), float(does[first])


def traps(
    patched: PatchingMap, instant: InstantMap, taken: Sequence[Site]
) -> list[tuple[SiteScore, float]]:
    """Sites at which DAS is predicted to do at least `SMALLEST_FLDD`, and the whole component,
    which is the second number, less than `PART` of it: what is refined first, and each in the order
    of what DAS is predicted to do. Of the stream one site a label; none of `taken`."""
    does, refined = whole(patched), set(instant.refined)
    found = [
        (score, does[score.site])
        for score in instant.sites()
        if score.site in does
        and score.site not in taken
        and score.das_fldd >= SMALLEST_FLDD
        and does[score.site] < PART * score.das_fldd
    ]
    found.sort(key=lambda each: (str(each[0].site) not in refined, -each[0].das_fldd))
    streams: set[str] = set()
    kept = []
    for score, effect in found:
        if score.site.stream == STREAM:
            if score.site.label in streams:
                continue
            streams.add(score.site.label)
        kept.append((score, effect))
    return kept


def trap(score: SiteScore, does: float) -> Chosen:
    return Chosen(
        score.site,
        "trap",
        f"DAS is predicted to do {plain(score.das_fldd)} here, and the whole component does "
        f"{plain(does)}",
    )


def predictions(patched: PatchingMap, instant: InstantMap) -> Mapping[Site, Prediction]:
    """What is known of every site before a fit."""
    does, refined = whole(patched), set(instant.refined)
    return {
        score.site: Prediction(
            site=str(score.site),
            whole=does[score.site],
            das=score.das_fldd,
            illusion=None if np.isnan(score.illusion) else score.illusion,
            refined=str(score.site) in refined,
        )
        for score in instant.sites()
        if score.site in does and not np.isnan(score.das_fldd)
    }
