"""`bench_constraints`: fits that are held to what nature does, against plain DAS and against the
simple ones, where the truth is known. All fit on some pairs and are measured on others.

*Trained*: tiny models in which z was trained to live at a known place (`trained_truth`). *Planted*:
at places of a model as it is one channel, one sensor and one dormant are planted
(`audit.controls.spikes`), the illusion that a fit can fall for: the sensor follows z and nobody
reads it, the dormant does not follow z and moves the answer. `clean` is the share of a subspace's
effect that is left when what it writes along the dormant is taken out: nature writes nothing there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..audit.controls.bed import Bed
from ..audit.controls.run import Planted, planted_models
from ..audit.controls.spikes import Plan
from ..audit.controls.words import USED
from ..audit.evidence import Setting
from ..audit.judging import judge_blind, setting_at
from ..audit.verdict import SMALLEST_FLDD
from ..core.errors import SiteError, SubspaceError, TaskError
from ..core.format import plain, with_interval
from ..core.geometry import orthonormal, unit
from ..core.kept import keep, kept
from ..core.progress import track
from ..core.statistics import Units, mean
from ..engine.capture import Capture
from ..engine.patches import Full, SubspacePatch
from ..engine.task_capture import capture_task
from ..fit import FITS
from ..fit.subspace import Subspace, made_by
from ..measure.effects import drops_of
from ..model.lens import LensModel
from ..tasks import Task
from .audit import EFFECTS, WITHIN
from .kept import source_sha256
from .places import KINDS, places
from .trained import Case, sites_of_column, trained_row
from .truth import TrainedModel, load_trained, parity_task, trained_names

SCHEMA = "subspacelens.bench.constraints/1"
CHOICES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "mean difference": ("mean-difference", {}),
    "probe": ("probe", {}),
    "PCA": ("pca", {}),
    "DAS": ("das", {}),
    "row": ("das", {"constraint": "row"}),
    "support": ("das", {"constraint": "support"}),
    "between-classes": ("das", {"constraint": "between-classes"}),
    "natural": ("das", {"constraint": "natural"}),
    "isolate 1": ("das", {"isolate": 1.0}),
    "isolate 8": ("das", {"isolate": 8.0}),
    "latent 1": ("das", {"counterfactual_latent": 1.0}),
    "latent 8": ("das", {"counterfactual_latent": 8.0}),
    "latent 64": ("das", {"counterfactual_latent": 64.0}),
    "natural, isolate 1": ("das", {"constraint": "natural", "isolate": 1.0}),
}
"""What is compared: by its name in the table, a fit and its options."""
TRUTH = "truth"
PAIRS = 128
ELSEWHERE = ("mlp_act", "resid_post")
ROLES = ("faithful", "dormant")
OUTSIDE = "elsewhere"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked for: how many `places`, and planted `models` at each kind of site of each."""

    places: int = 3
    models: int = 2
    seed: int = 0
    code: str = field(default_factory=source_sha256)


def bench_constraints(
    lens: LensModel | None,
    task: Task | None,
    folder: Path,
    *,
    asked: Asked | None = None,
    names: Sequence[str] | None = None,
    pairs: int = PAIRS,
) -> dict[str, Any]:
    """Rows of what each of `CHOICES` finds: in the trained models `names` (by default all), and,
    where there is a `lens`, in models planted at places of a task. Made of JSON types; each place
    of a model is written to `folder` when it is done, and not done again by the same code.

    A row has `part`, trained or planted, `where`, the kind of site, *elsewhere* for sites of a
    trained model where z was not trained to live; `model`, the unit of inference; `site`, `fit`,
    `dim`; `cosine`, the mean squared cosine with the true channel, and `written` of what both write
    (trained); `fldd`, `whole` of the whole component; `clean` (planted), `natural` and `beyond`
    (trained), shares of the effect; `truth` of trained ones (`trained_truth`) and the audit's
    `verdict`, None where the effect is too small.

    >>> result = bench_constraints(None, None, Path("runs/constraints"), names=["mlp"])
    >>> print(constraints_table(result))
    """
    asked = asked or Asked()
    rows = list(
        _trained(trained_names() if names is None else names, folder / "trained", asked, pairs)
    )
    skipped: list[str] = []
    if lens is not None and task is not None:
        rows += _planted(lens, task, folder / "planted", asked, skipped)
    model = None if lens is None else lens.id
    return {"schema": SCHEMA, "model": model, "skipped": skipped, "rows": rows}


