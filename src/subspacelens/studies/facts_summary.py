"""Tables of the facts study, with intervals: an arrangement of the record, nothing is measured."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..core.records import Estimate
from ..core.statistics import Units, mean, median, proportion
from .facts_record import PATCHES, FactsRecord, LayerRecord, Tried

PAPER_LAYERS = (0, 5, 10, 15, 20, 25, 30, 35, 40, 45)
PAPER_XL: dict[str, tuple[float, ...]] = {
    "v": (1.00, 0.875, 0.975, 0.95, 0.80, 0.55, 0.30, 0.075, 0.025, 0),
    "full": (0.05, 0, 0, 0, 0, 0, 0, 0, 0, 0),
    "row": (0.025, 0, 0, 0, 0, 0, 0, 0, 0, 0),
    "edit": (1.00, 0.85, 0.95, 0.95, 0.80, 0.55, 0.30, 0.075, 0.025, 0),
    "fraction v": (-9.4, -4.4, -7.1, -7.9, -4.0, -0.91, -0.03, 0.46, 0.54, 0.85),
    "fraction full": (0.46, 0.99, 0.99, 0.98, 0.99, 0.99, 0.99, 1.0, 1.0, 1.0),
    "fraction row": (0.87, 0.94, 0.95, 0.95, 0.93, 0.83, 0.84, 0.88, 0.91, 0.98),
    "null norm": (0.45, 0.59, 0.60, 0.61, 0.62, 0.61, 0.62, 0.62, 0.62, 0.63),
    "cos null": (0.76, 0.88, 0.88, 0.88, 0.88, 0.88, 0.88, 0.87, 0.88, 0.88),
}
"""The paper's GPT-2 XL, read from its figures (40 pairs): quoted, never computed here."""

FACTOR = 3


@dataclass(frozen=True, kw_only=True)
class LayerSummary:
    """One row of the tables. `flips[patch]`: share of pairs; `fraction[patch]`: median of the
    patched over the clean logit difference; `residual`: of the whole residual stream after the
    layer; `excess[control]`: flips of v minus those of the full component or of the unit row part;
    `beats`: the controls that v beats `FACTOR` times over, the interval of `excess` above 0."""

    layer: int
    stream: str
    flips: dict[str, Estimate]
    fraction: dict[str, Estimate]
    excess: dict[str, Estimate]
    beats: frozenset[str]
    null_norm: Estimate | None
    cos_null: Estimate | None
    random_null_norm: float | None
    random_cos_null: float | None
    paraphrases: dict[str, Estimate]
    others: Estimate
    residual: Estimate | None
    edit_gap: float | None
    edit_variance: float | None


def summary(record: FactsRecord) -> list[LayerSummary]:
    """One row a fitted site, in the record's order."""
    return [_row(record, layer) for layer in record.layers]


def _row(record: FactsRecord, layer: LayerRecord) -> LayerSummary:
    units = Units(np.array(record.units))
    clean = np.array(record.clean)
    known = np.array(record.paraphrase_known)
    owner = np.array(record.paraphrase_of)
    flips = {
        name: proportion(np.array(layer.patches[name].flips, float), units)
        for name in PATCHES
        if name in layer.patches
    }
    controls = [name for name in ("full", "row") if name in flips]
    excess = {
        name: mean(_hits(layer.patches["v"]) - _hits(layer.patches[name]), units)
        for name in controls
    }
    v = flips["v"].value or 0
    beats = frozenset(
        name
        for name in controls
        if v >= FACTOR * (flips[name].value or 0) and (excess[name].low or 0) > 0
    )
    asked = Units.of(units.of_pair[owner[known]].tolist()) if known.any() else None
    whole = record.residual.get(str(layer.layer))
    shape = layer.shape
    edit = flips.get("edit")
    return LayerSummary(
        layer=layer.layer,
        stream=layer.stream,
        flips=flips,
        fraction={
            name: median(np.array(tried.logit_diff) / clean, units)
            for name, tried in layer.patches.items()
        },
        excess=excess,
        beats=beats,
        null_norm=median(np.array(shape.null_norm), units) if shape else None,
        cos_null=median(np.array(shape.cos_null), units) if shape else None,
        random_null_norm=shape.random_null_norm if shape else None,
        random_cos_null=shape.random_cos_null if shape else None,
        paraphrases={
            name: proportion(_hits(tried)[known], asked) if asked else Estimate(value=None)
            for name, tried in layer.paraphrases.items()
        },
        others=proportion(_hits(layer.others), units),
        residual=proportion(_hits(whole), units) if whole else None,
        edit_gap=None if edit is None else abs((edit.value or 0) - v),
        edit_variance=(
            None if layer.edit_variance is None else float(np.median(layer.edit_variance))
        ),
    )


