"""Synthetic audit records for tests of the report: made-up numbers, never a measurement."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from subspacelens.audit.pair_by_pair import chosen_pairs
from subspacelens.audit.record import (
    AuditRecord,
    Clean,
    DoseResponse,
    Figures,
    PairExample,
    PairTable,
    Scatter,
    SubspaceRecord,
    SupportCurve,
    TaskRecord,
    Test,
    Verdict,
    Written,
)
from subspacelens.core.records import EffectRecord, Estimate, ModelRecord
from subspacelens.engine.likely import Likely

Label = Literal["faithful", "illusory", "undetermined"]

# FLDD and IIA of full, subspace, row, null, read_row, read_null, random, reversed.
_FLDD: dict[str, tuple[float | None, ...]] = {
    "illusory": (0.05, 1.36, 0.32, 0.0, 0.15, 0.62, 0.01, 1.29),
    "faithful": (0.97, 1.37, 1.18, 0.16, 1.02, 0.35, 0.01, 1.33),
    "undetermined": (0.02, 0.11, 0.08, None, 0.06, None, 0.0, 0.09),
}
_IIA: dict[str, tuple[float | None, ...]] = {
    "illusory": (0.0, 0.48, 0.09, 0.0, 0.0, 0.2, 0.0, 0.45),
    "faithful": (0.37, 0.6, 0.52, 0.02, 0.41, 0.05, 0.0, 0.58),
    "undetermined": (0.0, 0.01, 0.0, None, 0.0, None, 0.0, 0.01),
}
_PATCHES = ("full", "subspace", "row", "null", "read_row", "read_null", "random", "reversed")
_CLEAN_NATS = 4.3


def make_record(
    label: Label = "illusory", site: str = "L18.mlp_act@S2", **changes: Any
) -> AuditRecord:
    """A valid record with plausible synthetic numbers; `changes` replace top-level fields."""
    fields: dict[str, Any] = {
        "model": ModelRecord(id="synthetic/model-135m", weights_sha256="5e" * 32, dtype="float32"),
        "task": TaskRecord(
            name="ioi",
            train_pairs=128,
            test_pairs=128,
            held_out_pairs=64,
            train_sha256="7a" * 32,
            test_sha256="c4" * 32,
            labels=["IO", "S1", "S2", "END"],
        ),
        "site": site,
        "subspace": SubspaceRecord(
            file=f"out/{site}/subspace.safetensors",
            dim=1,
            fit={"method": "das", "steps": 150, "lr": 0.05, "seed": 0, "restarts": 3},
        ),
        "clean": Clean(
            logit_diff=Estimate(value=_CLEAN_NATS, low=4.05, high=4.52),
            top_answer=Estimate(value=0.9, low=0.84, high=0.94),
        ),
        "effects": _effects(label),
        "no_op": EffectRecord(
            nats=Estimate(value=0.0, low=0.0, high=0.0),
            fldd=Estimate(value=0.0, low=0.0, high=0.0),
            iia=Estimate(value=0.003, low=0.0, high=0.02),
            iia_pair=Estimate(value=0.0, low=0.0, high=0.0),
        ),
        "tests": _tests(label),
        "axes": [],
        "verdict": _verdict(label),
        "notes": [
            "Synthetic numbers, made for tests of the report.",
            "Pairs that share a base prompt count as one unit in every interval.",
        ],
        "figures": _figures(label),
        "pairs": (pairs := make_pairs(label)),
        "examples": make_examples(pairs),
        "seconds": 143.2,
        "peak_rss_bytes": 1_912_602_624,
        "versions": {"subspacelens": "0.1.0", "torch": "2.6.0", "transformers": "5.0.0"},
        "command": f"subspacelens audit --model synthetic --task ioi --site {site} "
        "--dim 1 --pairs 128 --seed 0 --out out",
    }
    return AuditRecord(**(fields | changes))


def make_pairs(label: Label = "illusory", count: int = 128, templates: int = 5) -> PairTable:
    """Pairs of the task with plausible synthetic numbers."""
    random = np.random.default_rng(1)
    names = ("Mary", "John", "Christine", "Bartholomew", "Monica", "Al")
    base, source, marks = [], [], []
    for i in range(count):
        first, second = names[i % 6], names[(i + 1 + i // 6 % 5) % 6]
        start = f"Then, {first} and {second} had a long and really crazy argument number {i}. "
        base.append(f"{start}Afterwards {second} said to")
        source.append(f"{start}Afterwards {first} said to")
        marks.append((len(start) + 11, [len(start) + 11 + len(n) for n in (second, first)]))
    clean = random.normal(_CLEAN_NATS, 1.2, count)
    drops = {
        name: clean * random.normal(fldd, 0.25, count)
        for name, fldd in zip(("full", "subspace", "row"), _FLDD[label], strict=False)
        if fldd is not None
    }
    return PairTable(
        pair=list(range(count)),
        base=base,
        source=source,
        base_marks=[[(start, ends[0])] for start, ends in marks],
        source_marks=[[(start, ends[1])] for start, ends in marks],
        template=[f"argument-{i % templates}" for i in range(count)],
        answer=[" " + names[i % 6] for i in range(count)],
        target=[" " + names[(i + 1 + i // 6 % 5) % 6] for i in range(count)],
        clean=clean.tolist(),
        patched={name: (clean - drop).tolist() for name, drop in drops.items()},
    )


def make_examples(pairs: PairTable) -> list[PairExample]:
    clean, patched = np.array(pairs.clean), np.array(pairs.patched["subspace"])
    return [
        PairExample(
            row=row,
            kind=kind,
            tops={
                name: [
                    Likely(token, round(0.6 / 2**place, 3))
                    for place, token in enumerate(
                        (pairs.answer[row], pairs.target[row], " the", " her", "\n")
                    )
                ]
                for name in ("clean", *pairs.patched)
            },
        )
        for row, kind in chosen_pairs(clean, clean - patched).items()
    ]


def _around(value: float | None, width: float) -> Estimate:
    if value is None:
        return Estimate(value=None)
    return Estimate(value=value, low=value - width, high=value + 0.9 * width)


def _effects(label: Label) -> dict[str, EffectRecord]:
    effects = {}
    for name, fldd, iia in zip(_PATCHES, _FLDD[label], _IIA[label], strict=True):
        width = None if fldd is None else 0.02 + 0.1 * abs(fldd)
        share = None if iia is None else min(1.0, 1.4 * iia + 0.02)
        effects[name] = EffectRecord(
            nats=_around(None if fldd is None else fldd * _CLEAN_NATS, 4.3 * (width or 0)),
            fldd=_around(fldd, width or 0),
            iia=_share(iia),
            iia_pair=_share(share),
        )
    return effects


def _share(value: float | None) -> Estimate:
    if value is None:
        return Estimate(value=None)
    width = 1.96 * (max(value * (1 - value), 0.004) / 128) ** 0.5
    return Estimate(value=value, low=max(0.0, value - width), high=min(1.0, value + width))


def _tests(label: Label) -> dict[str, Test]:
    ill, sure = label == "illusory", label != "undetermined"

    def test(value: float | None, width: float, control: float | None, reading: str) -> Test:
        return Test(**_around(value, width).model_dump(), control=control, reading=reading)

    return {
        "full_component": test(
            0.04 if ill else 0.71,
            0.05,
            None,
            "The part does far more than the whole."
            if ill
            else "The whole does most of what its part does.",
        ),
        "row_effect": test(
            0.24 if ill else 0.86,
            0.06,
            0.51,
            "Three quarters of the effect need the disconnected part."
            if ill
            else "The effect survives.",
        ),
        "null_effect": Test(value=2.4e-6, reading="The split is exact at this site."),
        "read_source": test(
            0.46 if ill else 0.25, 0.05, 0.5, "Much of the dose is read where nothing acts."
        ),
        "amplification": test(
            7.3 if ill else 1.4,
            0.8,
            1.0,
            "The connected part is pushed seven times beyond nature."
            if ill
            else "Pushed no further than nature goes.",
        ),
        "dormancy": test(
            0.57 if ill else 0.98, 0.04, 0.52, "How well the row part alone tells z apart."
        ),
        "support": test(
            0.02 if ill else 0.55,
            0.03,
            0.12,
            "Almost none of the effect is carried by what varies in nature."
            if ill
            else "Over half of the effect is carried by what varies in nature.",
        ),
        "separation": test(0.99, 0.01, 0.5, "The subspace tells z apart on held-out prompts."),
        "natural_range": test(
            0.11 if ill else 0.83, 0.05, 0.99, "Share of patched values inside the natural 99 %."
        ),
        "generalisation": test(
            0.53 if sure else None,
            0.1,
            None,
            "Half of the effect is left on templates it was not fitted on."
            if sure
            else "No template was held out: not measured.",
        ),
    }


def _verdict(label: Label) -> Verdict:
    reasons = {
        "illusory": [
            "Patching the whole component does almost nothing (FLDD 0.05) while its part reverses "
            "the answer (1.36).",
            "Without the disconnected part a quarter of the effect is left (row ÷ subspace 0.24).",
            "The on-support part, half of the direction, does nothing (0.03).",
        ],
        "faithful": [
            "The whole component does most of what its part does (FLDD 0.97 against 1.37).",
            "The effect stays with what naturally varies (on-support 0.76).",
        ],
        "undetermined": [
            "The effect is too small to judge: its interval reaches 0.02.",
            "The split is void: the subspace has no null part.",
        ],
    }
    return Verdict(
        label=label,
        code={"illusory": "fails", "faithful": "holds"}.get(label, "unsure"),
        score={"illusory": 0.94, "faithful": 0.08}.get(label, 0.47),
        reasons=reasons[label],
        assumptions=[
            "That the component's border is meaningful: another border would split otherwise.",
            "That the split into row and null space is exact here (an MLP site).",
        ],
        objection="Other units may write along the same direction, so a small row share alone "
        "would also be seen for a faithful feature that the MLP shares with them.",
    )


def _figures(label: Label) -> Figures:
    random = np.random.default_rng(0)

    def classes(centre0: float, centre1: float, width: float, size: int = 128) -> Scatter:
        return Scatter(
            z0=random.normal(centre0, width, size).tolist(),
            z1=random.normal(centre1, width, size).tolist(),
        )

    ill = label == "illusory"
    dose = np.linspace(-2, 3, 21)
    effect = 2.9 * np.tanh(0.85 * dose) * (2.0 if label != "undetermined" else 0.15)
    explained = [0.5, 0.7, 0.8, 0.9, 0.95, 0.99]
    if ill:
        support = ([3, 9, 17, 38, 62, 109], [0.45, 0.47, 0.49, 0.5, 0.51, 0.53])
        on, off = [0.005, 0.01, 0.01, 0.02, 0.02, 0.03], [1.14, 1.12, 1.1, 1.07, 1.05, 1.02]
    else:
        support = ([7, 16, 24, 41, 57, 79], [0.74, 0.75, 0.76, 0.77, 0.78, 0.79])
        on, off = [0.63, 0.66, 0.69, 0.72, 0.74, 0.76], [0.33, 0.32, 0.3, 0.28, 0.27, 0.25]
    return Figures(
        row_projection=classes(-0.06, 0.09, 0.35) if ill else classes(-1.9, 2.1, 0.6),
        null_projection=None
        if label == "undetermined"
        else classes(-1.4, 1.5, 0.4)
        if ill
        else classes(-0.4, 0.5, 0.5),
        projection=classes(-1.1, 1.2, 0.45) if ill else classes(-2.1, 2.4, 0.7),
        dose_response=DoseResponse(
            dose=dose.tolist(),
            effect=effect.tolist(),
            marks={"subspace": 1.0, "read_row": 0.24, "read_null": 0.76, "reversed": -1.0},
        ),
        written=Written(
            natural=classes(-0.5, 0.1, 0.45) if ill else classes(-2.0, 2.2, 0.7),
            patched=classes(4.6, -5.2, 0.9) if ill else classes(2.3, -2.1, 0.75),
        ),
        support=SupportCurve(
            explained=explained, components=support[0], share=support[1], on=on, off=off
        ),
    )
