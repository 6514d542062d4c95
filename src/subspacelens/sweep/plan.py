"""What becomes of a grid on the models that it names: its cells, each known by its content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib.resources import files
from importlib.resources.abc import Traversable
from itertools import product
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch

from ..core.errors import ModelError, SubspaceError
from ..core.files import content_sha256
from ..core.identity import NUMBERS, Identity
from ..core.machine import versions
from ..core.progress import bar
from ..core.site import Site
from ..engine.recall import known_facts
from ..interop.hub import located
from ..model.lens import LensModel
from ..model.loading import load_model
from ..tasks import Task
from ..tasks.facts import embedded_facts, fact_pairs, pair_set
from ..tasks.named import named_task
from .grid import FACTS, GIVEN, FitSpec, Grid, Kind, TaskSpec
from .pattern import Shape, expand

ROOMS = (
    "core", "model", "tasks", "engine", "certify", "interop", "fit", "measure", "audit",
    "sweep/cell.py",
)  # fmt: skip
"""The code that a record's numbers depend on."""

LIBRARIES = ("numpy", "scipy", "scikit-learn")
"""Libraries that compute beside those that belong to a model's identity."""


@dataclass(frozen=True)
class TaskFacts:
    """A task as one model's tokenizer made it: content hashes of its splits, labels that all
    prompts have, pairs to fit and to judge on, and the mean number of columns from a label on."""

    hashes: tuple[str, str, str]
    labels: tuple[str, ...]
    train: int
    test: int
    suffix: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What planning needs to know of a model, so that it can be unloaded: its identity on the
    device where cells are computed, the versions of `LIBRARIES`, `tasks[name]`, and for the
    estimated time the parameters of a block and of the unembedding."""

    spec: str
    identity: Identity
    libraries: Mapping[str, str]
    shape: Shape
    tasks: Mapping[TaskSpec, TaskFacts]
    block_parameters: int
    head_parameters: int


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One piece of work. `key` is the hash of `inputs`: all that the result depends on.

    `identity` is that of the model that the cell was planned for.
    """

    kind: Kind
    model: str
    identity: Identity
    dtype: str
    task: TaskSpec
    pairs: int | None
    task_seed: int
    shifted: bool
    memory: int
    site: Site
    fit: FitSpec
    dim: int
    seed: int
    pair: int | None
    inputs: Mapping[str, Any]

    @cached_property
    def key(self) -> str:
        return hashlib.sha256(canonical(self.inputs).encode()).hexdigest()

    @property
    def group(self) -> tuple:
        """Cells of one group can share a capture: a capture's numbers depend on the label, because
        prompts are cut behind it, but not on the other sites captured with it."""
        return self.model, self.dtype, self.task, self.site.label

    def __str__(self) -> str:
        task = Path(self.task.name).stem
        what = f"dim {self.dim}" if self.pair is None else f"number {self.pair}"
        return f"{self.kind} {self.model} {task} {self.site} {self.fit} {what} seed {self.seed}"


def cells_of(grid: Grid, models: Sequence[ModelFacts]) -> tuple[Cell, ...]:
    """All cells of a grid, each content once, by model, task, site and fit.

    Raises `SiteError` for a pattern that does not fit a model or a task, and `SubspaceError` for a
    file that is not there.
    """
    cells: dict[str, Cell] = {}
    fits = [(fit, _content(fit)) for fit in grid.fits]
    for facts in models:
        for task, of_task in facts.tasks.items():
            patterns = (expand(text, facts.shape, of_task.labels) for text in grid.sites)
            sites = dict.fromkeys(site for sites in patterns for site in sites)
            pairs = range(of_task.test) if grid.kind == "pair" else (None,)
            for choice in product(sites, fits, grid.dims, grid.seeds, pairs):
                cell = _cell(grid, facts, task, of_task, *choice)
                cells.setdefault(cell.key, cell)
    return tuple(cells.values())


def _content(fit: FitSpec) -> dict[str, Any]:
    """A fit as what its numbers depend on: of a file, its bytes and not its name."""
    content = {"method": fit.method, **fit.options}
    if fit.method == GIVEN:
        content["file"] = file_content(fit.options["file"])
    return content


def file_content(file: str) -> str:
    """Hash of a file, a folder or a repository of the hub. Raises `SubspaceError` where it cannot
    be read."""
    path = located(file)
    try:
        return content_sha256(path)
    except OSError as error:
        raise SubspaceError(f"{path} cannot be read: {error.strerror}") from None


