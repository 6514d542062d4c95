"""One site of a search: the fit, the audit, and what random subspaces do there, as a cell."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import torch

from ..audit.judging import setting_at
from ..audit.record import AuditRecord
from ..audit.run import AUDIT_FILE, SUBSPACE_FILE, Audit, audit
from ..certify import require
from ..core.identity import NUMBERS
from ..core.machine import versions
from ..core.records import Number, Record, parse_record, read_record
from ..core.site import Site
from ..engine.capture import Capture
from ..engine.patches import SubspacePatch
from ..engine.task_capture import TaskCapture, capture_task
from ..fit import best_dim, named
from ..fit.subspace import Subspace
from ..measure.effects import RANDOM_PAIRS, drops_of, random_effects
from ..model.lens import LensModel
from ..model.loading import load_model
from ..sweep.cell import Outcome
from ..sweep.grid import FitSpec, TaskSpec
from ..sweep.plan import Cell, canonical, code_sha256, libraries, reference_sha256, task_hashes
from ..tasks.pairset import Task
from .budget import Budget
from .division import Division
from .places import Chosen

FOUND_FILE = "site.json"


class SiteRecord(Record):
    """What a search keeps of a site beside its audit: FLDD on the pairs to choose on by number of
    dimensions, and mean drops in nats of the subspace and of random ones that write as much, on the
    first test pairs."""

    tried: dict[int, Number]
    own: Number
    null: list[Number]
    cpu_seconds: float


@dataclass(frozen=True, kw_only=True)
class SiteCell(Cell):
    """A cell that carries its pairs: `given.train` begins with the `fitted` pairs to fit on, and
    goes on with those to choose on. `dims` to choose from."""

    given: Task = field(repr=False)
    fitted: int
    dims: tuple[int, ...]
    budget: str
    draws: int
    controls: bool
    command: str


def site_cell(
    lens: LensModel, chosen: Chosen, division: Division, budget: Budget, fit: FitSpec,
    dims: tuple[int, ...], *, controls: bool, shifted: bool, memory: int | None, seed: int,
    command: str,
) -> SiteCell:  # fmt: skip
    """The cell of a site, whose key depends on all that its numbers depend on."""
    level = budget.audit if chosen.role == "candidate" else "fast"
    identity, task = lens.identity, division.task
    inputs = {
        "kind": "find",
        "model": {part: getattr(identity, part) for part in NUMBERS},
        "libraries": libraries(),
        "task": [*task_hashes(task), division.fitted],
        "site": str(chosen.site),
        "fit": {"method": fit.method, **fit.options},
        "dims": list(dims),
        "budget": level,
        "draws": budget.draws,
        "controls": controls,
        "seed": seed,
        "shifted": shifted,
        "memory": memory,
        "code": [code_sha256(), own_sha256()],
        "text": reference_sha256(),
    }
    return SiteCell(
        kind="audit", model=lens.id, identity=identity,
        dtype=str(lens.dtype).removeprefix("torch."), task=TaskSpec(name=task.name), pairs=None,
        task_seed=0, shifted=shifted, memory=memory or 0, site=chosen.site, fit=fit, dim=dims[0],
        seed=seed, pair=None, inputs=inputs, given=task, fitted=division.fitted, dims=dims,
        budget=level, draws=budget.draws, controls=controls, command=command,
    )  # fmt: skip


@cache
def own_sha256() -> str:
    """Hash of what is computed in this room: records of other code are not taken for its own."""
    here = Path(__file__).parent
    parts = [(here / name).read_bytes() for name in ("cell.py", "sources.py")]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def outcome_of(lens: LensModel, captures: TaskCapture, cell: SiteCell) -> Outcome:
    """Fits, audits, and draws random subspaces, on captures that hold the cell's site."""
    started, cpu = time.monotonic(), time.process_time()
    fitted = torch.arange(cell.fitted)
    fit_on = captures.train.subset(fitted)
    subspace, tried = _fitted(lens, captures, fit_on, cell)
    result = audit(
        lens, captures, subspace, budget=cell.budget, controls=cell.controls, seed=cell.seed,
        command=cell.command,
    )  # fmt: skip
    own, null = _chance(lens, captures, subspace, cell)
    found = SiteRecord(tried=tried, own=own, null=null, cpu_seconds=time.process_time() - cpu)
    files = {
        SUBSPACE_FILE: subspace.to_bytes(),
        AUDIT_FILE: result.record.model_dump_json(indent=1, by_alias=True).encode(),
        FOUND_FILE: found.model_dump_json().encode(),
    }
    digest = hashlib.sha256(canonical(subspace.fit).encode() + subspace.basis.numpy().tobytes())
    summary = {"verdict": result.label, "dim": subspace.dim}
    return Outcome(
        cell.key, files, summary, digest.hexdigest(), time.monotonic() - started, versions()
    )


