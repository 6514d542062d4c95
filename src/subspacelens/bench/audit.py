"""`bench_audit`: the audit's own error rate, on planted models whose truth is known.

Truth comes from the construction (`planted.py`, `cases.py`), and each planted model must show by
interventions on its channels that they do what they are meant to; one that does not is left out and
listed. Every case is then audited blind, with the shipped rule and its thresholds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import stats

from ..audit import Judgement, judge
from ..audit.verdict import SMALLEST_FLDD
from ..core.errors import TaskError
from ..core.progress import track
from ..core.statistics import Units, proportion
from ..engine.capture import capture
from ..engine.replay import Replay
from ..engine.task_capture import capture_task
from ..fit.subspace import made_by
from ..model.lens import LensModel
from ..tasks import Task, contrast, ioi
from .cases import CALIBRATION, HELD_OUT, Place, Planted, Planting, plantings, subspaces
from .controls import controls
from .planted import Bed, Channels, make_channels, planted

SCHEMA = "subspacelens.bench.audit/1"
READOUT_PAIRS = 192
TRAIN_PAIRS = 128
READOUT_SEED = 1000
RESAMPLES = 1000
SMALLEST_EFFECT = 0.02
SILENT = 0.02
SHARES = ("full_component", "row_effect", "covariation", "support", "natural", "acting")
USED = ("faithful", "partial")
"""Verdicts that say that the model's own way was patched."""
"""Tests whose value is high for a faithful subspace; the others are ranked by their value."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One audited case: what is true, and what the audit said."""

    half: str
    task: str
    site: str
    tier: str
    model: int
    k: int
    noise: float
    drift: float
    kind: str
    share: float | None
    fldd: float | None
    score: float
    verdict: str
    tests: dict[str, float | None]
    degenerate: bool

    @classmethod
    def of(
        cls,
        half: str,
        place: Place,
        planting: Planting,
        model: int,
        case: Planted,
        judgement: Judgement,
    ) -> Result:
        fldd, low = judgement.effects["subspace"].fldd.value, judgement.effects["subspace"].nats.low
        return cls(
            half=half,
            task=place.task,
            site=str(place.site),
            tier=planting.tier,
            model=model,
            k=planting.k,
            noise=planting.plan.noise,
            drift=planting.plan.drift,
            kind=case.kind,
            share=case.share,
            fldd=fldd,
            score=judgement.verdict.score,
            verdict=judgement.verdict.label,
            tests={name: test.value for name, test in judgement.tests.items()},
            degenerate=fldd is None or fldd < SMALLEST_FLDD or low is None or low <= 0,
        )

    @property
    def planted_model(self) -> tuple[str, str, int]:
        """What cases share that were audited in one planted model."""
        return self.task, self.site, self.model


def bench_audit(
    lens: LensModel,
    *,
    places: Sequence[Place] = HELD_OUT,
    calibration: Sequence[Place] = CALIBRATION,
    cases: int | None = None,
    controlled: bool = True,
) -> dict:
    """Plants, audits and scores; `cases` ends each half early, `controlled` adds the controls on
    the model as it is (`controls.py`). The result is made of JSON types.

    `auroc`: of the score, illusory against faithful, over tiers i and iii of the held-out half,
    with a 95 % bootstrap interval over planted models. `miss_rate`: illusory cases called faithful;
    `false_alarm_rate`: faithful cases called illusory; `undetermined_rate`: of both; all three
    among cases whose effect is large enough for a verdict, with intervals over planted models.
    `spearman_mixed`: of the score and the true share on mixed cases. `by_test`: AUROC of each test
    alone. `same_write`: tier ii.

    Raises `TaskError` if the model is too shallow or its tokenizer lacks the tasks' words.
    """
    deepest = max(place.site.layer for place in (*places, *calibration))
    if len(lens.map.blocks) <= deepest:
        raise TaskError(f"bench audit plants in block {deepest}; this model has fewer")
    results: list[Result] = []
    skipped: list[str] = []
    for half, chosen in (("calibration", calibration), ("held_out", places)):
        results += _half(lens, half, chosen, cases, skipped)
    held = [r for r in results if r.half == "held_out"]
    return {
        "schema": SCHEMA,
        "model": lens.id,
        "weights_sha256": lens.weights_sha256,
        **summary(held),
        "calibration": summary([r for r in results if r.half == "calibration"]),
        "controls": controls(lens) if controlled else [],
        "skipped": skipped,
        "cases": [r.__dict__ for r in results],
    }


