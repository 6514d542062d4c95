"""The page of a patching map: a heatmap for every label, its strongest sites, how to read it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import plotly.graph_objects as go

from ..core.files import write_atomically
from ..core.format import fixed
from ..measure.maps import InstantMap, PatchingMap, SiteEffect
from .document import Plot, document
from .drawing import TALL, Drawing
from .figures import safe
from .instant_page import promise, promise_plots
from .tiles import tiles

_UNITS = {"fldd": "FLDD", "nats": "nats"}


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One picture: the streams with one tile a layer side by side, or the heads.

    `values` (layers, columns), NaN where there is no effect, are what the map measures, in `unit`.
    `end` is where the colour scale ends, the same for every label.
    """

    label: str
    heads: bool
    columns: tuple[str, ...]
    values: np.ndarray
    end: float
    unit: str
    effects: dict[tuple[int, int], SiteEffect] = field(repr=False)


def write_map_page(map: PatchingMap, directory: Path, instant: InstantMap | None = None) -> Path:
    """Writes `directory`/map.json, map.svg and map.html, and returns the path of the last; with the
    `instant` map of the same sites also instant.json, and what it says stands beside.

    Raises `ResultError` where one cannot be written.
    """
    map.save(directory / "map.json")
    if instant is not None:
        instant.save(directory / "instant.json")
    write_atomically(directory / "map.svg", svg(map).encode())
    target = directory / "map.html"
    write_atomically(target, render_map(map, instant).encode())
    return target


def render_map(map: PatchingMap, instant: InstantMap | None = None) -> str:
    """The map as one HTML document that needs no network."""
    return document(
        "map.html.j2",
        title=f"Patching map: {map.task} in {map.model.id}",
        map=map,
        instant=instant,
        plots={
            label: [Plot.of(heatmap(panel, instant), words(panel)) for panel in panels(map, label)]
            for label in map.labels
        },
        promises={label: promise_plots(instant, label) if instant else [] for label in map.labels},
        readings={label: readings(map, label) for label in map.labels},
        strongest={
            label: [map.strongest(3, label=label, stream=stream) for stream in map.streams]
            for label in map.labels
        },
    )


def panels(map: PatchingMap, label: str) -> list[Panel]:
    """The pictures of one label."""
    unit = _UNITS[map.measure]
    whole = tuple(stream for stream in map.streams if stream != "head_z")
    heads = ("head_z",) if "head_z" in map.streams else ()
    drawn = []
    for streams in filter(None, (whole, heads)):

        def values(of: str, streams=streams) -> np.ndarray:
            return np.hstack([getattr(map.effects[of, stream], map.measure) for stream in streams])

        ends = [np.nanmax(np.abs(values(of)), initial=0.01) for of in map.labels]
        effects = {
            (effect.site.layer, position if effect.site.head is None else effect.site.head): effect
            for position, stream in enumerate(streams)
            for effect in map.sites(label=label, stream=stream)
        }
        z = values(label)
        columns = tuple(str(i) for i in range(z.shape[1])) if streams is heads else streams
        drawn.append(
            Panel(
                label=label,
                heads=streams is heads,
                columns=columns,
                values=z,
                end=float(max(ends)),
                unit=unit,
                effects=effects,
            )
        )
    return drawn


def heatmap(panel: Panel, instant: InstantMap | None = None) -> go.Figure:
    """Layers by columns: blue moves the answer towards the source's, orange away from it."""
    hover = {place: _hover(effect, instant) for place, effect in panel.effects.items()}
    ends = -panel.end, panel.end
    return tiles(panel.values, panel.columns, hover, panel.unit, ends, heads=panel.heads)


def words(panel: Panel) -> str:
    """The picture in words, for a screen reader."""
    what = "attention heads" if panel.heads else ", ".join(panel.columns)
    strongest = sorted(panel.effects.values(), key=lambda effect: -abs(effect.nats))[:6]
    names = ", ".join(f"{effect.site} {fixed(effect.nats)} nats" for effect in strongest)
    return f"Heatmap at {panel.label}, layers by {what}. Strongest: {names}"


def readings(map: PatchingMap, label: str) -> list[str]:
    """For `resid_pre` and `resid_post`, the layers across which the effect rises and falls most, if
    by more than a fifth of its largest value: what they write, and what is read no later."""
    sentences = []
    for stream in ("resid_pre", "resid_post"):
        if stream not in map.streams:
            continue
        along = getattr(map.effects[label, stream], map.measure)[:, 0]
        step = np.diff(along)
        least = 0.2 * np.abs(along).max()
        clauses = []
        for verb, sign in (("rises", 1), ("falls", -1)):
            at = int(np.argmax(sign * step)) if len(step) else 0
            if len(step) and sign * step[at] > least:
                layer = at + (stream == "resid_post")
                ends = f"{fixed(along[at])} to {fixed(along[at + 1])}"
                clauses.append(f"{verb} most across layer {layer} ({_UNITS[map.measure]} {ends})")
        if clauses:
            sentences.append(f"In {stream} the effect {' and '.join(clauses)}.")
    return sentences


def svg(map: PatchingMap) -> str:
    """All pictures side by side, to be read on white and on black."""
    left, drawing = 40, Drawing()
    for panel in (panel for label in map.labels for panel in panels(map, label)):
        wide = TALL if panel.heads else 3 * TALL
        drawing.text(left, 16, f"{panel.label}{', heads' * panel.heads}", 'font-weight="bold"')
        drawing.text(left, 32, f"{panel.unit}, ± {panel.end:.2f}")
        drawing.layers(left, map.layers)
        for column, name in enumerate(panel.columns):
            short = name.removeprefix("resid_")
            drawing.text(left + wide * (column + 0.5), 58, short, 'text-anchor="middle"')
        for (layer, column), effect in panel.effects.items():
            value = panel.values[layer, column]
            title = f"{effect.site}: {value:.3f}"
            drawing.effect(left + wide * column, layer, wide, value, panel.end, title)
        left += wide * len(panel.columns) + 50
    return drawing.svg(left - 40, map.layers)


def _hover(effect: SiteEffect, instant: InstantMap | None) -> str:
    numbers = [f"{fixed(effect.nats)} nats", f"IIA {fixed(effect.iia)}"]
    if not np.isnan(effect.fldd):
        numbers = [f"FLDD {fixed(effect.fldd)}", *numbers]
    if instant is not None:
        numbers.append(promise(instant.at(effect.site), instant.measure))
    return "<br>".join([f"<b>{safe(str(effect.site))}</b>", *numbers])
