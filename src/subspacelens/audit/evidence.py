"""The tests of the audit, each a question with a statistic, an interval, a control and a reading.

What each test asks and its limits are in the documentation (docs/audit.md). E(patch) is the mean
paired drop of the logit difference in nats; V the subspace, P_R and P_N its parts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..capture import Capture, Outcomes
from ..geometry import Support, haar
from ..model import LensModel
from ..patching import ReadWrite, SubspacePatch
from ..replay import Replay
from ..results import Estimate, Test
from ..site import Site
from ..task_capture import TaskCapture
from .decomposition import READERS_IN_PROXY, Decomposition, ReaderShare, proxy_split
from .effects import Scorer
from .statistics import auroc, auroc_interval, between_class_share, ratio

EXPLAINED = (0.5, 0.8, 0.9, 0.95, 0.99, 0.999)
SUPPORT_AT = 0.99
DOSES = (-0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
DOSE_PAIRS = 64
CONTROL_DRAWS = 50


@dataclass(frozen=True)
class Natural:
    """Activations of the prompts of a capture, bases then sources, float64 (2n, dim), and z (2n,),
    None where the pairs carry none. `role` is 0 for bases and 1 for sources."""

    x: Tensor
    z: np.ndarray | None
    role: np.ndarray

    @classmethod
    def of(cls, captured: Capture, site: Site) -> Natural:
        x = torch.cat([captured.base[site], captured.source[site]]).cpu().double()
        pairs = captured.pairs.pairs
        values = [p.z[0] if p.z else None for p in pairs] + [p.z[1] if p.z else None for p in pairs]
        z = None if None in values else np.array(values)
        if z is not None and z.min() == z.max():
            z = None
        return cls(x, z, np.repeat([0, 1], len(pairs)))


@dataclass(frozen=True)
class Case:
    """All that the tests of one subspace need, computed once."""

    lens: LensModel
    site: Site
    basis: Tensor
    captures: TaskCapture
    replay: Replay
    scorer: Scorer
    parts: Decomposition | None
    readers: tuple[ReaderShare, ...]
    outcomes: dict[str, Outcomes | None]
    train: Natural
    test: Natural
    seed: int

    def drop(self, name: str) -> np.ndarray | None:
        found = self.outcomes[name]
        return None if found is None else self.scorer.drop(found)

    def share(self, drop: np.ndarray | None) -> Estimate:
        """E(patch) / E(V); nothing where either does not exist or E(V) cannot be told from 0."""
        whole = self.drop("subspace")
        assert whole is not None
        if drop is None or abs(whole.mean()) < 1e-9:
            return Estimate(value=None)
        return ratio(drop, whole, self.scorer.units)

    def haar(self) -> Tensor:
        """Random subspaces of the same dimension, (draws, dim, k)."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        dim, k = self.basis.shape
        return haar(dim, k, CONTROL_DRAWS, generator)


def _test(estimate: Estimate, reading: str, control: float | None = None) -> Test:
    return Test(**estimate.model_dump(), control=control, reading=reading)


def _void(reading: str) -> Test:
    return Test(value=None, control=None, reading=reading)


def full_component(case: Case) -> Test:
    """Does the whole component do what its part does? E(full) / E(V)."""
    found = case.share(case.drop("full"))
    if found.value is None:
        return _void("the subspace has no effect to compare with")
    return _test(found, f"the whole component does {found.value:.0%} of what its subspace does")


def row_effect(case: Case) -> Test:
    """Does the effect survive without the disconnected part? E(unit row) / E(V)."""
    if case.parts is None or (case.parts.exact and case.parts.degenerate):
        rank = (
            "no split exists at this site"
            if case.parts is None
            else (
                f"the map read downstream has rank {case.parts.split.rank} in "
                f"{case.basis.shape[0]} dimensions"
            )
        )
        return _void(f"void: {rank}, so that the split cannot tell anything")
    found = case.share(case.drop("row"))
    if found.value is None:
        return _void("the row part does not exist or the subspace has no effect")
    norm = float(case.parts.row.norm() ** 2 / case.basis.norm() ** 2)
    if case.parts.exact:
        return _test(
            found,
            f"without its disconnected part ({1 - norm:.0%} of its squared norm) the subspace "
            f"keeps {found.value:.0%} of its effect",
        )
    sizes = ", ".join(f"{count}: {share:.0%}" for count, share in _by_reader_count(case))
    return _test(
        found,
        f"a proxy: along what the {len(case.parts.readers)} strongest attention readers see, "
        f"{found.value:.0%} of the effect remains; by number of readers {sizes}",
    )


