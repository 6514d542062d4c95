"""`bench_audit`: the audit's own error rate, on planted truth, at places that nobody chose by hand.

Channels whose roles are known are planted (`audit.controls`) at MLPs, heads and in the residual
stream, with reading noise, drift, units that cancel and units in parallel, and subspaces of 1 to 8
dimensions are audited blind, with the shipped rule and its cuts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ..audit.controls.bed import Bed
from ..audit.controls.run import Planted, planted_models
from ..audit.controls.spikes import KINDS as TRUTHS
from ..audit.controls.spikes import Plan, Spike
from ..audit.evidence import Setting
from ..audit.judging import Blind, judge_blind, setting_at
from ..audit.verdict import SMALLEST_FLDD, asked_at
from ..core.errors import SiteError, TaskError
from ..core.geometry import haar
from ..core.kept import keep, kept
from ..core.progress import track
from ..core.site import Site
from ..engine.task_capture import capture_task
from ..model.lens import LensModel
from ..tasks import Task
from .attacks import ATTACKS
from .controls import controls
from .kept import source_sha256
from .places import KINDS, places
from .scores import summary
from .trained import trained_rates, trained_truth
from .truth import load_trained, trained_names

SCHEMA = "subspacelens.bench.audit/5"
DIMENSIONS = (1, 2, 1, 4, 1, 2, 1, 8)
"""Of the subspaces in one planted model after the other: most that people hold have one."""
EFFECTS = (0.3, 1.2)
WITHIN = (0.05, 0.4)
RANDOM_PAIRS = 48
TRAINED_PAIRS = 128
SIZES = (32, 64)
"""Pairs to judge on, beside all of them, for the curves of power."""


Finding = Callable[[LensModel, str, Setting, int, dict], dict]
"""Finds the rows of one site, by what they are: of the model, the task's name, the site, its number
and what was asked."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One audited case: what is true, and what the audit said. `ends`: the intervals of `tests`;
    `few`: the verdict on so many pairs."""

    model: str
    task: str
    site: str
    where: str
    planted: int
    plan: dict
    kind: str
    share: float | None
    fldd: float | None
    score: float
    verdict: str
    code: str
    tests: dict[str, float | None]
    ends: dict[str, list[float | None]]
    few: dict[str, str]
    degenerate: bool


def bench_audit(
    lens: LensModel,
    tasks: Mapping[str, Task],
    folder: Path,
    *,
    count: int = 3,
    models: int = 4,
    blind: int = 0,
    controlled: bool = False,
    trained: bool = False,
    seed: int = 0,
) -> dict:
    """Plants `models` models at each of `count` places a task and kind of site, audits, scores.
    At each site `blind` uniformly random subspaces are audited too, of 1 to all dimensions, in the
    model as it is. `controlled` adds the controls on SmolLM2 as it is (`controls.py`). `trained`
    does all this in the tiny models with z at a known place as well, and adds what fits find there
    (`trained_truth`). The result is made of JSON types; `scores` are those of `summary`, over all,
    by kind of site, and of this model and the tiny ones. What was found at a site is written to
    `folder` when it is there, and not done again by the same code.

    Raises `TaskError` where nothing moves the answer, and what `capture_task` does.
    """
    asked = {"models": models, "blind": blind, "seed": seed, "code": source_sha256()}
    rows = rows_of(lens, tasks, folder, count, asked, _found)
    for name in trained_names() if trained else ():
        tiny = load_trained(name)
        known = {"parity": tiny.task(TRAINED_PAIRS, TRAINED_PAIRS, seed)}
        for kind, found in rows_of(tiny.lens, known, folder / name, count, asked, _found).items():
            rows[kind] += found
    results = [Result(**row) for row in rows["cases"]]
    of_trained = trained_truth() if trained else []
    return {
        "schema": SCHEMA,
        "model": lens.id,
        "weights_sha256": lens.weights_sha256,
        "scores": by_kind(results, summary) | _by_model(results, lens.id),
        "attacks": rows["attacks"],
        "random": rows["random"],
        "controls": controls(lens) if controlled else [],
        "trained": {"rates": trained_rates(of_trained), "rows": of_trained},
        "skipped": rows["skipped"],
        "cases": rows["cases"],
    }


def rows_of(
    lens: LensModel, tasks: Mapping[str, Task], folder: Path, count: int, asked: dict, find: Finding
) -> dict[str, list]:
    """What `find` found at all sites of all tasks (`_parts`), by what it is."""
    rows: dict[str, list] = {}
    for name, task in tasks.items():
        for part in _parts(lens, name, task, folder, count, asked, find):
            for kind, found in part.items():
                if kind != "origin":
                    rows.setdefault(kind, []).extend(found)
    return rows


def by_kind(results: list[Result], score: Callable[[list[Result]], dict]) -> dict[str, dict]:
    """The scores of all results, and of those at each kind of site."""
    kinds = {kind: [r for r in results if r.where == kind] for kind in KINDS.values()}
    return {name: score(own) for name, own in ({"all": results} | kinds).items()}


def _by_model(results: list[Result], name: str) -> dict[str, dict]:
    """The scores of the model of this name, and of the tiny ones; nothing where there are none."""
    tiny = [r for r in results if r.model != name]
    if not tiny:
        return {}
    own = [r for r in results if r.model == name]
    return {name: summary(own), "tiny models": summary(tiny)}


def _parts(
    lens: LensModel,
    name: str,
    task: Task,
    folder: Path,
    count: int,
    asked: dict,
    find: Finding,
) -> Iterator[dict]:
    """What `find` found at each site of a task, in order: from `folder`, or else found now."""
    origin = asked | {"weights": lens.weights_sha256, "task": [task.train.sha256, task.test.sha256]}
    sites = places(lens, task, count)
    paths = [folder / name / f"{site}.json" for site in sites]
    there = [kept(path, origin) for path in paths]
    missing = [site for site, part in zip(sites, there, strict=True) if part is None]
    captures = capture_task(lens, task, missing) if missing else None
    for number, (site, path, part) in enumerate(
        track(list(zip(sites, paths, there, strict=True)), f"places of {name}")
    ):
        if part is None and captures is not None:
            setting, *_ = setting_at(captures, site)
            part = find(lens, name, setting, number, asked) | {"origin": origin}
            keep(path, part)
        if part is not None:
            yield part


def _found(lens: LensModel, name: str, setting: Setting, number: int, asked: dict) -> dict:
    """All rows of one site."""
    site, seed = setting.replay.site, 1000 * asked["seed"] + number
    rows: dict[str, list] = {"cases": [], "random": [], "attacks": [], "skipped": []}
    try:
        bed = Bed.of(setting.captures.train, site)
    except (SiteError, TaskError) as error:
        return rows | {"skipped": [f"{name}, {site}: {error}"]}
    planted = _planted(lens, name, setting, bed, number, asked["models"], seed)
    rows["cases"] = [asdict(result) for result in planted]
    rows["random"] = list(_random(lens, name, setting, asked["blind"], seed))
    if site.stream == "mlp_act":
        rows["attacks"] = list(_attacked(lens, name, setting, bed, seed))
    return rows


def _planted(
    lens: LensModel, task: str, setting: Setting, bed: Bed, number: int, models: int, seed: int
) -> Iterator[Result]:
    generator, site = torch.Generator().manual_seed(seed), setting.replay.site
    plans = [
        Plan.drawn(
            generator,
            k=DIMENSIONS[(number * models + i) % len(DIMENSIONS)],
            fldd=EFFECTS,
            within=WITHIN,
            beside=setting.replay.writer is not None,
        )
        for i in range(models)
    ]
    planted = planted_models(setting, bed, plans, TRUTHS, seed)
    for which, model in enumerate(track(planted, f"planted at {site}", total=models)):
        for spike in model.spikes:
            yield _result(lens, task, site, which, model, spike)


def _random(lens: LensModel, task: str, setting: Setting, count: int, seed: int) -> Iterator[dict]:
    """Uniformly random subspaces of 1, 2, 4 and so on to half, and of all dimensions."""
    generator = torch.Generator().manual_seed(seed)
    width = setting.replay.base.shape[1]
    sizes = [2**power for power in range(width.bit_length()) if 2**power <= width // 2] + [width]
    few = setting.subset(slice(RANDOM_PAIRS))
    for number in track(range(count), f"random at {setting.replay.site}"):
        k = sizes[number % len(sizes)]
        basis = haar(width, k, 1, generator)[0]
        judged = judge_blind(few, few.subspace(basis, "random"))
        yield {"k": k} | _row(lens, task, judged)


def _attacked(lens: LensModel, task: str, setting: Setting, bed: Bed, seed: int) -> Iterator[dict]:
    for name, (plan, kind) in ATTACKS.items():
        for model in planted_models(setting, bed, [plan], (kind,), seed):
            (spike,) = model.spikes
            yield {"name": name, "truth": kind} | _row(lens, task, model.judged(spike))


def _row(lens: LensModel, task: str, judged: Blind) -> dict:
    """What stands in a row of either kind that is not scored."""
    return {
        "model": lens.id,
        "task": task,
        "site": str(judged.case.site),
        "fldd": judged.case.effects["subspace"].fldd.value,
        "verdict": judged.verdict.label,
        "code": judged.verdict.code,
    }


def _result(
    lens: LensModel, name: str, site: Site, which: int, model: Planted, spike: Spike
) -> Result:
    judged = model.judged(spike)
    effect = judged.case.effects["subspace"]
    fldd, low = effect.fldd.value, effect.nats.low
    small = fldd is None or fldd < SMALLEST_FLDD or low is None or low <= 0
    tests = {} if small else {name: judged.tests[name] for name in asked_at(judged.case.exact)}
    few = {}
    if spike.kind in ("faithful", "illusory") and which % 2 == 0 and not small:
        for size in (size for size in SIZES if size < len(model.setting.chosen)):
            few[str(size)] = model.judged(spike, size).verdict.label
    return Result(
        model=lens.id,
        task=name,
        site=str(site),
        where=KINDS[site.stream],
        planted=which,
        plan=asdict(model.plan),
        kind=spike.kind,
        share=spike.share,
        fldd=fldd,
        score=judged.verdict.score,
        verdict=judged.verdict.label,
        code=judged.verdict.code,
        tests={name: test.value for name, test in tests.items()},
        ends={name: [test.low, test.high] for name, test in tests.items()},
        few=few,
        degenerate=small,
    )