def _hits(tried: Tried) -> np.ndarray:
    return np.array(tried.flips, dtype=float)


@dataclass(frozen=True)
class SharedSummary:
    layer: int
    dim: int
    relations: int
    train: Estimate
    test: Estimate
    test_full: Estimate


def shared_summary(record: FactsRecord) -> list[SharedSummary]:
    """The shared subspaces of a layer, all relations together; intervals over relations."""
    rows = []
    for layer in sorted({shared.layer for shared in record.shared}):
        here = [shared for shared in record.shared if shared.layer == layer]

        def over(parts: list[Tried]) -> Estimate:
            hits = np.concatenate([_hits(part) for part in parts])
            owner = np.repeat(np.arange(len(parts)), [len(part.flips) for part in parts])
            return proportion(hits, Units(owner))

        rows.append(
            SharedSummary(
                layer,
                here[0].dim,
                len(here),
                over([s.train for s in here]),
                over([s.test for s in here]),
                over([s.test_full for s in here]),
            )
        )
    return rows


def findings(record: FactsRecord) -> list[str]:
    """What agrees with the paper and what does not, in sentences that the numbers decide."""
    rows = [row for row in summary(record) if row.stream == "mlp_act"]
    band = [row for row in rows if "full" in row.beats]
    sentences = []
    if band:
        sentences.append(
            f"At {listed([row.layer for row in band])} one direction flips at least {FACTOR} times "
            "as many pairs as the whole MLP that it is a part of, the interval of the difference "
            "above 0: the paper's illusion is there."
        )
    else:
        sentences.append(
            f"At no layer does the direction flip {FACTOR} times as many pairs as the whole MLP: "
            "the paper's illusion does not appear here."
        )
    alone = [row.layer for row in band if "row" in row.beats]
    if band:
        share = np.mean([r.flips["row"].value or 0 for r in band]) / np.mean(
            [r.flips["v"].value or 0 for r in band]
        )
        where = f"at {listed(alone)}" if alone else "at none of them"
        agrees = (
            "in the paper it flips next to none, so here a share of the effect does not need the "
            "disconnected part."
            if share > 1 / FACTOR
            else "as in the paper, few."
        )
        sentences.append(
            f"It flips {FACTOR} times as many as its own connected part {where}. Over all layers "
            f"of the illusion that part alone flips {share:.2f} times as many as the direction: "
            + agrees
        )
    edits = [row for row in rows if row.edit_gap is not None]
    off = [row.layer for row in edits if (row.edit_gap or 0) > 0.05]
    widest = max((row.edit_gap or 0 for row in edits), default=0)
    if edits and not off:
        sentences.append(
            "The rank-1 edit made from the direction flips as many pairs as the patch, within "
            f"{widest:.2f} at every layer."
        )
    elif off:
        sentences.append(
            f"At {listed(off)} the rank-1 edit made from the direction differs from the "
            f"patch by more than .05 (by up to {widest:.2f})."
        )
    strong = band or rows
    own, paraphrases, elsewhere = (
        float(np.mean([e.value or 0 for e in flips]))
        for flips in (
            [row.flips["v"] for row in strong],
            [row.paraphrases["v"] for row in strong],
            [row.others for row in strong],
        )
    )
    sentences.append(
        f"Over all layers{' of the illusion' if band else ''} the direction flips {own:.2f} of the "
        f"pairs that trained it, {paraphrases:.2f} of their paraphrases and {elsewhere:.2f} of "
        "other pairs of the same relation."
    )
    low = [row for row in rows if row.null_norm and row.random_null_norm]
    if low:
        norm = np.median([row.null_norm.value or 0 for row in low if row.null_norm])
        random = low[0].random_null_norm or 0
        side = "below" if norm < random else "not below"
        sentences.append(
            f"Of a direction of length 1 the part that nothing reads has length {norm:.2f} (median "
            f"over layers), {side} the {random:.2f} of a random direction; in the paper .59 to .63 "
            "at most layers, against .87."
        )
    return sentences


def listed(layers: list[int]) -> str:
    """`layer 5`, `layers 5 and 9`, `layers 3, 5 and 9`."""
    *others, last = map(str, layers)
    return f"layers {', '.join(others)} and {last}" if others else f"layer {last}"