def _by_reader_count(case: Case) -> list[tuple[str, float]]:
    attention = [r for r in case.readers if r.reader.attention]
    counts = [c for c in (1, READERS_IN_PROXY, 10) if c <= len(attention)] + [len(attention)]
    base, source = case.captures.test.base[case.site], case.captures.test.source[case.site]
    deltas = []
    for count in counts:
        row = proxy_split(case.readers, case.basis, count).unit_row
        deltas.append(SubspacePatch(row).delta(base, source))
    found = case.replay.outcomes(torch.stack(deltas)).logit_diff.double().numpy()
    whole = case.drop("subspace")
    assert whole is not None
    shares = (case.scorer.clean - found).sum(1) / whole.sum()
    names = [str(c) for c in counts[:-1]] + [f"all {counts[-1]}"]
    return list(zip(names, shares.tolist(), strict=True))


def null_effect(case: Case) -> Test:
    """Exact sites: a numerical check, the largest change in nats that the null part makes.
    Residual sites: E(unit null) / E(V) of the proxy."""
    drop = case.drop("null")
    if case.parts is None or drop is None:
        return _void("the subspace has no null part")
    if case.parts.exact:
        worst = float(np.abs(drop).max())
        fine = "as it must be" if worst < 1e-2 else "which it must not: do not trust the split"
        return _test(
            Estimate(value=worst, low=worst, high=worst),
            f"the null part changes no answer by more than {worst:.1g} nats, {fine}",
        )
    found = case.share(drop)
    if found.value is None:
        return _void("the subspace has no effect to compare with")
    return _test(
        found,
        f"a proxy: outside of what the strongest attention readers see, {found.value:.0%} of the "
        "effect remains",
    )


def read_source(case: Case) -> Test:
    """Which part senses? E(read null, write V) / E(V)."""
    found = case.share(case.drop("read_null"))
    row = case.share(case.drop("read_row")).value
    if found.value is None or row is None:
        return _void("no split exists at this site, or the subspace has no effect")
    return _test(
        found,
        f"reading only the null part gives {found.value:.0%} of the effect, only the row part "
        f"{row:.0%}; faithful directions read from the null part too, so this alone decides "
        "nothing",
    )


def amplification(case: Case) -> Test:
    """Is the connected part pushed beyond what nature does along it? Mean length of the written
    change along P_R V over that of the natural change."""
    if case.parts is None or case.parts.unit_row.shape[1] == 0:
        return _void("no row part exists at this site")
    row = case.parts.unit_row
    difference = case.captures.test.difference(case.site).cpu().double()

    def amount(basis: Tensor) -> tuple[np.ndarray, np.ndarray]:
        written = (difference @ basis) @ (basis.T @ row)
        return written.norm(dim=1).numpy(), (difference @ row).norm(dim=1).numpy()

    written, natural = amount(case.basis)
    controls = [np.divide(*(part.mean() for part in amount(basis))) for basis in case.haar()]
    found = ratio(written, natural, case.scorer.units)
    if found.value is None:
        return _void("nature does not move along the row part at all")
    return _test(
        found,
        f"along its connected part the patch writes {found.value:.2g} times what the source "
        "prompts differ by there",
        float(np.mean(controls)),
    )


def dormancy(case: Case) -> Test:
    """Does the connected part vary with z in natural data? AUROC of z along P_R V."""
    if case.parts is None or case.parts.unit_row.shape[1] == 0:
        return _void("no row part exists at this site")
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
    if case.train.z is None or case.test.z is None:
        return _void("the pairs carry no z, or only one value of it")
    scores = class_scores(case.train, case.test, basis)
    found = auroc_interval(scores, case.test.z)
    control = [auroc(class_scores(case.train, case.test, b), case.test.z) for b in controls]
    between = between_class_share(scores, case.test.z)
    return _test(
        found,
        f"{where} the natural classes are told apart with AUROC {found.value:.2f} "
        f"({between:.0%} of the variance lies between them)",
        float(np.mean(control)),
    )


