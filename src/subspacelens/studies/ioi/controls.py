"""What the same search finds where there is nothing, and whether it finds the same twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from ...certify import centred
from ...core.errors import SiteError
from ...core.geometry import haar, principal_angles
from ...core.progress import track
from ...core.records import Estimate, Record
from ...core.site import Site
from ...engine.capture import Capture, capture
from ...engine.effect import Effect
from ...engine.outcomes import Outcomes
from ...engine.patches import NoOp, Patch, SubspacePatch
from ...engine.random_weights import random_mlp, random_model
from ...engine.replay import Replay
from ...engine.task_capture import TaskCapture
from ...fit import das
from ...fit.loss import LOSSES
from ...fit.subspace import Subspace
from ...measure.effects import named_patches
from ...measure.splits import exact_split
from ...model.lens import LensModel
from .constructed import constructed_illusion
from .data import shuffled_labels
from .directions import Directions, parts_of
from .plan import Sizes

RANDOM_MODEL = "model of random weights"


class Control(Record):
    """One patch of one control, on pairs that were not fitted. `fldd` is None where there is no
    clean logit difference to divide by (a model of random weights). `fitted_nats`: the effect that
    the fit reached on its own pairs, towards what it was asked for."""

    control: str
    site: str
    patch: str
    seed: int
    nats: Estimate
    fldd: Estimate
    iia: Estimate
    iia_no_op: Estimate
    fitted_nats: float | None = None


class Stability(Record):
    """DAS from several seeds: FLDD of each, and principal angles in degrees between the directions
    of each two, beside those of random directions (mean and 2.5 % quantile)."""

    site: str
    seeds: list[int]
    fldd: list[float]
    angles: list[float]
    random_mean: float
    random_low: float


class Selectivity(Record):
    """IIA of DAS in the trained model beside that in a copy of random weights, at the same site and
    for as many steps, and the difference (Sutter et al.)."""

    site: str
    trained: float
    random: float
    selectivity: float


class LossRow(Record):
    """DAS with one of the losses, on pairs that were not fitted; `cosine`: absolute, with the
    direction that the other loss finds."""

    site: str
    loss: str
    fldd: Estimate
    iia: Estimate
    cosine: float


@dataclass(frozen=True)
class Setup:
    """What every control of one place needs."""

    captures: TaskCapture
    directions: Directions
    sizes: Sizes
    seed: int

    @property
    def lens(self) -> LensModel:
        return self.captures.train.lens

    def fit(self, captured: Capture, site: Site, seed: int, **options) -> Subspace:
        steps = self.sizes.control_steps
        return das(captured.lens, captured, site, seed=seed, steps=steps, **options)

    def score(
        self, replay: Replay, patches: dict[str, Patch | None]
    ) -> dict[str, dict[str, Estimate]]:
        """`[patch][metric]` of the patches that there are."""
        present = {name: patch for name, patch in patches.items() if patch is not None}
        effects = replay.effects(present, decided=True)
        return {name: _metrics(effect) for name, effect in effects.items()}

    def rows(
        self,
        control: str,
        site: Site,
        seed: int,
        estimates: dict[str, dict[str, Estimate]],
        fitted: float | None = None,
    ) -> list[Control]:
        """Records of what `score` found; its `no_op` gives the IIA without a patch."""
        no_op = estimates.pop("no_op")["iia"]
        return [
            Control(
                control=control, site=str(site), patch=patch, seed=seed, iia_no_op=no_op,
                fitted_nats=fitted, **metrics,
            )
            for patch, metrics in estimates.items()
        ]  # fmt: skip

    def tried(self, control: str, train: Capture, test: Capture, site: Site) -> list[Control]:
        """DAS on `train`, its effect there and on `test`."""
        v = SubspacePatch(self.fit(train, site, self.seed).basis)
        fitted = self.score(train.at(site), {"v": v})["v"]["nats"].value
        estimates = self.score(test.at(site), {"no_op": NoOp(), "v": v})
        return self.rows(control, site, self.seed, estimates, fitted)

    @cached_property
    def seeded(self) -> dict[Site, list[Subspace]]:
        """DAS from as many random starts as `sizes.seeds` says, at each chosen site."""
        return {
            site: [
                self.fit(self.captures.train, site, self.seed + i, start="random")
                for i in range(self.sizes.seeds)
            ]
            for site in self.chosen
        }

    def illusion(self, name: str) -> Subspace:
        """The constructed illusion at the main MLP towards one of the bottleneck's directions."""
        target = self.directions.residual[name]
        return constructed_illusion(self.captures.train, self.directions.main, target)

    @property
    def chosen(self) -> tuple[Site, Site]:
        """The main MLP and the bottleneck."""
        return self.directions.main, self.directions.place.bottleneck


def _metrics(effect: Effect) -> dict[str, Estimate]:
    clean = effect.clean.logit_diff.double().numpy()
    meaningful = clean.mean() > 2 * clean.std() / len(clean) ** 0.5
    fldd = effect.fldd if meaningful else Estimate(value=None)
    return {"nats": effect.nats, "fldd": fldd, "iia": effect.iia}


def controls(setup: Setup) -> list[Control]:
    """Every control of one place but the random directions, which its audits have."""
    parts = (shuffled, random_mlps, constructed)
    return [row for part in track(parts, "controls") for row in part(setup)]


