"""DAS by L-BFGS from the closed form against the usual recipe: what it finds, in what passes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..core.geometry import principal_angles
from ..core.progress import track
from ..core.site import Site
from ..engine.patches import SubspacePatch
from ..engine.task_capture import TaskCapture, capture_task
from ..fit import das
from ..fit.subspace import Subspace
from ..model.lens import LensModel
from ..tasks import ioi

SCHEMA = "subspacelens.bench.fits/1"
WHERE = (
    ("L20.mlp_act@END", 4), ("L20.resid_post@END", 2), ("L20.head_z@END", 4),
    ("L20.head_z.0@END", 1), ("L17.mlp_act@S2", 1), ("L17.resid_post@S2", 1),
    ("L18.mlp_act@S2", 2), ("L17.head_z@S2", 2),
)  # fmt: skip
"""Sites of SmolLM2 with the dimensions of the subspace."""


def bench_fits(
    lens: LensModel,
    where: Sequence[tuple[str, int]] = WHERE,
    *,
    pairs: int = 64,
    test: int = 96,
    quick: bool = False,
) -> dict[str, Any]:
    """Fits `das` with both recipes on IOI, a site and its dimensions a row; `quick` is for trying
    it out, with numbers of no worth.

    Of each recipe: FLDD on held-out pairs, the last training loss in nats, `passes` over the
    training pairs, seconds. `ratio`: of the two FLDD, L-BFGS over Adam. `cosine`: of the largest
    principal angle between what the two find.
    """
    if quick:
        pairs, test = 8, 8
    task = ioi(lens.tokenizer, train=pairs, test=test, held_out=0)
    sites = [Site.parse(text) for text, _ in where]
    captures = capture_task(lens, task, dict.fromkeys(sites))
    dims = [dim for _, dim in where]
    rows = [
        _row(lens, captures, site, dim, 2 if quick else None)
        for site, dim in track(list(zip(sites, dims, strict=True)), "fits")
    ]
    return {
        "schema": SCHEMA,
        "setting": {
            "model": lens.id,
            "dtype": str(lens.dtype).removeprefix("torch."),
            "device": str(lens.device),
            "threads": torch.get_num_threads(),
            "pairs": pairs,
            "test": test,
        },
        "rows": rows,
    }


def _row(
    lens: LensModel, captures: TaskCapture, site: Site, dim: int, steps: int | None
) -> dict[str, Any]:
    found: dict[str, Subspace] = {}
    row: dict[str, Any] = {"site": str(site), "dim": dim}
    for recipe in ("lbfgs", "adam"):
        started = time.perf_counter()
        found[recipe] = das(lens, captures.train, site, dim=dim, recipe=recipe, steps=steps)
        row[recipe] = {
            "seconds": time.perf_counter() - started,
            "passes": found[recipe].fit["passes"],
            "loss": found[recipe].fit["last_loss"],
            "fldd": captures.test.at(site).effect(SubspacePatch(found[recipe].basis)).fldd.value,
        }
    fast, usual = row["lbfgs"]["fldd"], row["adam"]["fldd"]
    angles = principal_angles(found["lbfgs"].basis, found["adam"].basis)
    return row | {
        "ratio": fast / usual if fast is not None and usual else None,
        "cosine": float(np.cos(angles[0])),
    }