def class_scores(train: Natural, test: Natural, basis: Tensor) -> np.ndarray:
    """Projection of the test prompts on the direction within `basis` that joins the class means
    of the training prompts."""
    z = train.role if train.z is None else train.z
    inside = train.x @ basis
    axis = inside[z == 1].mean(0) - inside[z == 0].mean(0)
    return ((test.x @ basis) @ (axis / axis.norm().clamp(min=1e-30))).numpy()


@dataclass(frozen=True)
class SupportSplit:
    """The patch split into what lies on the natural support and what lies off it, for a range of
    explained variances. `on`, `off`: drops (len(EXPLAINED), n) in nats."""

    components: list[int]
    share: list[float]
    on: np.ndarray
    off: np.ndarray
    samples: int


def split_by_support(case: Case) -> SupportSplit:
    """Estimates the support on the training prompts and replays both parts on the test pairs."""
    support = Support.of(case.train.x)
    base, source = case.captures.test.base[case.site], case.captures.test.source[case.site]
    components = [support.components(e) for e in EXPLAINED]
    ons = [support.on(case.basis, count) for count in components]
    patches = [ReadWrite(case.basis, on) for on in ons]
    patches += [ReadWrite(case.basis, case.basis - on) for on in ons]
    deltas = torch.stack([patch.delta(base, source) for patch in patches])
    found = case.replay.outcomes(deltas).logit_diff.double().numpy()
    drops = case.scorer.clean - found
    size = float(case.basis.norm() ** 2)
    return SupportSplit(
        components,
        [float(on.norm() ** 2) / size for on in ons],
        drops[: len(ons)],
        drops[len(ons) :],
        len(case.train.x),
    )


def support(case: Case, split: SupportSplit) -> Test:
    """Is the write carried by what varies in nature? E(on-support δ) / E(V), with the support that
    explains 99 % of the natural variance."""
    at = EXPLAINED.index(SUPPORT_AT)
    found = case.share(split.on[at])
    if found.value is None:
        return _void("the subspace has no effect to compare with")
    off = case.share(split.off[at]).value
    width = case.basis.shape[0]
    return _test(
        found,
        f"the part on the natural support ({split.components[at]} of {width} components, from "
        f"{split.samples} activations) does {found.value:.0%}, the part off it {off:.0%}; "
        f"{split.share[at]:.0%} of V is on it",
        split.components[at] / width,
    )


def generalisation(case: Case) -> Test:
    """Does it work on templates the fit never saw? FLDD held out over FLDD on the test split."""
    held = case.captures.held_out
    if held is None:
        return _void("the task has no held-out template")
    replay = Replay(case.lens, held, case.site, memory=case.replay.memory)
    patch = SubspacePatch(case.basis)
    found = replay.outcomes(patch.delta(held.base[case.site], held.source[case.site]))
    scorer = Scorer.of(held)
    whole = case.drop("subspace")
    assert whole is not None
    inside = whole.sum() / case.scorer.clean.sum()
    if abs(inside) < 1e-9:
        return _void("the subspace has no effect to compare with")
    estimate = ratio(scorer.drop(found), scorer.clean, scorer.units, factor=1 / inside)
    if estimate.value is None:
        return _void("the model does not do the task on the held-out templates")
    return _test(
        estimate, f"on templates that were not fitted the effect is {estimate.value:.0%} as large"
    )


def dose_response(case: Case) -> tuple[list[float], dict[str, float]]:
    """Mean effect in nats of each dose of `DOSES`, and the doses of the named patches: at a site
    with a linear writer every patch that writes along W V is one of them."""
    some = torch.arange(min(DOSE_PAIRS, len(case.captures.test.pairs)))
    replay = case.replay.subset(some)
    base, source = replay.captured.base[case.site], replay.captured.source[case.site]
    whole = SubspacePatch(case.basis).delta(base, source)
    found = replay.outcomes(torch.stack([dose * whole for dose in DOSES]))
    clean = replay.captured.clean.logit_diff
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