def _cell(
    grid: Grid, facts: ModelFacts, task: TaskSpec, of_task: TaskFacts, site: Site,
    fit: tuple[FitSpec, Mapping[str, Any]], dim: int, seed: int, pair: int | None,
) -> Cell:  # fmt: skip
    inputs = {
        "kind": grid.kind,
        "model": {part: getattr(facts.identity, part) for part in NUMBERS},
        "libraries": dict(facts.libraries),
        "task": of_task.hashes,
        "site": str(site),
        "fit": fit[1],
        "dim": dim,
        "seed": seed,
        "shifted": grid.shifted,
        "memory": grid.memory_bytes,
        "threads": grid.threads,
        "code": code_sha256(),
    }
    if pair is not None:
        inputs["pair"] = pair
    if grid.kind == "audit":
        inputs["text"] = reference_sha256()
    return Cell(
        kind=grid.kind, model=facts.spec, identity=facts.identity, dtype=grid.dtype, task=task,
        pairs=grid.pairs, task_seed=grid.task_seed, shifted=grid.shifted, memory=grid.memory_bytes,
        site=site, fit=fit[0], dim=dim, seed=seed, pair=pair, inputs=inputs,
    )  # fmt: skip


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values, equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


@cache
def code_sha256(rooms: tuple[str, ...] = ROOMS) -> str:
    """Hash over the source of `rooms`: a record of other code is not taken for this one's."""
    digest = hashlib.sha256()
    root = files("subspacelens")
    for room in rooms:
        for source in _sources(root.joinpath(room)):
            digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()


@cache
def reference_sha256() -> str:
    """Hash of the text that comes with this Python, in which audits try patches: it changes from
    one version of Python to the next."""
    return hashlib.sha256(canonical(topics).encode()).hexdigest()


def libraries() -> dict[str, str]:
    """Versions of `LIBRARIES` in this process."""
    installed = versions()
    return {name: installed[name] for name in LIBRARIES}


def _sources(place: Traversable) -> list[Traversable]:
    """The Python files of a room, whatever its depth, in a fixed order."""
    if place.is_file():
        return [place] if place.name.endswith(".py") else []
    inside = sorted(place.iterdir(), key=lambda entry: entry.name)
    return [source for entry in inside for source in _sources(entry)]


def facts_of(spec: str, grid: Grid, device: str | None = None) -> ModelFacts:
    """Loads a model on the CPU, looks at it and lets it go.

    `device` is the kind of device that cells are computed on, by default CUDA where there is one.
    Raises `ModelError` for a model that cannot be loaded or that a foreign hook changes, and
    `TaskError` for a task that does not fit it.
    """
    with bar(f"load {spec}", 1) as move:
        lens = load_model(spec, device="cpu", dtype=grid.dtype)
        move(1, f"load {spec}")
    identity = replace(
        lens.identity, device=device or ("cuda" if torch.cuda.is_available() else "cpu")
    )
    if not identity.lasting:
        raise ModelError(
            f"model {spec} runs under {identity.hooks}: no other process could have the same "
            "numbers; remove the hooks before a sweep"
        )
    blocks = lens.map.blocks
    tasks = {
        task: _task_facts(task_of(lens, task, grid.pairs, grid.task_seed)) for task in grid.tasks
    }
    return ModelFacts(
        spec=spec,
        identity=identity,
        libraries=libraries(),
        shape=Shape.of(lens.map),
        tasks=tasks,
        block_parameters=sum(p.numel() for p in blocks[0].module.parameters()),
        head_parameters=lens.map.tail.head.weight.numel(),
    )


def task_of(lens: LensModel, task: TaskSpec, pairs: int | None, seed: int) -> Task:
    """The task of a spec, at most `pairs` pairs of a split."""
    if task.name != FACTS:
        return named_task(lens.tokenizer, task.name, task.test, pairs=pairs, seed=seed)
    whole = known_fact_task(lens, seed=seed)
    return whole if pairs is None else Task(FACTS, whole.train[:pairs], whole.test[:pairs])


def known_fact_task(lens: LensModel, *, per_relation: int = 8, seed: int = 0) -> Task:
    """Pairs of embedded facts that the model knows, without classes, at label `subject`, whose
    column may differ between base and source. Raises `TaskError` if it knows too few."""
    known = known_facts(lens, embedded_facts())
    chosen = fact_pairs(lens.tokenizer, known, per_relation=per_relation, fewest=1, seed=seed)
    both = pair_set(lens.tokenizer, chosen)
    return Task(FACTS, both, both)


def task_hashes(task: Task) -> tuple[str, str, str]:
    held_out = task.held_out.sha256 if task.held_out else ""
    return task.train.sha256, task.test.sha256, held_out


def _task_facts(task: Task) -> TaskFacts:
    test = task.test.pairs
    splits = [split for split in (task.train, task.held_out) if split]
    labels = [name for name in task.test.labels if all(name in split.labels for split in splits)]
    suffix = {
        label: sum(len(p.base.ids) - p.base.columns[label] for p in test) / len(test)
        for label in labels
    }
    return TaskFacts(task_hashes(task), tuple(labels), len(task.train), len(test), suffix)
