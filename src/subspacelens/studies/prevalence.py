"""How common the illusion is: all the evidence of arXiv 2311.17030 §7, on any supported model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ..core.kept import Kept
from ..core.records import Record
from ..core.site import Site
from ..engine.text import Corpus, embedded_corpus
from ..model.lens import LensModel
from ..survey.das_sites import DasSite, das_grid, das_sites
from ..survey.distortion import Distortion, distortion
from ..survey.illusions import IllusionMap, illusion_map
from ..survey.random_mlp import RandomMLP, random_mlp
from ..survey.weights import LayerWeights, weight_facts
from ..sweep.grid import TaskSpec
from ..tasks.pairset import Task
from .made import Made
from .promised import Promise, promises

PARTS = ("promises", "weights", "distortion", "random", "das")


class Prevalence(Record):
    """Schema `subspacelens.prevalence/1`. Parts that were not asked for are empty. `promises`: what
    one pass over the map's pairs says of every MLP before anything is fitted. `seconds` by part; of
    a sweep that was stopped, those since it went on."""

    schema_: Literal["subspacelens.prevalence/1"] = Field(
        "subspacelens.prevalence/1", alias="schema"
    )
    illusions: IllusionMap
    weights: list[LayerWeights]
    distortion: list[Distortion]
    corpus: str
    random_mlps: list[RandomMLP]
    das: list[DasSite]
    das_failed: int = 0
    promises: list[Promise] = Field(default_factory=list)
    seconds: dict[str, float]
    made: Made | None = None


def prevalence(
    lens: LensModel,
    task: Task,
    labels: Sequence[str],
    *,
    parts: Iterable[str] = PARTS,
    model: str = "",
    task_spec: TaskSpec | None = None,
    directory: Path | None = None,
    corpus: Corpus | None = None,
    pairs: int = 64,
    steps: int = 16,
    fits: Sequence[str] = ("das",),
    seeds: int = 10,
    workers: int | None = None,
    shifted: bool = False,
    memory: int | None = None,
    kept: Kept | None = None,
) -> Prevalence:
    """The illusion map, and those `parts` of the rest that are asked for.

    `random` looks at the site of each label where the constructed illusion does most. `das` sweeps
    over all MLPs and labels into the store `directory`/das, for which the workers load `model` and
    `task_spec` themselves; killed, it goes on where it stopped. It fits one direction by each of
    `fits`, the names of fits (`fit.FITS`). `corpus` is the text of the
    distortion, by default the embedded one. What `kept` has of the other parts is not done again.
    """
    wanted = set(parts)
    seconds: dict[str, float] = {}
    kept = kept or Kept()

    def timed(name: str, kind: Any, work: Callable[[], Any]) -> Any:
        started, before = time.perf_counter(), kept.earlier
        result = kept.part(name, kind, work)
        seconds[name] = time.perf_counter() - started + kept.earlier - before
        return result

    illusions = timed(
        "illusions",
        IllusionMap,
        lambda: illusion_map(lens, task, labels, pairs=pairs, shifted=shifted, memory=memory),
    )
    sites = [Site(site.layer, "mlp_act", site.label) for site in illusions.sites]
    promised: list[Promise] = []
    if "promises" in wanted:
        promised = timed(
            "promises",
            list[Promise],
            lambda: promises(lens, task.test[:pairs], sites, shifted=shifted, memory=memory),
        )
    weights: list[LayerWeights] = []
    if "weights" in wanted:
        weights = timed("weights", list[LayerWeights], lambda: weight_facts(lens))
    distorted: list[Distortion] = []
    if "distortion" in wanted:
        text = corpus or embedded_corpus(lens)
        distorted = timed("distortion", list[Distortion], lambda: distortion(lens, text))
        corpus = text
    randoms: list[RandomMLP] = []
    if "random" in wanted:
        chosen = [strongest(illusions, label) for label in illusions.labels]
        randoms = timed(
            "random",
            list[RandomMLP],
            lambda: [
                each
                for site in chosen
                for each in random_mlp(
                    lens, task, site, seeds=seeds, shifted=shifted, memory=memory
                )
            ],
        )
    das: list[DasSite] = []
    failed = 0
    if "das" in wanted and directory is not None and task_spec is not None:
        settings: dict[str, Any] = {"shifted": shifted, "dtype": str(lens.dtype).split(".")[-1]}
        if memory is not None:
            settings["memory"] = f"{memory}B"
        grid = das_grid(
            model, task_spec, illusions.labels, pairs=pairs, steps=steps, fits=fits, **settings
        )
        started = time.perf_counter()
        das, failed = das_sites(lens, task, grid, directory / "das", workers=workers)
        seconds["das"] = time.perf_counter() - started
    return Prevalence(
        schema="subspacelens.prevalence/1",
        illusions=illusions,
        weights=weights,
        distortion=distorted,
        corpus=corpus.name if corpus and distorted else "",
        random_mlps=randoms,
        das=das,
        das_failed=failed,
        promises=promised,
        seconds=seconds,
    )


def strongest(illusions: IllusionMap, label: str) -> Site:
    """The MLP at which the constructed illusion does most at a label."""
    sites = [site for site in illusions.sites if site.label == label]
    best = max(sites, key=lambda site: site.best.effect.value or 0.0)
    return Site(best.layer, "mlp_act", label)
