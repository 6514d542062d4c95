"""Synthetic records of a search for tests: made-up numbers, never a measurement."""

from __future__ import annotations

from typing import Any

import numpy as np

from helpers_records import make_record
from subspacelens.audit.record import Clean, VerdictName
from subspacelens.core.records import Estimate, ModelRecord
from subspacelens.core.site import Site
from subspacelens.find.record import (
    ControlsCount,
    FindRecord,
    FindTask,
    Place,
    Prediction,
    ReaderOf,
    Share,
    Stage,
    Writer,
)
from subspacelens.measure.maps.record import (
    InstantRecord,
    MapClean,
    MapRecord,
    MapTask,
    StreamRecord,
    StreamScoresRecord,
)

LABELS, LAYERS, HEADS = ("S2", "END"), 12, 4
CLEAN = 4.3
STREAMS = {"resid_post": 1, "mlp_act": 1, "head_z": HEADS}


def make_find(**changes: Any) -> FindRecord:
    """A valid record in which two subspaces were found, with plausible synthetic numbers;
    `changes` replace top-level fields."""
    patched, instant = _maps()
    fields: dict[str, Any] = {
        "model": ModelRecord(id="synthetic/model-135m", weights_sha256="5e" * 32, dtype="float32"),
        "task": FindTask(
            name="ioi", fit_pairs=128, choice_pairs=64, test_pairs=128, fit_sha256="7a" * 32,
            choice_sha256="1b" * 32, test_sha256="c4" * 32, labels=["IO", "S1", "S2", "END"],
        ),
        "budget": "standard",
        "fit": {"method": "das"},
        "outcome": "found",
        "answer": "The feature lives at L5.resid_post@S2 (k = 1, faithful, .97 of the whole "
        "effect, right on 24 of 24 controls) and at L8.resid_post@END (k = 1, faithful, .93).",
        "clean": Clean(
            logit_diff=Estimate(value=CLEAN, low=4.05, high=4.52),
            top_answer=Estimate(value=0.9, low=0.84, high=0.94),
        ),
        "preferred": Estimate(value=0.97, low=0.91, high=0.99),
        "found": [
            make_place("L5.resid_post@S2", "faithful", controls=ControlsCount(
                right=24, of=24, void="")),
            make_place("L8.resid_post@END", "faithful", controls=None),
        ],
        "fooled": [
            make_place("L6.mlp_act@S2", "illusory"),
            make_place("L9.mlp_act@END", "illusory"),
        ],
        "undetermined": [make_place("L5.head_z.2@S2", "undetermined")],
        "predicted": [
            Prediction(site="L7.mlp_act@S2", whole=-0.02, das=0.33, illusion=0.94, refined=False)
        ],
        "largest": [Share(site="L5.resid_post@S2", whole=1.02)],
        "failed": {"L3.mlp_act@S2": "synthetic: the fit gave a basis that is not finite"},
        "patched": patched,
        "instant": instant,
        "notes": ["Synthetic numbers, made for tests."],
        "stages": [
            Stage(name="instant map", seconds=4.2, cpu_seconds=4.1),
            Stage(name="map", seconds=20.5, cpu_seconds=20.2),
            Stage(name="fits and audits", seconds=140.0, cpu_seconds=255.0),
        ],
        "seconds": 170.4,
        "cpu_seconds": 285.0,
        "peak_rss_bytes": 1_912_602_624,
        "versions": {"subspacelens": "0.1.0", "torch": "2.6.0", "transformers": "5.0.0"},
        "command": "subspacelens find --model synthetic --task ioi --out runs/find",
    }  # fmt: skip
    return FindRecord(**(fields | changes))


def make_lacking() -> FindRecord:
    """Of a model that does not do the task."""
    return make_find(
        outcome="lacking", answer="The model does not do this task.", found=[], fooled=[],
        undetermined=[], predicted=[], largest=[], failed={}, patched=None, instant=None, stages=[],
        clean=Clean(
            logit_diff=Estimate(value=0.02, low=-0.3, high=0.4),
            top_answer=Estimate(value=0.0, low=0.0, high=0.05),
        ),
    )  # fmt: skip


