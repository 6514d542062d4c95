"""Tables of the editing study, with intervals: an arrangement of the record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..core.format import plain, with_interval
from ..core.records import Estimate
from ..core.statistics import RESAMPLES, Units, mean, median, proportion
from .editing_record import EditingRecord, EditLayer, Scores
from .facts_summary import listed

PAPER_LAYERS = (0, 5, 10, 15, 20, 25, 30, 35, 40, 45)
PAPER_XL: dict[str, tuple[float | None, ...]] = {
    "rewrite score, ROME": (.966, .993, .994, .993, .985, .973, .910, .817, .679, .131),
    "rewrite score, zero-setting patch": (
        -.002, .809, .914, .953, .906, .857, .737, .484, .000, .016,
    ),
    "rewrite score, row part alone": (-.003, .0, .0, .0, .0, .0, .0, .0, .001, .0),
    "|cos| of v and b": (.05, .19, .23, .50, .64, .78, .81, .79, .01, .62),
    "variance ratio": (None, None, None, 6.6, 2.3, .99, .81, .93, None, None),
}  # fmt: skip
"""The paper's GPT-2 XL, 40 facts: quoted, never computed here."""

PAIRINGS = {
    "trace and rewrite score": ("trace", "rewrite"),
    "trace and patch": ("trace", "patch"),
    "trace and full component": ("trace", "full"),
    "full component and rewrite score": ("full", "rewrite"),
    "patch and rewrite score": ("patch", "rewrite"),
    "patch and full component": ("patch", "full"),
}


@dataclass(frozen=True, kw_only=True)
class EditSummary:
    """One layer. Scores are rewrite scores, mean over facts; `patch` and `full` are shares of pairs
    flipped; `correlation[name]` is Pearson's r over facts of the pair of quantities of that name
    (logit differences for patch and full component)."""

    layer: int
    rome: Estimate
    top: Estimate
    paraphrase: Estimate
    neighbour: Estimate
    neighbour_top: Estimate
    essence: Estimate
    zero: Estimate
    zero_everywhere: Estimate
    zero_row: Estimate
    cos_vb: Estimate
    ratio: Estimate
    mirrored: float
    patch: Estimate
    full: Estimate
    trace: Estimate
    trace_mlp: Estimate
    correlation: dict[str, Estimate]


def edit_summary(record: EditingRecord) -> list[EditSummary]:
    return [_row(record, layer) for layer in record.layers]


def _row(record: EditingRecord, layer: EditLayer) -> EditSummary:
    units, quantities = units_of(record), per_fact(record, layer)
    return EditSummary(
        layer=layer.layer,
        rome=mean(quantities["rewrite"], units),
        top=proportion(np.array(layer.rome.top, float), units),
        paraphrase=_average(layer.side.paraphrase, units),
        neighbour=_average(layer.side.neighbour, units),
        neighbour_top=_average(layer.side.neighbour_top, units),
        essence=median(np.array(layer.side.essence), units),
        zero=mean(rewritten(record, layer.zero), units),
        zero_everywhere=mean(rewritten(record, layer.zero_everywhere), units),
        zero_row=mean(rewritten(record, layer.zero_row), units),
        cos_vb=median(np.array(layer.cos_vb), units),
        ratio=median(np.array(layer.ratio), units),
        mirrored=float(np.mean(np.array(layer.sign) < 0)),
        patch=proportion(np.array(layer.patch.flips, float), units),
        full=proportion(np.array(layer.full.flips, float), units),
        trace=mean(quantities["trace"], units),
        trace_mlp=mean(np.array(layer.trace_mlp), units),
        correlation={
            name: correlation(quantities[a], quantities[b], units)
            for name, (a, b) in PAIRINGS.items()
        },
    )


def units_of(record: EditingRecord) -> Units:
    """The base prompt of each fact to be edited: one that is given several objects is one unit."""
    return Units.of(pair.base for pair in record.pairs)


def per_fact(record: EditingRecord, layer: EditLayer) -> dict[str, np.ndarray]:
    """What is correlated: the rewrite score of ROME, the tracing effect, and by how many nats the
    patch and the full component lower the logit difference."""
    clean = np.array(record.clean_logit_diff)
    return {
        "rewrite": rewritten(record, layer.rome),
        "trace": np.array(layer.trace),
        "patch": clean - np.array(layer.patch.logit_diff),
        "full": clean - np.array(layer.full.logit_diff),
    }


def unedited(record: EditingRecord) -> dict[str, Estimate]:
    """What paraphrases and neighbours do before any edit, by the names of `EditSummary`."""
    side = record.side_before
    units = units_of(record)
    return {
        "paraphrase": _average(side.paraphrase, units),
        "neighbour": _average(side.neighbour, units),
        "neighbour_top": _average(side.neighbour_top, units),
    }


def _average(values: Sequence[float | None], units: Units) -> Estimate:
    """Mean over facts that have a value."""
    pairs = zip(values, units.of_pair.tolist(), strict=True)
    kept = [(value, unit) for value, unit in pairs if value is not None]
    if not kept:
        return Estimate(value=None)
    return mean(np.array([value for value, _ in kept]), Units.of(unit for _, unit in kept))


