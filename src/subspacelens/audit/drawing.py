"""The numbers that the report draws."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..core.geometry import svd
from ..engine.effect import fldd_of
from ..engine.patches import ReadWrite, SubspacePatch
from ..measure.effects import drops_of
from .evidence.case import Case, class_scores
from .record import DoseResponse, Figures, Scatter, SupportCurve, Written

DOSES = (-0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
DOSE_PAIRS = 64


def draw(case: Case) -> Figures:
    parts = case.parts
    return Figures(
        row_projection=projection(case, parts.unit_row) if parts else None,
        null_projection=projection(case, parts.unit_null) if parts else None,
        projection=scatter(case, class_scores(case.train, case.test, case.basis)),
        dose_response=dose_response(case),
        written=written(case),
        support=support(case),
    )


def scatter(case: Case, values: np.ndarray | Tensor) -> Scatter:
    """Values of prompts, all bases first, by class: z, or where the pairs carry none, the role."""
    values = np.asarray(values)
    classes = (case.test.role if case.test.two is None else case.test.two)[: len(values)]
    return Scatter(z0=values[classes == 0].tolist(), z1=values[classes == 1].tolist())


def projection(case: Case, basis: Tensor) -> Scatter | None:
    """The natural prompts along a part of the subspace; None where it has no direction."""
    if basis.shape[1] == 0:
        return None
    return scatter(case, class_scores(case.train, case.test, basis))


def written(case: Case) -> Written:
    """The prompts along the direction that the patch writes most along, without and with it."""
    write = _write(case.replay.writer, torch.float64)
    base, difference = (x.cpu().double() for x in (case.replay.base, case.replay.difference))
    delta = (difference @ case.basis) @ case.basis.T
    _, _, directions = svd(write(delta))
    along = directions[0]
    return Written(
        natural=scatter(case, write(case.test.x) @ along),
        patched=scatter(case, write(base + delta) @ along),
    )


def support(case: Case) -> SupportCurve:
    splits = list(case.by_support.values())
    on, off = (
        [
            None if np.isnan(x) or case.replay.metric is not None else float(x)
            for x in fldd_of(np.stack(drops), case.clean[: len(drops[0])])
        ]
        for drops in ([split.on for split in splits], [split.off for split in splits])
    )
    return SupportCurve(
        explained=[split.explained for split in splits],
        components=[split.components for split in splits],
        share=[split.share for split in splits],
        on=on,
        off=off,
    )


def dose_response(case: Case) -> DoseResponse:
    """Mean effect in nats of each dose of `DOSES`, and the doses of the named patches: at a site
    with a linear writer every patch that writes along W V is one of them."""
    replay = case.replay.subset(slice(DOSE_PAIRS)).measured_by(None)
    whole = case.patch.delta(replay.base, replay.source)
    effects = {0.0: 0.0, 1.0: float(case.effects["subspace"].drop[:DOSE_PAIRS].mean())}
    others = [dose for dose in DOSES if dose not in effects]
    drops = drops_of(replay, torch.stack([dose * whole for dose in others]))
    effects |= zip(others, drops.mean(1).tolist(), strict=True)
    marks = {"subspace": 1.0}
    if case.parts is not None:
        write = _write(replay.writer, whole.dtype)
        reference = write(whole).double()
        for name, patch in (
            ("row", SubspacePatch(case.parts.unit_row)),
            ("read_row", ReadWrite(case.parts.row, case.basis)),
            ("read_null", ReadWrite(case.parts.null, case.basis)),
        ):
            moved = write(patch.delta(replay.base, replay.source)).double()
            marks[name] = float((moved * reference).sum() / (reference * reference).sum())
    return DoseResponse(dose=list(DOSES), effect=[effects[dose] for dose in DOSES], marks=marks)


def _write(writer: Tensor | None, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """What a change at the site writes to the residual stream; itself where it is that stream or
    the write is not one linear map."""
    if writer is None:
        return lambda x: x
    return lambda x: x @ writer.T.to(x.device, dtype)
