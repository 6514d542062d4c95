"""The page of a survey: the illusion map first, then whatever else was measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import plotly.graph_objects as go

from ..audit.verdict import SMALLEST_FLDD
from ..core.files import write_atomically
from ..core.format import fixed, interval, short
from ..studies.prevalence import Prevalence
from ..survey.das_sites import DasSite, Share, shares
from ..survey.illusions import SHARE, WORKS, IllusionMap, SiteIllusions
from ..survey.weights import QUANTILES
from .document import Plot, document
from .drawing import TALL, TOP, Drawing
from .figures import BLUE, GREY, ORANGE, PURPLE, blank, safe
from .tiles import tiles

COLUMNS = ("whole<br>MLP", "connected<br>part alone", "random<br>writing", "built<br>illusion")
MARK = "◆"


def write_survey(survey: Prevalence, directory: Path) -> Path:
    """Writes `directory`/survey.json, illusions.svg, survey.md and report.html; returns the path of
    the page. Raises `ResultError` where one cannot be written."""
    write_atomically(directory / "illusions.svg", svg(survey.illusions).encode())
    write_atomically(directory / "survey.md", markdown(survey.illusions).encode())
    page = directory / "report.html"
    write_atomically(page, render_survey(survey).encode())
    data = survey.model_dump_json(indent=1, by_alias=True).encode()
    write_atomically(directory / "survey.json", data)
    return page


def render_survey(survey: Prevalence) -> str:
    """The survey as one HTML document that needs no network."""
    it = survey.illusions
    plots = {label: Plot.of(heatmap(it, label), _in_words(it, label)) for label in it.labels}
    more = {}
    if survey.weights:
        more["weights"] = Plot.of(weights_figure(survey), "Singular values by layer")
    if survey.distortion:
        more["distortion"] = Plot.of(distortion_figure(survey), "Distortion by layer")
    return document(
        "survey.html.j2",
        title=f"Illusion map: {it.task} in {it.model.id}",
        survey=survey,
        map=it,
        plots=plots,
        more=more,
        readings={label: reading(it, label) for label in it.labels},
        strongest={
            label: [(site, _writing(site)) for site in ranked(it, label)[:6]] for label in it.labels
        },
        fitted=fitted(survey),
        works=WORKS,
        share=SHARE,
        mark=MARK,
        smallest=SMALLEST_FLDD,
        failed=survey.das_failed,
    )


def fitted(survey: Prevalence) -> dict[str, tuple[list[DasSite], dict[str, Share]]]:
    """By fit, in words: what it finds at every MLP, and at which share of them."""
    names = dict.fromkeys(site.fit for site in survey.das)
    of = {name: [site for site in survey.das if site.fit == name] for name in names}
    return {"DAS" if n == "das" else n: (sites, shares(sites)) for n, sites in of.items()}


def values(site: SiteIllusions) -> tuple[float, ...]:
    """What the map's columns show of one site."""
    best = site.best
    shown = (site.whole, best.connected, site.random, best.effect)
    return tuple(float("nan") if estimate.value is None else estimate.value for estimate in shown)


def ranked(it: IllusionMap, label: str) -> list[SiteIllusions]:
    """The sites at a label: those whose built illusion works first, the strongest first."""
    sites = [site for site in it.sites if site.label == label]
    return sorted(sites, key=lambda site: (not site.works, -(site.best.effect.value or 0.0)))


def reading(it: IllusionMap, label: str) -> str:
    """What the map says of one label, in a sentence or two."""
    first = ranked(it, label)[0]
    working = it.working(label)
    strongest = (
        f"The strongest{' of them' if working else ''}, at layer {first.layer}, has FLDD "
        f"{fixed(first.best.effect.value)} where the whole component has "
        f"{fixed(first.whole.value)} and the connected part alone "
        f"{fixed(first.best.connected.value)}"
    )
    if not working:
        return f"No layer meets the rule for a working illusion. {strongest}."
    layers = _listed([str(layer) for layer in working])
    plural = "s" if len(working) > 1 else ""
    return (
        f"Built illusions work at layer{plural} {layers}: what DAS finds in these MLPs is no "
        f"evidence that the MLP carries the feature. {strongest}."
    )


def heatmap(it: IllusionMap, label: str) -> go.Figure:
    """Layers by what was patched: blue moves the answer towards the source's, orange away."""
    end = _end(it)
    z = np.full((it.layers, len(COLUMNS)), np.nan)
    texts = [[""] * len(COLUMNS) for _ in range(it.layers)]
    hover = {}
    for site in (site for site in it.sites if site.label == label):
        z[site.layer] = values(site)
        texts[site.layer] = _texts(site, list(values(site)), end)
        hover |= {(site.layer, column): _hover(site, column) for column in range(len(COLUMNS))}
    figure = tiles(z, COLUMNS, hover, "FLDD", (-end, end))
    return figure.update_traces(text=texts)