def rewritten(record: EditingRecord, scores: Scores) -> np.ndarray:
    """Rewrite score of every fact."""
    before = np.array(record.before.new)
    return (np.array(scores.new) - before) / (1 - before)


def correlation(x: np.ndarray, y: np.ndarray, units: Units) -> Estimate:
    """Pearson's r over facts, with a 95 % percentile bootstrap interval over units; none where one
    of the two is flat."""
    if units.count < 4 or np.ptp(x) < 1e-12 or np.ptp(y) < 1e-12:
        return Estimate(value=None)
    weights = np.concatenate([np.ones((1, len(x))), units.draws(RESAMPLES)])
    return _with_range(_pearson(x, y, weights))


def over_layers(record: EditingRecord) -> dict[str, Estimate]:
    """Pearson's r between layers of the mean quantities: does the layer that tracing or patching
    points at edit best? Intervals over base prompts, of which all layers are drawn together."""
    stacks = [per_fact(record, layer) for layer in record.layers]
    units = units_of(record)
    if len(stacks) < 4 or units.count < 2:
        return {name: Estimate(value=None) for name in PAIRINGS}
    weights = np.concatenate([np.ones((1, len(units.of_pair))), units.draws(RESAMPLES)])
    weights = weights / weights.sum(axis=1, keepdims=True)
    estimates = {}
    for name, (a, b) in PAIRINGS.items():
        x, y = (weights @ np.stack([stack[key] for stack in stacks], axis=1) for key in (a, b))
        estimates[name] = _with_range(_pearson(x, y, np.ones_like(x)))
    return estimates


def _pearson(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted correlations of `x` and `y`, (n,) or (r, n), a row of `weights` (r, n) each; NaN
    where one of the two is flat."""
    weights = weights / weights.sum(axis=1, keepdims=True)
    x = x - (weights * x).sum(axis=1, keepdims=True)
    y = y - (weights * y).sum(axis=1, keepdims=True)
    spread = (weights * x**2).sum(axis=1) * (weights * y**2).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (weights * x * y).sum(axis=1) / np.sqrt(spread)


def _with_range(values: np.ndarray) -> Estimate:
    """The first value, with the range of 95 % of the others that exist."""
    if not np.isfinite(values[0]):
        return Estimate(value=None)
    rest = values[1:][np.isfinite(values[1:])]
    if not len(rest):
        return Estimate(value=float(values[0]))
    low, high = np.quantile(rest, [0.025, 0.975])
    return Estimate(value=float(values[0]), low=float(low), high=float(high))


def edit_findings(record: EditingRecord) -> list[str]:
    """What agrees with the paper and what does not, in sentences that the numbers decide."""
    rows = edit_summary(record)
    sentences = []
    works = [r for r in rows if (r.rome.value or 0) >= 0.5]
    idle = [r.layer for r in works if r.full.high is not None and r.full.high < 0.25]
    carrying = [r.layer for r in works if (r.full.low or 0) >= 0.25]
    if idle:
        sentences.append(
            f"At {listed(idle)} a ROME edit gives most of the new object's probability, and "
            "patching the whole component flips next to nothing: that an edit works is no sign "
            "that the fact is stored there."
        )
    elif not works:
        sentences.append("At no layer does ROME give half of the new object's probability here.")
    elif len(carrying) == len(works):
        sentences.append(
            f"ROME works at {listed(carrying)}, and at each of them patching the whole component "
            "flips pairs too: the paper's contrast does not appear here."
        )
    else:
        sentences.append(
            f"ROME works at {listed([r.layer for r in works])}; whether the whole component does "
            f"nothing there cannot be told from {len(record.pairs)} facts."
        )
    patch = [r.layer for r in rows if (r.patch.low or 0) > (r.full.high or 0)]
    if patch:
        sentences.append(
            f"At {listed(patch)} a patch along one fitted direction flips more pairs than "
            "the whole component, with intervals apart."
        )
    near = [r.layer for r in rows if (r.zero.value or 0) >= 0.5 * (r.rome.value or 0) > 0.25]
    sentences.append(
        f"The zero-setting patch made from the edit keeps at least half of its rewrite score at "
        f"{listed(near)}; in the paper, at layers 5 to 35 of 48."
        if near
        else "At no layer does the zero-setting patch made from the edit keep half of its rewrite "
        "score; in the paper it does at layers 5 to 35 of 48."
    )
    row = max(abs(r.zero_row.value or 0) for r in rows)
    verb = "agrees" if row < 0.05 else "does not agree"
    sentences.append(
        f"With the row part of its direction alone it scores at most {row:.2f} in size, which "
        f"{verb} with the paper's 0."
    )
    name = "trace and rewrite score"
    whole, within = over_layers(record)[name], [r.correlation[name] for r in rows]
    if whole.value is not None and whole.low is not None and whole.high is not None:
        together = sum((correlation.low or 0) > 0 for correlation in within)
        sentences.append(
            f"Between layers, the tracing effect at the subject and the rewrite score correlate "
            f"with r = {with_interval(whole, plain)}; fact by fact within "
            f"a layer the interval of r is above 0 at {together} of {len(rows)} layers."
        )
    return sentences