def _half(
    lens: LensModel, half: str, places: Sequence[Place], cases: int | None, skipped: list[str]
) -> list[Result]:
    results: list[Result] = []
    for number, place in enumerate(track(places, f"planted places, {half}")):
        site = place.site
        if cases is not None and len(results) >= cases:
            break
        streams = [replace(site, stream=stream) for stream in ("resid_mid", "resid_post")]
        pairs = _task(lens, place.task, READOUT_PAIRS, 1, READOUT_SEED).train
        bed = Bed.of(capture(lens, pairs, streams), site)
        for index, planting in enumerate(track(list(plantings(number)), f"planted at {site}")):
            model = 100 * number + index
            channels = make_channels(bed, planting.plan, planting.per_role, seed=model)
            task = _task(lens, place.task, TRAIN_PAIRS, planting.pairs, 0)
            with planted(lens, site.layer, channels) as wide:
                captures = capture_task(wide, task, [site])
                wrong = role_errors(captures.test.at(site), channels, planting)
                if wrong:
                    skipped.append(f"{half}, {place.task}, {site}, tier {planting.tier}: {wrong}")
                    continue
                for case in subspaces(planting, channels, wide.map.dim(site), model):
                    fit = {"method": "planted"}
                    subspace = made_by(wide, site, case.basis, captures.train.pairs.sha256, fit)
                    judgement = judge(wide, captures, subspace, budget="fast")
                    results.append(Result.of(half, place, planting, model, case, judgement))
    return results if cases is None else results[:cases]


def _task(lens: LensModel, name: str, train: int, test: int, seed: int) -> Task:
    sizes = dict(train=train, test=test, held_out=0, seed=seed)
    if name == "ioi":
        return ioi(lens.tokenizer, **sizes)
    return contrast(lens.tokenizer, name, **sizes)


def role_errors(replay: Replay, channels: Channels, planting: Planting) -> str:
    """What is wrong with the planted channels, nothing if they do what they are meant to:
    exchanged between base and source, faithful ones move the answer, sensors and dormant ones do
    not; moved as faithful ones are, dormant ones do."""
    clean, difference = replay.clean.logit_diff, replay.difference.cpu().double()
    moves = {"woken": True, "sensor": False, "faithful": planting.plan.beside}
    if planting.plan.drift <= 0.1:
        moves["dormant"] = False
    names, deltas = [], []
    for channel in range(planting.per_role):
        reads = {
            role: channels.direction({channels.of(role)[channel]: 1.0}, difference.shape[1])
            for role in ("faithful", "sensor", "dormant")
        }
        for name in moves:
            read, write = reads.get(name, reads["faithful"]), reads.get(name, reads["dormant"])
            names.append(name)
            deltas.append((difference @ read)[:, None] * write)
    stacked = torch.stack(deltas).to(replay.base)
    patched = replay.delta_outcomes(stacked).logit_diff.double().mean(dim=1)
    for name, fldd in zip(names, (1 - patched / clean.double().mean()).tolist(), strict=True):
        if moves[name] and fldd < SMALLEST_EFFECT:
            return f"a {name} channel moves the answer by {fldd:.2f} only"
        if not moves[name] and abs(fldd) > SILENT:
            return f"a {name} channel moves the answer by {fldd:.2f}"
    return ""