def weights_figure(survey: Prevalence) -> go.Figure:
    """Smallest, median and largest singular value of every projection, by layer."""
    figure = blank(height=360)
    names = [survey.weights[0].down.name, *(up.name for up in survey.weights[0].up)]
    colours = (ORANGE, BLUE, GREY, PURPLE)
    for name, colour in zip(names, colours, strict=False):
        for quantile, dash in ((0.0, "solid"), (0.5, "dash"), (1.0, "dot")):
            points = [
                (layer.layer, facts.singular_values[QUANTILES.index(quantile)])
                for layer in survey.weights
                for facts in (layer.down, *layer.up)
                if facts.name == name
            ]
            x, y = zip(*points, strict=True)
            what = {0.0: "smallest", 0.5: "median", 1.0: "largest"}[quantile]
            figure.add_scatter(
                x=x, y=y, mode="lines", name=f"{name}, {what}", line={"color": colour, "dash": dash}
            )
    figure.update_xaxes(title_text="layer")
    figure.update_yaxes(type="log", title_text="singular value")
    return figure


def distortion_figure(survey: Prevalence) -> go.Figure:
    """r² and the transfer of separators, by layer."""
    figure = blank(height=380)
    layers = [each.layer for each in survey.distortion]
    for name, colour, dash, of in (
        ("r² of products of differences", BLUE, "solid", lambda d: d.r2),
        ("separators, other tokens, after", ORANGE, "solid", lambda d: d.transfer.held_out),
        ("… before the nonlinearity", ORANGE, "dot", lambda d: d.transfer.before),
        ("separators, their own tokens, after", GREY, "solid", lambda d: d.transfer.fitted),
        ("… coefficients shuffled", GREY, "dot", lambda d: d.transfer.shuffled),
    ):
        figure.add_scatter(
            x=layers, y=[of(each).value for each in survey.distortion], mode="lines+markers",
            name=name, line={"color": colour, "dash": dash},
        )  # fmt: skip
    figure.update_xaxes(title_text="layer")
    figure.update_yaxes(range=[0, 1.02], title_text="r², or share right")
    return figure


def svg(it: IllusionMap) -> str:
    """All labels side by side, to be read on white and on black."""
    wide, left, drawing = 50, 40, Drawing()
    end = _end(it)
    for label in it.labels:
        drawing.text(left, 16, label, 'font-weight="bold"')
        drawing.text(left, 32, f"FLDD, ± {end:.2f}; {MARK} built illusion works")
        drawing.layers(left, it.layers)
        for column, name in enumerate(("whole", "connected", "random", "illusion")):
            drawing.text(left + wide * (column + 0.5), 58, name, 'text-anchor="middle"')
        for site in (site for site in it.sites if site.label == label):
            for column, value in enumerate(values(site)):
                drawing.effect(left + wide * column, site.layer, wide, value, end)
            if site.works:
                drawing.text(left + wide * len(COLUMNS) + 3, TOP + TALL * site.layer + 11, MARK)
        left += wide * len(COLUMNS) + 70
    return drawing.svg(left - 40, it.layers)


def _end(it: IllusionMap) -> float:
    """Where the scale of effects ends, the same for every label."""
    return max(0.01, float(np.nanmax(np.abs([values(site) for site in it.sites]))))


def markdown(it: IllusionMap) -> str:
    """The map as a table."""
    lines = [
        "| site | whole component | connected part alone | random writing | built illusion "
        "| writing | works |",
        "|---|---|---|---|---|---|---|",
    ]
    for site in it.sites:
        entries = " | ".join(fixed(value) for value in values(site))
        name = f"L{site.layer}.mlp_act@{site.label}"
        works = "yes" if site.works else ""
        entries += f" {interval(site.best.effect)} | {_writing(site)} | {works}"
        lines.append(f"| {name} | {entries} |")
    return "\n".join(lines) + "\n"


def _writing(site: SiteIllusions) -> str:
    name = next(name for name, illusion in site.illusions.items() if illusion is site.best)
    writing, target = name.split(" of ")
    return f"{'W⁺' if writing == 'pseudoinverse' else 'Wᵀ'} {target}"


def _texts(site: SiteIllusions, row: list[float], end: float) -> list[str]:
    texts = ["" if np.isnan(x) or abs(x) < 0.03 * end else short(x) for x in row]
    return [*texts[:-1], f"{texts[-1]} {MARK}" if site.works else texts[-1]]


def _hover(site: SiteIllusions, column: int) -> str:
    best = site.best
    shown = (site.whole, best.connected, site.random, best.effect)[column]
    name = safe(f"L{site.layer}.mlp_act@{site.label}")
    lines = [f"<b>{name}</b>", f"{COLUMNS[column].replace('<br>', ' ')}: FLDD {fixed(shown.value)}"]
    lines.append(interval(shown))
    if column in (1, 3):
        lines.append(f"{_writing(site)}, θ {best.degrees:.0f}°")
    return "<br>".join(lines)


def _in_words(it: IllusionMap, label: str) -> str:
    return f"Heatmap at {label}, layers by what is patched. {reading(it, label)}"


def _listed(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