def _fitted(
    lens: LensModel, captures: TaskCapture, fit_on: Capture, cell: SiteCell
) -> tuple[Subspace, dict[int, float]]:
    fit, options = named(cell.fit.method), cell.fit.options
    if len(cell.dims) == 1:
        return fit(lens, fit_on, cell.site, dim=cell.dims[0], seed=cell.seed, **options), {}
    choice = torch.arange(cell.fitted, len(captures.train.pairs))
    dims = [dim for dim in cell.dims if dim < lens.map.dim(cell.site)]
    best = best_dim(
        fit, fit_on, captures.train.subset(choice), cell.site, dims, seed=cell.seed, **options
    )
    known = {each.dim: each.fldd for each in best.tries if each.fldd is not None}
    plain = {name: value for name, value in best.subspace.fit.items() if name != "tried"}
    return replace(best.subspace, fit=plain), known


def _chance(
    lens: LensModel, captures: TaskCapture, subspace: Subspace, cell: SiteCell
) -> tuple[float, list[float]]:
    setting, _, _ = setting_at(captures, cell.site, lens)
    few = setting.replay.subset(slice(RANDOM_PAIRS))
    null = random_effects(few, None, subspace.basis, cell.draws, cell.seed).uniform.mean(axis=1)
    delta = SubspacePatch(subspace.basis).delta(few.base, few.source)
    return float(drops_of(few, delta[None]).mean()), null.tolist()


class Worker:
    """Runs sites one after the other and keeps the model and the captures between them."""

    def __init__(self, device: str | None = None, lens: LensModel | None = None) -> None:
        self.device, self._lens = device, lens
        self._captures: tuple[str, TaskCapture] | None = None

    def run(self, cell: SiteCell, sites: Sequence[Site]) -> Outcome:
        """Raises whatever the fit or the audit raises, `ModelError` where the model here is not the
        one that the search was begun with."""
        lens = self._model(cell)
        require(lens, cell.site)
        known = self._captures
        pairs = canonical(list(task_hashes(cell.given)))
        if known is None or known[0] != pairs or cell.site not in known[1].test.base:
            self._captures = None
            wanted = {cell.site: None, **dict.fromkeys(sites)}
            captures = capture_task(
                lens, cell.given, wanted, shifted=cell.shifted, memory=cell.memory or None
            )
            known = self._captures = pairs, captures
        return outcome_of(lens, known[1], cell)

    def _model(self, cell: SiteCell) -> LensModel:
        if self._lens is None:
            self._lens = load_model(cell.model, device=self.device, dtype=cell.dtype)
            cell.identity.require(self._lens.identity, f"the search at {cell.site}")
        return self._lens


@dataclass(frozen=True)
class Done:
    """A site that is done, as it was kept."""

    chosen: Chosen
    audit: Audit
    site: SiteRecord


def read_done(folder: Path, chosen: Chosen, lens: LensModel) -> Done:
    """What `outcome_of` gave. Raises `ResultError` or `SubspaceError` where it is damaged."""
    record = parse_record(
        AuditRecord, (folder / AUDIT_FILE).read_bytes(), folder / AUDIT_FILE, "audit"
    )
    subspace = Subspace.load(folder / SUBSPACE_FILE, lens)
    return Done(
        chosen, Audit(subspace, record), read_record(SiteRecord, folder / FOUND_FILE, "site record")
    )
