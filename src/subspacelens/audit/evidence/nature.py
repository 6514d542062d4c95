"""Tests of what nature does along the subspace, without a patch or with a part of one."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from ...core.geometry import SUPPORT_AT, svd
from ...core.statistics import (
    Units,
    auroc,
    auroc_interval,
    between_class_share,
    ratio,
    within_class_share,
    within_classes,
)
from ..record import Test
from .case import NO_EFFECT, Case, class_scores, test_of, void

RANK = 1e-3
NO_TWO_CLASSES = "two values of z are needed, and these pairs have {count}"
LEAST_WITHIN = 0.02
"""A reading varies at least this share within the classes, or it cannot be told from any other that
follows z as closely."""


def amplification(case: Case) -> Test:
    """Is the connected part pushed beyond what nature does along it? Mean length of the written
    change along P_R V over that of the natural change."""
    if case.parts is None or case.parts.unit_row.shape[1] == 0:
        return void("no row part exists at this site")
    row = case.parts.unit_row
    difference = case.replay.difference.cpu().double()

    def amount(basis: Tensor) -> tuple[np.ndarray, np.ndarray]:
        written = (difference @ basis) @ (basis.T @ row)
        return written.norm(dim=1).numpy(), (difference @ row).norm(dim=1).numpy()

    written, natural = amount(case.basis)
    controls = [np.divide(*(part.mean() for part in amount(basis))) for basis in case.haar()]
    gain = ratio(written, natural, case.units)
    if gain.value is None:
        return void("nature does not move along the row part at all")
    return test_of(
        gain,
        f"along its connected part the patch writes {gain.value:.2g} times what the source "
        "prompts differ by there",
        float(np.mean(controls)),
    )


def dormancy(case: Case) -> Test:
    """Does the connected part vary with z in natural data? AUROC of z along P_R V."""
    if case.parts is None or case.parts.unit_row.shape[1] == 0:
        return void("no row part exists at this site")
    return _class_test(
        case,
        case.parts.unit_row,
        [case.parts.split.row(b) for b in case.haar()],
        "along its connected part",
    )


def separation(case: Case) -> Test:
    """Does Vᵀh carry z? Held-out AUROC; correlational, never enough alone."""
    return _class_test(case, case.basis, list(case.haar()), "along the subspace")


def _class_test(case: Case, basis: Tensor, controls: list[Tensor], where: str) -> Test:
    z = case.test.two
    if case.train.two is None or z is None:
        return void(NO_TWO_CLASSES.format(count=len(case.setting.classes)))
    scores = class_scores(case.train, case.test, basis)
    apart = auroc_interval(scores, z, case.units.of_prompts)
    control = [auroc(class_scores(case.train, case.test, b), z) for b in controls]
    between = between_class_share(scores, z)
    return test_of(
        apart,
        f"{where} the natural classes are told apart with AUROC {apart.value:.2f} "
        f"({between:.0%} of the variance lies between them)",
        float(np.mean(control)),
    )


def support(case: Case) -> Test:
    """Is the write carried by what varies in nature? E(on-support δ) / E(V), with the support that
    explains 99 % of the natural variance."""
    split = case.by_support[SUPPORT_AT]
    on, off = case.share(split.on), case.share(split.off)
    if on.value is None or off.value is None:
        return void(NO_EFFECT)
    width = case.basis.shape[0]
    return test_of(
        on,
        f"the part on the natural support ({split.components} of {width} components, from "
        f"{split.samples} activations) does {on.value:.0%}, the part off it {off.value:.0%}; "
        f"{split.share:.0%} of V is on it",
        split.components / width,
    )


def covariation(case: Case) -> Test:
    """Does what V writes naturally move with what V reads, at equal z? Slope of the amount written
    along WV on the reading, pooled within the classes of z, over training prompts; both in units of
    the patch, so that 1 is what the patch does. Of what is written only that counts to which the
    answer reacts: a sensor may write what nobody reads.

    A faithful direction writes what it reads, whatever else varies. What a disconnected direction
    reads has noise of its own, which nothing downstream follows. Only at sites with a linear
    writer; void where the reading hardly varies within the classes (`LEAST_WITHIN`).
    """
    if case.setting.written is None:
        return void("what this site writes is not one linear map of it")
    weight = case.setting.heard
    if weight is None or case.train.z is None:
        return void("the pairs carry no z, or only one value of it")
    along, size, mix = svd(weight @ case.basis)
    keep = size > RANK * size[0]
    if float(size[0]) <= RANK * case.setting.gain:
        return void("nothing to which the answer reacts is written along the subspace")
    reading = case.train.x @ case.basis
    within, share = within_classes(reading, case.train.z), within_class_share(reading, case.train.z)
    if share < LEAST_WITHIN:
        return void(
            f"only {share:.1%} of the reading's variance lies within the classes: it cannot be "
            "told from any other that follows z as closely"
        )
    read = within @ mix.T[:, keep]
    amounts = case.train.x @ (weight.T @ along[:, keep]) / size[keep]
    written = within_classes(amounts, case.train.z)
    units = Units(case.setting.fitted.units.of_prompts)
    slope = ratio((read * written).sum(dim=1), read.square().sum(dim=1), units)
    if slope.value is None:
        return void("the reading does not vary within the classes")
    return test_of(
        slope,
        f"where nature moves the reading by 1 at equal z, {slope.value:.2f} is written along the "
        f"subspace, as far as it acts; a patch writes 1 ({share:.0%} of the reading's variance is "
        "within the classes)",
        0.0,
    )