def _trained(names: Sequence[str], folder: Path, asked: Asked, pairs: int) -> Iterator[dict]:
    for name in track(names, "trained models"):
        trained = load_trained(name)
        sites = [
            site
            for site in sites_of_column(trained)
            if site == trained.site or site.stream in ELSEWHERE
        ]
        origin = {"code": asked.code, "pairs": pairs, "seed": asked.seed}
        paths = [folder / name / f"{site}.json" for site in sites]
        there = [kept(path, origin) for path in paths]
        case = None
        for site, path, part in zip(sites, paths, there, strict=True):
            if part is None:
                if case is None:
                    task = parity_task(pairs, pairs, asked.seed)
                    wanted = [*sites, trained.site, trained.behind]
                    case = Case(trained, capture_task(trained.lens, task, wanted))
                dim = trained.basis.shape[1]
                found = dict(_found(case.captures.train, str(site), dim))
                if site == trained.site:
                    true = made_by(trained.lens, site, trained.basis, "", {"method": TRUTH})
                    found = {TRUTH: true} | found
                rows = [
                    trained_row(case, fit, each) | {"written": _written(trained, each)}
                    for fit, each in found.items()
                ]
                part = {"origin": origin, "rows": rows}
                keep(path, part)
            yield from (_of_trained(row) for row in part["rows"])


def _written(trained: TrainedModel, subspace: Subspace) -> float | None:
    """The mean squared cosine of what a subspace of the trained site writes with what V writes,
    itself in a stream; None at other sites."""
    if subspace.site != trained.site:
        return None
    weight = trained.lens.map.writer(trained.site)
    ours, true = (
        orthonormal(unit(basis if weight is None else weight @ basis))
        for basis in (subspace.basis, trained.basis)
    )
    return float((ours.T @ true).square().sum() / min(ours.shape[1], true.shape[1]))


def _of_trained(row: Mapping[str, Any]) -> dict:
    same = (
        "model", "site", "fit", "dim", "cosine", "written", "fldd", "natural", "beyond", "truth",
    )  # fmt: skip
    where = OUTSIDE if row["cosine"] is None else "trained"
    return {name: row[name] for name in same} | {
        "part": "trained", "where": where, "whole": row["whole_fldd"], "clean": None,
        "verdict": row["verdict"],
    }  # fmt: skip


def _found(train: Capture, site: str, dim: int) -> Iterator[tuple[str, Subspace]]:
    """What each of the choices finds at a site of a capture; those that do not fit are left out."""
    for name, (method, options) in CHOICES.items():
        fit = FITS[method]
        with suppress(SubspaceError, TaskError):
            yield name, fit(train.lens, train, site, dim=1 if fit.between else dim, **options)


def _planted(
    lens: LensModel, task: Task, folder: Path, asked: Asked, skipped: list[str]
) -> Iterator[dict]:
    sites = places(lens, task, asked.places)
    origin = {
        "code": asked.code, "models": asked.models, "seed": asked.seed,
        "weights": lens.weights_sha256, "task": [task.train.sha256, task.test.sha256],
    }  # fmt: skip
    captures = None
    for number, site in enumerate(track(sites, f"planted in {task.name}")):
        path = folder / f"{task.name}-{site}.json"
        part: dict[str, Any] | None = kept(path, origin)
        if part is None:
            captures = captures or capture_task(lens, task, sites)
            setting, *_ = setting_at(captures, site)
            part = {"origin": origin} | _at_place(setting, asked, 1000 * asked.seed + number)
            keep(path, part)
        skipped += part["skipped"]
        yield from part["rows"]


def _at_place(setting: Setting, asked: Asked, seed: int) -> dict[str, list]:
    """Rows of the models planted at one site. Nothing that a fit may rightly use beside the channel
    is planted: no units in parallel and none that cancel."""
    site, beside = setting.replay.site, setting.replay.writer is not None
    try:
        bed = Bed.of(setting.captures.train, site)
    except (SiteError, TaskError) as error:
        return {"rows": [], "skipped": [f"{site}: {error}"]}
    generator = torch.Generator().manual_seed(seed)
    drawn = (
        Plan.drawn(generator, k=1, fldd=EFFECTS, within=WITHIN, beside=beside)
        for _ in range(asked.models)
    )
    plans = [replace(plan, parallel=1, cancels="") for plan in drawn]
    rows: list[dict] = []
    for which, model in enumerate(planted_models(setting, bed, plans, ROLES, seed)):
        unit = f"{site}, {which}"
        rows += [{"model": unit} | row for row in _in_planted(model, KINDS[site.stream])]
    return {"rows": rows, "skipped": []}


