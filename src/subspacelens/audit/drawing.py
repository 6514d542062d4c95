"""The numbers that the report draws."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..engine.patches import ReadWrite, SubspacePatch
from .evidence.case import Case, class_scores
from .record import DoseResponse, Figures, Scatter, SupportCurve, Written

DOSES = (-0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
DOSE_PAIRS = 64


def draw(case: Case) -> Figures:
    z = case.test.role if case.test.z is None else case.test.z

    def scatter(values, classes=z) -> Scatter:
        values = np.asarray(values)
        return Scatter(z0=values[classes == 0].tolist(), z1=values[classes == 1].tolist())

    def projected(basis: Tensor) -> Scatter | None:
        if basis.shape[1] == 0:
            return None
        return scatter(class_scores(case.train, case.test, basis))

    captured, site = case.captures.test, case.site
    weight = case.lens.map.writer(site)
    write = (lambda x: x @ weight.T.cpu().double()) if weight is not None else (lambda x: x)
    base = captured.base[site].cpu().double()
    delta = (captured.difference(site).cpu().double() @ case.basis) @ case.basis.T
    _, _, directions = torch.linalg.svd(write(delta), full_matrices=False)
    along = directions[0]
    effects, marks = dose_response(case)
    fldd = 1 / case.scorer.clean.sum()
    projection = projected(case.basis)
    assert projection is not None
    return Figures(
        row_projection=projected(case.parts.unit_row) if case.parts else None,
        null_projection=projected(case.parts.unit_null) if case.parts else None,
        projection=projection,
        dose_response=DoseResponse(dose=list(DOSES), effect=effects, marks=marks),
        written=Written(
            natural=scatter(write(case.test.x) @ along),
            patched=scatter(write(base + delta) @ along, z[: len(base)]),
        ),
        support=SupportCurve(
            explained=list(case.by_support.explained),
            components=case.by_support.components,
            share=case.by_support.share,
            on=(case.by_support.on.sum(1) * fldd).tolist(),
            off=(case.by_support.off.sum(1) * fldd).tolist(),
        ),
    )


def dose_response(case: Case) -> tuple[list[float], dict[str, float]]:
    """Mean effect in nats of each dose of `DOSES`, and the doses of the named patches: at a site
    with a linear writer every patch that writes along W V is one of them."""
    some = torch.arange(min(DOSE_PAIRS, len(case.captures.test.pairs)))
    replay = case.replay.subset(some)
    base, source = replay.base, replay.source
    whole = SubspacePatch(case.basis).delta(base, source)
    found = replay.delta_outcomes(torch.stack([dose * whole for dose in DOSES]))
    clean = replay.clean.logit_diff
    effects = (clean - found.logit_diff).double().mean(1).tolist()
    marks = {"subspace": 1.0}
    if case.parts is not None:
        weight = case.lens.map.writer(case.site)
        write = (lambda d: d @ weight.T.to(d)) if weight is not None else (lambda d: d)
        reference = write(whole).double()
        for name, patch in (
            ("row", SubspacePatch(case.parts.unit_row)),
            ("read_row", ReadWrite(case.parts.row, case.basis)),
            ("read_null", ReadWrite(case.parts.null, case.basis)),
        ):
            written = write(patch.delta(base, source)).double()
            marks[name] = float((written * reference).sum() / (reference * reference).sum())
    return effects, marks