def make_nowhere() -> FindRecord:
    """Of a search without a site to look into."""
    return make_find(
        outcome="nowhere", answer="No site of one column carries it alone.", found=[], fooled=[],
        undetermined=[], failed={},
        largest=[Share(site="L8.resid_post@END", whole=0.12)],
    )  # fmt: skip


def make_place(site: str, label: VerdictName, **changes: Any) -> Place:
    """A site that was audited, as its verdict wants it."""
    where, illusory = Site.parse(site), label == "illusory"
    audit = make_record("undetermined" if label not in ("faithful", "illusory") else label, site)
    seen = Prediction(
        site=site, whole=0.03 if illusory else 0.97, das=0.7, illusion=0.95 if illusory else 0.3,
        refined=True,
    )  # fmt: skip
    written = [
        Writer(name="L5.head_z.2", layer=5, head=2, effect=0.61, linear=0.55),
        Writer(name="L4.mlp_out", layer=4, head=None, effect=0.2, linear=0.25),
        Writer(name="embedding", layer=None, head=None, effect=0.01, linear=0.2),
    ]
    fields: dict[str, Any] = {
        "site": site, "layer": where.layer, "stream": where.stream, "head": where.head,
        "column": where.label, "role": "trap" if illusory else "candidate",
        "why": "DAS is predicted to do 0.70 here, the whole component does 0.03" if illusory
        else "the whole component does 0.97", "seen": seen, "dim": 1,
        "fit": {"method": "das", "steps": 12}, "tried": {1: 0.95, 2: 0.96},
        "effect": audit.effect("subspace"), "whole": audit.effect("full"),
        "share": Estimate(value=25.0 if illusory else 0.97, low=0.91, high=30.0),
        "label": label, "code": audit.verdict.code, "score": audit.verdict.score,
        "reasons": audit.verdict.reasons, "p": 0.02, "q": 0.04, "controls": None,
        "writers": [] if illusory else written,
        "readers": [] if illusory else [ReaderOf(name="L7.q_proj.1", layer=7, share=0.4)],
        "folder": site, "cpu_seconds": 31.5,
    }  # fmt: skip
    return Place(**(fields | changes))


def _maps() -> tuple[MapRecord, InstantRecord]:
    random = np.random.default_rng(0)
    whole = {
        (label, stream): _effects(random, label, stream) for label in LABELS for stream in STREAMS
    }
    shared: dict[str, Any] = {
        "model": ModelRecord(id="synthetic/model-135m", weights_sha256="5e" * 32, dtype="float32"),
        "task": MapTask(name="ioi", split="train", pairs=64, sha256="1b" * 32, shifted=False),
        "clean": MapClean(logit_diff=CLEAN, top_answer=0.9),
        "labels": list(LABELS),
        "streams": list(STREAMS),
        "layers": LAYERS,
        "seconds": 20.5,
    }
    patched = {
        label: {
            stream: StreamRecord.of(
                fldd=whole[label, stream], nats=CLEAN * whole[label, stream],
                iia=np.clip(whole[label, stream], 0, 1),
            )
            for stream in STREAMS
        }
        for label in LABELS
    }  # fmt: skip
    predicted: dict[str, dict[str, StreamScoresRecord]] = {label: {} for label in LABELS}
    for (label, stream), effects in whole.items():
        das = 0.1 + np.abs(effects) + 0.3 * (stream == "mlp_act")
        predicted[label][stream] = StreamScoresRecord.of(
            whole=CLEAN * effects, das=CLEAN * das, whole_fldd=effects, das_fldd=das,
            cosine=effects / das, illusion=1 - np.abs(effects) / das,
        )  # fmt: skip
    return (
        MapRecord(schema="subspacelens.map/1", effects=patched, captures=1, **shared),
        InstantRecord(
            schema="subspacelens.instant/1", effects=predicted, dim=1,
            refined=["L6.mlp_act@S2"], passes=1, **shared,
        ),
    )  # fmt: skip


def _effects(random: np.random.Generator, label: str, stream: str) -> np.ndarray:
    """FLDD of whole components, (layers, heads)."""
    noise = 0.02 * random.normal(size=(LAYERS, STREAMS[stream]))
    if stream != "resid_post":
        return noise
    layers = np.arange(LAYERS)[:, None]
    inside = (layers >= 5) & (layers <= 7) if label == "S2" else layers >= 8
    return noise + inside