def _in_planted(model: Planted, where: str) -> Iterator[dict]:
    setting = model.setting
    site, train = setting.replay.site, setting.captures.train
    channel, dormant = (spike.basis for spike in model.spikes)
    whole = setting.replay.effect(Full()).fldd.value
    true = made_by(train.lens, site, channel, "", {"method": TRUTH})
    for name, subspace in [(TRUTH, true), *_found(train, str(site), channel.shape[1])]:
        basis = subspace.basis.double()
        effect = setting.replay.effect(SubspacePatch(subspace.basis))
        fldd = effect.fldd.value
        row = {
            "part": "planted", "where": where, "site": str(site), "fit": name,
            "dim": subspace.dim, "fldd": fldd, "whole": whole, "clean": None, "natural": None,
            "beyond": None, "written": None, "truth": None, "verdict": None,
            "cosine": float((orthonormal(channel).T @ basis).square().sum() / channel.shape[1]),
        }  # fmt: skip
        if fldd is not None and fldd >= SMALLEST_FLDD:
            row["clean"] = _clean(setting, basis, dormant)
            row["verdict"] = judge_blind(setting, setting.subspace(basis, name)).verdict.label
        yield row


def _clean(setting: Setting, basis: Tensor, dormant: Tensor) -> float:
    """Share of the effect left without what is written along `dormant` (dim, k)."""
    replay, asleep = setting.replay, orthonormal(dormant)
    write = (replay.difference.cpu().double() @ basis) @ basis.T
    deltas = torch.stack([write, write - (write @ asleep) @ asleep.T])
    drops = drops_of(replay, deltas.to(replay.base)).mean(1)
    return float(drops[1] / drops[0])


def constraints_table(result: Mapping[str, Any]) -> str:
    """The rows as Markdown: a table for each kind of place, a line for each fit; means over models
    with 95 % intervals, and counts."""
    rows = result["rows"]
    lines: list[str] = []
    for where in dict.fromkeys(row["where"] for row in rows):
        lines += _part(where, [row for row in rows if row["where"] == where])
    lines += [f"Left out: {text}" for text in result["skipped"]]
    return "\n".join(lines) + "\n"


Cell = Callable[[Sequence[dict]], str]


def _part(where: str, rows: Sequence[dict]) -> list[str]:
    columns: dict[str, Cell] = {"subspaces": lambda some: str(len(some))}
    if where == OUTSIDE:
        columns["idle"] = partial(_count, name="truth", values=("idle",))
        columns["illusory in truth"] = partial(_count, name="truth", values=("illusory",))
        columns["of these called faithful"] = lambda some: _count(
            [row for row in some if row["truth"] == "illusory"], "verdict", USED
        )
        title = "sites of trained models where z was not trained to live"
    else:
        plain_das = {_place(row): row["cosine"] for row in rows if row["fit"] == "DAS"}
        columns["cos² with the channel"] = partial(_mean, value=lambda row: row["cosine"])
        columns["less that of DAS"] = partial(
            _mean, value=lambda row: row["cosine"] - plain_das[_place(row)]
        )
        columns["÷ whole component"] = partial(_mean, value=_kept_share)
        if where == "trained":
            title = "where z was trained to live"
            for name in ("written", "natural", "beyond"):
                columns[name] = partial(_mean, value=lambda row, name=name: row[name])
            columns["truth: faithful, mixed, illusory, idle"] = lambda some: ", ".join(
                _count(some, "truth", (label,))
                for label in ("faithful", "mixed", "illusory", "idle")
            )
        else:
            title = f"channels planted: {where}"
            columns["clean"] = partial(_mean, value=lambda row: row["clean"])
        columns["audit: faithful, undetermined, illusory"] = lambda some: ", ".join(
            _count(some, "verdict", labels) for labels in (USED, ("undetermined",), ("illusory",))
        )
    lines = [f"| {title} | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for fit in (TRUTH, *CHOICES):
        some = [row for row in rows if row["fit"] == fit]
        if some:
            lines.append(f"| {fit} | " + " | ".join(cell(some) for cell in columns.values()) + " |")
    return [*lines, ""]


def _place(row: Mapping[str, Any]) -> tuple[str, str]:
    return row["model"], row["site"]


def _count(rows: Sequence[dict], name: str, values: Sequence[str]) -> str:
    return str(sum(row[name] in values for row in rows))


def _kept_share(row: Mapping[str, Any]) -> float | None:
    if row["fldd"] is None or row["whole"] is None or row["whole"] < SMALLEST_FLDD:
        return None
    return row["fldd"] / row["whole"]


def _mean(rows: Sequence[dict], value: Callable[[dict], float | None]) -> str:
    known = [(each, row["model"]) for row in rows if (each := value(row)) is not None]
    if not known:
        return "-"
    values, models = zip(*known, strict=True)
    return with_interval(mean(np.array(values), Units.of(models)), plain)
