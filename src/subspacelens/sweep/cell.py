"""What one cell is: a fit and what is measured of it, as files and as a row of a table."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import torch

from ..audit.record import AuditRecord
from ..audit.run import AUDIT_FILE, SUBSPACE_FILE, audit
from ..certify import centred, require
from ..core.errors import LensError, ModelError, SubspaceError, TaskError
from ..core.geometry import Split, orthonormal
from ..core.machine import versions
from ..core.records import Estimate
from ..core.site import Site
from ..engine.capture import Capture
from ..engine.effect import METRICS, Effect
from ..engine.patches import Full, NoOp, Patch, SubspacePatch
from ..engine.replay import Replay
from ..engine.task_capture import TaskCapture, capture_task
from ..fit import given, named
from ..fit.per_pair import per_pair
from ..fit.subspace import Subspace, made_by
from ..interop.hub import located
from ..model.lens import LensModel
from ..model.loading import load_model
from ..tasks import Task
from .grid import GIVEN, PER_PAIR
from .plan import Cell, canonical, file_content, libraries, task_hashes, task_of

Scalar = str | int | float | bool | None

NOT_CONTENT = {"seconds", "peak_rss_bytes", "versions", "command"}
"""Fields of an audit that describe the run, not what was found."""


@dataclass(frozen=True)
class Outcome:
    """What a cell gave: its `files` by name, `summary` for the table, and the hash of all that must
    come out equal when the cell is computed again."""

    key: str
    files: Mapping[str, bytes] = field(repr=False)
    summary: Mapping[str, Scalar]
    content_sha256: str
    seconds: float
    versions: Mapping[str, str] = field(repr=False)


def outcome_of(lens: LensModel, captures: TaskCapture, cell: Cell) -> Outcome:
    """Fits, and audits if the cell says so, on captures that hold the cell's site."""
    started = time.monotonic()
    train, test = captures.train, captures.test
    if cell.pair is not None:
        one = slice(cell.pair, cell.pair + 1)
        train = test = test.select(test.pairs[one], torch.tensor([cell.pair]))
    subspace = _fitted(lens, train, cell)
    files = {SUBSPACE_FILE: subspace.to_bytes()}
    if cell.kind == "audit":
        record = audit(lens, captures, subspace, seed=cell.seed).record
        files[AUDIT_FILE] = record.model_dump_json(indent=1, by_alias=True).encode()
        summary = _audited(record)
        content = record.model_dump(mode="json", by_alias=True, exclude=NOT_CONTENT)
    elif cell.kind == "pair":
        summary = content = _flips(test.at(cell.site, lens), subspace)
    else:
        summary = content = _effects(test.at(cell.site, lens), subspace)
    content = {"found": content, "fit": subspace.fit}
    digest = hashlib.sha256(canonical(content).encode() + subspace.basis.numpy().tobytes())
    seconds = time.monotonic() - started
    return Outcome(cell.key, files, summary, digest.hexdigest(), seconds, versions())


def _fitted(lens: LensModel, captured: Capture, cell: Cell) -> Subspace:
    if cell.fit.method == GIVEN:
        return _given(lens, cell)
    if cell.kind != "pair":
        fit, options = named(cell.fit.method), cell.fit.options
        return fit(lens, captured, cell.site, dim=cell.dim, seed=cell.seed, **options)
    each = per_pair(lens, captured, cell.site, seed=cell.seed)
    record = dict(method=PER_PAIR, seed=cell.seed, pair=cell.pair, **asdict(each.recipe))
    return made_by(lens, cell.site, each.directions.T, captured.pairs.sha256, record)


def _given(lens: LensModel, cell: Cell) -> Subspace:
    options = dict(cell.fit.options)
    file = options.pop("file")
    if file_content(file) != cell.inputs["fit"]["file"]:
        raise SubspaceError(f"{file} is another one than when the sweep was planned")
    subspace = given(lens, cell.site, located(file), **options)
    if subspace.dim != cell.dim:
        raise SubspaceError(f"{file} holds {subspace.dim} dimensions: dims = [{subspace.dim}]")
    return subspace


