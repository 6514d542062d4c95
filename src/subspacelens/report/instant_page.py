"""The page of an instant map: what DAS would find at every site, and how much of it is illusion."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import plotly.graph_objects as go

from ..core.files import write_atomically
from ..core.format import counted, fixed
from ..measure.maps import InstantMap, SiteScore
from .document import Plot, document
from .drawing import TALL, Drawing
from .figures import BLUE, GREY, ORANGE, safe
from .tiles import tiles

UNITS = {"fldd": "FLDD", "nats": "nats"}
NOTHING = 0.1
"""Below this share of what the best site promises, a site has no tile in the picture of shares:
where nothing is found it does not matter how much of it is illusion."""

_TITLES = {"whole": "whole component, predicted", "das": "best subspace, predicted"}


def write_instant_page(map: InstantMap, directory: Path) -> Path:
    """Writes `directory`/instant.json, instant.svg and instant.html, and returns the path of the
    last. Raises `ResultError` where one cannot be written."""
    map.save(directory / "instant.json")
    write_atomically(directory / "instant.svg", svg(map).encode())
    target = directory / "instant.html"
    write_atomically(target, render_instant(map).encode())
    return target


def render_instant(map: InstantMap) -> str:
    """The map as one HTML document that needs no network."""
    return document(
        "instant.html.j2",
        title=f"Instant map: {map.task} in {map.model.id}",
        map=map,
        shown="FLDD" if map.measure == "fldd" else "nats",
        plots={label: plots(map, label) for label in map.labels},
        readings={label: reading(map, label) for label in map.labels},
        strongest={
            label: [map.strongest(3, label=label, stream=stream) for stream in map.streams]
            for label in map.labels
        },
        effect=lambda score, what: effect(score, what, map.measure),
        refined=set(map.refined),
        nothing=NOTHING,
    )


def effect(score: SiteScore, what: str, measure: str) -> float:
    """What the whole component (`whole`) or the best subspace (`das`) does, in `measure`."""
    return getattr(score, what if measure == "nats" else f"{what}_fldd")


def plots(map: InstantMap, label: str) -> list[Plot]:
    """Of the streams, then of the heads: whole component, best subspace, share of illusion."""
    whole = tuple(stream for stream in map.streams if stream != "head_z")
    heads = ("head_z",) if "head_z" in map.streams else ()
    return [
        Plot.of(heatmap(map, label, streams, what), words(map, label, streams, what))
        for streams in filter(None, (whole, heads))
        for what in ("whole", "das", "illusion")
    ]


def promise_plots(map: InstantMap, label: str) -> list[Plot]:
    """Those that stand beside a patching map: best subspace and share of illusion of the streams,
    or else of the heads."""
    streams = tuple(stream for stream in map.streams if stream != "head_z") or map.streams
    return [
        Plot.of(heatmap(map, label, streams, what), words(map, label, streams, what))
        for what in ("das", "illusion")
    ]


def heatmap(map: InstantMap, label: str, streams: tuple[str, ...], what: str) -> go.Figure:
    """Layers by streams or heads: `whole` or `das`, blue towards the source's answer and orange
    away from it, or `illusion`, from blue (none) to orange (all)."""
    heads = streams == ("head_z",)
    measured = _values(map, label, streams, what)
    names = [stream.replace("_", "<br>") for stream in streams]
    columns = [str(i) for i in range(measured.shape[1])] if heads else names
    hover = {
        (score.site.layer, place if score.site.head is None else score.site.head): (
            f"<b>{safe(str(score.site))}</b><br>{promise(score, map.measure)}"
        )
        for place, stream in enumerate(streams)
        for score in map.sites(label=label, stream=stream)
    }
    if what == "illusion":
        promised = _values(map, label, streams, "das")
        measured = np.where(promised >= NOTHING * _end(map, streams), measured, np.nan)
        ends = 0.0, 1.0
        return tiles(measured, columns, hover, "share of illusion", ends, heads=heads, turned=True)
    end = _end(map, streams)
    unit = f"{_TITLES[what]}, {UNITS[map.measure]}"
    return tiles(measured, columns, hover, unit, (-end, end), heads=heads)


def svg(map: InstantMap) -> str:
    """Both in one picture, to be read on white and on black: a tile is the stronger the more DAS
    would find, and goes from blue to orange with the share of illusion."""
    left, drawing = 40, Drawing()
    best = max((score.das for score in map.sites()), default=0.0)
    for label, stream in product(map.labels, map.streams):
        arrays = map.effects[label, stream].arrays
        heads = arrays["das"].shape[1]
        wide = TALL if stream == "head_z" else 3 * TALL
        if stream == map.streams[0]:
            drawing.text(left, 16, label, 'font-weight="bold"')
            drawing.text(left, 32, "strength: what DAS would find; blue: feature, orange: illusion")
            drawing.layers(left, map.layers)
        middle = left + wide * heads / 2
        drawing.text(middle, 58, stream.removeprefix("resid_"), 'text-anchor="middle"')
        for layer, head in product(range(map.layers), range(heads)):
            das, share = (arrays[name][layer, head] for name in ("das", "illusion"))
            if np.isnan(das):
                continue
            strength = das / best if best > 0 else 0.0
            fill = GREY if np.isnan(share) or strength < NOTHING else mixed(share)
            drawing.tile(left + wide * head, layer, wide, fill, max(strength, 0.08))
        left += wide * heads + (50 if stream == map.streams[-1] else 8)
    return drawing.svg(left - 40, map.layers)


def mixed(share: float) -> str:
    """The colour between blue (0) and orange (1)."""
    ends = [[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in (BLUE, ORANGE)]
    parts = [round(a + share * (b - a)) for a, b in zip(*ends, strict=True)]
    return "#" + "".join(f"{part:02x}" for part in parts)


def promise(score: SiteScore, measure: str) -> str:
    """What a site promises, in small print."""
    unit = UNITS[measure]
    share = "" if np.isnan(score.illusion) else f", {score.illusion:.0%} of it illusion"
    return (
        f"predicted: whole {fixed(effect(score, 'whole', measure))}, DAS "
        f"{fixed(effect(score, 'das', measure))} {unit}{share}<br>cosine {fixed(score.cosine)}"
    )


def words(map: InstantMap, label: str, streams: tuple[str, ...], what: str) -> str:
    """The picture in words, for a screen reader."""
    scores = [s for stream in streams for s in map.sites(label=label, stream=stream)]
    strongest = sorted(scores, key=lambda score: -score.das)[:6]
    names = ", ".join(
        f"{s.site} {fixed(effect(s, 'das', map.measure))}, illusion {fixed(s.illusion)}"
        for s in strongest
    )
    shown = _TITLES.get(what, "share of illusion")
    return f"Heatmap at {label}, layers by {', '.join(streams)}: {shown}. Strongest: {names}"


def reading(map: InstantMap, label: str) -> str:
    """What the map says of one label, in a sentence or two."""
    scores = list(map.sites(label=label))
    best = max((score.das for score in map.sites()), default=0.0)
    found = [score for score in scores if score.das > 0 and score.das >= 0.5 * best]
    if not found:
        return "Nowhere at this word would a search find half of what it finds at the best site."
    least = min(found, key=lambda score: score.illusion)
    most = max(found, key=lambda score: (score.illusion, score.das))
    text = (
        f"At {counted(len(found), 'site')} a search would find at least half of what it finds at "
        f"the best one. Least of it is illusion at {least.site}: {least.illusion:.0%} of "
        f"{fixed(effect(least, 'das', map.measure))} {UNITS[map.measure]}"
    )
    if most.site == least.site:
        return f"{text}."
    return (
        f"{text}; most at {most.site}: {most.illusion:.0%} of "
        f"{fixed(effect(most, 'das', map.measure))}."
    )


def _values(map: InstantMap, label: str, streams: tuple[str, ...], what: str) -> np.ndarray:
    name = what if what == "illusion" or map.measure == "nats" else f"{what}_fldd"
    return np.hstack([map.effects[label, stream].arrays[name] for stream in streams])


def _end(map: InstantMap, streams: tuple[str, ...]) -> float:
    """Where the scale of effects ends, the same for both pictures of them and for every label."""
    every = [
        np.nanmax(np.abs(_values(map, label, streams, what)), initial=0.01)
        for label in map.labels
        for what in ("whole", "das")
    ]
    return float(max(every))