def shuffled(setup: Setup) -> list[Control]:
    """DAS asked for answers that have nothing to do with z."""
    captured, seed = setup.captures.train, setup.seed
    pairs, flipped = shuffled_labels(captured.pairs, seed)
    sign = torch.where(torch.tensor(flipped), -1.0, 1.0)
    clean = Outcomes(captured.clean.logit_diff * sign, captured.clean.top)
    odd = replace(captured, pairs=pairs, clean=clean)
    rows = []
    for site in setup.chosen:
        rows += setup.tried("shuffled labels", odd, setup.captures.test, site)
    return rows


def random_mlps(setup: Setup) -> list[Control]:
    """DAS in an MLP of random weights: an illusion that needs no learnt feature."""
    site, rows = setup.directions.main, []
    for seed in range(setup.sizes.random_mlps):
        try:
            lens, train = random_mlp(setup.lens, setup.captures.train, site, seed)
            _, test = random_mlp(setup.lens, setup.captures.test, site, seed)
        except SiteError:
            return []
        basis = setup.fit(train, site, seed).basis.double()
        parts = exact_split(lens, site, basis, centred=centred(setup.lens))
        estimates = setup.score(test.at(site), _short(named_patches(parts, basis)))
        rows += setup.rows("random-weight MLP", site, seed, estimates)
    return rows


def constructed(setup: Setup) -> list[Control]:
    """The illusion that is built, not searched for, towards v_resid and towards v_grad."""
    site, rows = setup.directions.main, []
    for name in ("v_resid", "v_grad"):
        if name not in setup.directions.residual:
            continue
        parts = parts_of(setup.lens, setup.directions.place, setup.illusion(name))
        estimates = setup.score(
            setup.captures.test.at(site), _short(named_patches(parts, parts.basis))
        )
        rows += setup.rows(f"constructed illusion towards {name}", site, setup.seed, estimates)
    return rows


def _short(patches: dict[str, Patch]) -> dict[str, Patch | None]:
    names = {"no_op": "no_op", "full": "full", "subspace": "v", "row": "v row", "null": "v null"}
    return {names[key]: patch for key, patch in patches.items() if key in names}


def random_model_controls(setups: list[Setup]) -> list[Control]:
    """DAS at the same sites of a copy with random weights, which knows nothing of the task."""
    first = setups[0]
    lens = random_model(first.lens, first.seed)
    sites = [site for setup in setups for site in setup.chosen]
    task, memory = first.captures.task, first.captures.train.memory
    train, test = (capture(lens, pairs, sites, memory=memory) for pairs in (task.train, task.test))
    rows = []
    for setup in setups:
        for site in setup.chosen:
            rows += setup.tried(RANDOM_MODEL, train, test, site)
    return rows


def selectivity(losses: Sequence[LossRow], rows: Sequence[Control]) -> list[Selectivity]:
    """What the model of random weights says against the logit-difference fits of `losses`."""
    random = {row.site: row.iia.value or 0.0 for row in rows if row.control == RANDOM_MODEL}
    trained = {row.site: row.iia.value or 0.0 for row in losses if row.loss == LOSSES[0]}
    return [
        Selectivity(site=site, trained=iia, random=random[site], selectivity=iia - random[site])
        for site, iia in trained.items()
    ]


def stability(setup: Setup) -> list[Stability]:
    """DAS from `sizes.seeds` seeds at the main MLP and at the bottleneck."""
    rows = []
    for site, subspaces in setup.seeded.items():
        seeds = [int(v.fit["seed"]) for v in subspaces]
        bases = [v.basis for v in subspaces]
        patches: dict[str, Patch | None] = {
            str(s): SubspacePatch(b) for s, b in zip(seeds, bases, strict=True)
        }
        estimates = setup.score(setup.captures.test.at(site), patches)
        null = haar(len(bases[0]), 1, 1000, torch.Generator().manual_seed(setup.seed))
        random = [_degrees(a, b) for a, b in zip(null[::2], null[1::2], strict=True)]
        rows.append(
            Stability(
                site=str(site),
                seeds=seeds,
                fldd=[estimates[str(s)]["fldd"].value or 0.0 for s in seeds],
                angles=[_degrees(a, b) for a, b in combinations(bases, 2)],
                random_mean=float(np.mean(random)),
                random_low=float(np.quantile(random, 0.025)),
            )
        )
    return rows


def _degrees(a: Tensor, b: Tensor) -> float:
    return float(np.rad2deg(principal_angles(a, b)[0]))


def losses(setup: Setup) -> list[LossRow]:
    """DAS with the logit difference, and with the cross-entropy over the whole vocabulary as in the
    paper, from the same seed and for as many steps."""
    rows = []
    for site, subspaces in setup.seeded.items():
        first = subspaces[0].basis
        second = setup.fit(
            setup.captures.train, site, setup.seed, start="random", loss=LOSSES[1]
        ).basis
        bases = dict(zip(LOSSES, (first, second), strict=True))
        patches: dict[str, Patch | None] = {k: SubspacePatch(b) for k, b in bases.items()}
        estimates = setup.score(setup.captures.test.at(site), patches)
        rows += [
            LossRow(
                site=str(site), loss=loss, fldd=estimates[loss]["fldd"], iia=estimates[loss]["iia"],
                cosine=abs(float(first[:, 0] @ second[:, 0])),
            )
            for loss in bases
        ]  # fmt: skip
    return rows