def _effects(replay: Replay, subspace: Subspace) -> dict[str, Scalar]:
    patches = {"full": Full(), "subspace": SubspacePatch(subspace.basis.double())}
    columns: dict[str, Scalar] = {
        "clean_logit_diff": float(replay.clean.logit_diff.double().mean())
    }
    for name, outcomes in replay.outcomes_of(patches, decided=True).items():
        effect = Effect(replay.pairs, replay.clean, outcomes)
        for metric in METRICS:
            columns |= _columns(f"{name}_{metric}", getattr(effect, metric))
    return columns


def _flips(replay: Replay, subspace: Subspace) -> dict[str, Scalar]:
    """Of one pair: the logit difference left by each patch, and whether the target is on top."""
    basis = subspace.basis.double()
    patches: dict[str, Patch] = {"no_op": NoOp(), "full": Full(), "subspace": SubspacePatch(basis)}
    if replay.writer is not None:
        row = orthonormal(Split.of(replay.writer, centred=centred(replay.lens)).row(basis))
        if row.shape[1]:
            patches["row"] = SubspacePatch(row)
    columns: dict[str, Scalar] = {}
    for name, outcomes in replay.outcomes_of(patches, decided=True).items():
        columns[f"{name}_logit_diff"] = float(outcomes.logit_diff[0])
        columns[f"{name}_flips"] = bool(outcomes.says("target", replay.pairs)[0])
    return columns


def _audited(record: AuditRecord) -> dict[str, Scalar]:
    columns: dict[str, Scalar] = {
        "verdict": record.verdict.label,
        "score": record.verdict.score,
        "clean_logit_diff": record.clean.logit_diff.value,
    }
    for patch, effect in record.effects.items():
        for metric, estimate in effect:
            columns |= _columns(f"{patch}_{metric}", estimate)
    for name, test in record.tests.items():
        columns |= _columns(name, test)
    return columns


def _columns(name: str, estimate: Estimate) -> dict[str, Scalar]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


class Worker:
    """Runs cells one after the other and keeps the model, the task and the captures between them,
    so that cells of one group cost one load and one capture."""

    def __init__(self, device: str | None = None) -> None:
        self.device = device
        self._model: tuple[tuple, LensModel] | None = None
        self._task: tuple[tuple, Task] | None = None
        self._captures: TaskCapture | None = None

    def run(self, cell: Cell, sites: Sequence[Site]) -> Outcome:
        """`sites`: those of the cell's group that it is worth capturing at once.

        Raises whatever the fit or the audit raises; `ModelError` or `TaskError` if the model or the
        pairs here are not those that the cell was planned for.
        """
        lens = self._lens(cell)
        task = self._task_of(lens, cell)
        require(lens, cell.site)
        if self._captures is None or cell.site not in self._captures.test.base:
            self._captures = None
            self._captures = _captured(lens, task, cell, sites)
        return outcome_of(lens, self._captures, cell)

    def _lens(self, cell: Cell) -> LensModel:
        wanted = (cell.model, cell.dtype)
        if self._model is None or self._model[0] != wanted:
            self._model = self._task = self._captures = None
            lens = load_model(cell.model, device=self.device, dtype=cell.dtype)
            cell.identity.require(lens.identity, f"the plan of {cell.site}")
            if libraries() != cell.inputs["libraries"]:
                raise ModelError(
                    f"{cell.site} was planned with {_listed(cell.inputs['libraries'])}, and this "
                    f"worker has {_listed(libraries())}"
                )
            self._model = wanted, lens
        return self._model[1]

    def _task_of(self, lens: LensModel, cell: Cell) -> Task:
        wanted = (cell.task, cell.pairs, cell.task_seed, cell.shifted)
        if self._task is None or self._task[0] != wanted:
            self._task = self._captures = None
            task = task_of(lens, cell.task, cell.pairs, cell.task_seed)
            if list(task_hashes(task)) != list(cell.inputs["task"]):
                raise TaskError(f"task {cell.task.name} is not the one that was planned for")
            self._task = wanted, task
        return self._task[1]


def _listed(installed: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in installed.items())


def _captured(lens: LensModel, task: Task, cell: Cell, sites: Sequence[Site]) -> TaskCapture:
    """All the sites at once, or the cell's alone where another one spoils it."""
    try:
        return capture_task(
            lens,
            task,
            {cell.site: None, **dict.fromkeys(sites)},
            shifted=cell.shifted,
            memory=cell.memory,
        )
    except LensError:
        return capture_task(lens, task, [cell.site], shifted=cell.shifted, memory=cell.memory)