def summary(results: Sequence[Result]) -> dict:
    """The scores of one half (see `bench_audit`)."""
    clear = [r for r in results if r.tier in ("i", "iii")]
    judged = [r for r in clear if r.kind in ("faithful", "illusory")]
    enough = [r for r in judged if not r.degenerate]
    illusory = [r for r in enough if r.kind == "illusory"]
    faithful = [r for r in enough if r.kind == "faithful"]
    mixed = [r for r in clear if r.kind == "mixed" and not r.degenerate]
    inactive = [r for r in results if r.kind in ("sensor", "dormant", "random")]
    names = sorted({name for r in judged for name in r.tests})
    return {
        "auroc": _auroc(judged),
        "auroc_same_write": _auroc(
            [r for r in results if r.tier == "ii" and r.noise >= 0.3 and r.drift <= 0.1]
        ),
        "auroc_by_tier": {
            tier: _auroc([r for r in results if r.tier == tier and r.share in (0.0, 1.0)])
            for tier in ("i", "ii", "iii")
        },
        "miss_rate": _rate(illusory, lambda r: r.verdict in USED),
        "false_alarm_rate": _rate(faithful, lambda r: r.verdict == "illusory"),
        "undetermined_rate": _rate(enough, lambda r: r.verdict == "undetermined"),
        "inactive_called_faithful": _rate(inactive, lambda r: r.verdict in USED),
        "spearman_mixed": _spearman(mixed),
        "by_test": {
            name: _auroc([r for r in judged if r.tests.get(name) is not None], _of_test(name))
            for name in names
        },
        "all_tiers": _auroc(results),
        "by_test_all_tiers": {
            name: _auroc([r for r in results if r.tests.get(name) is not None], _of_test(name))
            for name in names
        },
        "same_write": [
            _same_write(results, noise, drift)
            for noise, drift in sorted({(r.noise, r.drift) for r in results if r.tier == "ii"})
        ],
        "count": len(results),
    }


def _of_test(name: str) -> Callable[[Result], float]:
    sign = -1.0 if name in SHARES else 1.0
    return lambda r: sign * float(r.tests[name] or 0.0)


def _auroc(
    results: Sequence[Result], score: Callable[[Result], float] = lambda r: r.score
) -> dict[str, float | None]:
    """Illusory against faithful, with a bootstrap interval over planted models."""
    chosen = [r for r in results if r.kind in ("faithful", "illusory")]
    truth = np.array([r.kind == "illusory" for r in chosen], dtype=int)
    if not 0 < truth.sum() < len(truth):
        return {"value": None, "low": None, "high": None}
    ones, zeros = np.flatnonzero(truth == 1), np.flatnonzero(truth == 0)
    scores = np.array([score(r) for r in chosen])
    above = (1 + np.sign(scores[ones][:, None] - scores[zeros])) / 2
    units = Units.of(r.planted_model for r in chosen)
    rng = np.random.default_rng(0)
    draws = []
    while len(draws) < RESAMPLES:
        drawn = np.bincount(rng.integers(units.count, size=units.count), minlength=units.count)
        times = drawn[units.of_pair]
        weight = np.outer(times[ones], times[zeros])
        if weight.any():
            draws.append((weight * above).sum() / weight.sum())
    low, high = np.quantile(draws, [0.025, 0.975])
    return {"value": float(above.mean()), "low": float(low), "high": float(high)}


def _rate(results: Sequence[Result], hit: Callable[[Result], bool]) -> dict:
    """Share of cases, with an interval over planted models: cases of one are not independent."""
    if not results:
        return {"value": None, "low": None, "high": None, "hits": 0, "of": 0}
    hits = np.array([hit(r) for r in results])
    share = proportion(hits, Units.of(r.planted_model for r in results))
    return share.model_dump() | {"hits": int(hits.sum()), "of": len(results)}


def _spearman(mixed: Sequence[Result]) -> float | None:
    if len({r.share for r in mixed}) < 2 or len({r.score for r in mixed}) < 2:
        return None
    correlation = stats.spearmanr([r.share for r in mixed], [r.score for r in mixed])
    return float(correlation[0])  # type: ignore[arg-type]


def _same_write(results: Sequence[Result], noise: float, drift: float) -> dict:
    """Tier ii at one noise and drift: AUROC, wrong verdicts and undetermined ones."""
    chosen = [r for r in results if r.tier == "ii" and (r.noise, r.drift) == (noise, drift)]
    wrong = {"faithful": ("illusory",), "illusory": USED}
    return {
        "noise": noise,
        "drift": drift,
        "auroc": _auroc(chosen)["value"],
        "wrong": _rate(chosen, lambda r: r.verdict in wrong[r.kind]),
        "undetermined": _rate(chosen, lambda r: r.verdict == "undetermined"),
    }
