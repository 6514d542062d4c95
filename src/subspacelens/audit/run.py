"""The audit: one subspace, one task, one verdict with all its evidence."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..certify import centred, require
from ..core.errors import LensError, SubspaceError
from ..core.machine import peak_rss_bytes, versions
from ..core.progress import track
from ..core.records import EffectRecord, Estimate, ModelRecord
from ..core.site import Site
from ..core.statistics import mean, proportion
from ..engine.replay import Replay
from ..engine.task_capture import TaskCapture
from ..fit.subspace import Subspace
from ..measure.effects import Scorer, named_patches, outcomes_by_name, random_effects
from ..measure.readers import ReaderShare, attribute_readers
from ..measure.splits import READERS_IN_PROXY, Decomposition, exact_split, proxy_split
from ..measure.support import EXPLAINED, SUPPORT_AT, split_by_support
from ..model.lens import LensModel
from .drawing import draw
from .evidence import BUDGETS, TESTS, Case, Natural
from .record import (
    AuditRecord,
    Clean,
    SubspaceRecord,
    TaskRecord,
    Test,
    Verdict,
    save_audit,
)
from .verdict import CONDITIONS, decide

SUBSPACE_FILE = "subspace.safetensors"


AUDIT_FILE = "audit.json"


READER_PAIRS = 64


@dataclass(frozen=True)
class Audit:
    """The result: the subspace that was audited and the record of what was found.

    >>> result = audit(lens, captures, subspace)
    >>> result.label, result.record.effects["subspace"].fldd.value
    """

    subspace: Subspace = field(repr=False)
    record: AuditRecord = field(repr=False)

    @property
    def label(self) -> str:
        """`faithful`, `illusory` or `undetermined`."""
        return self.record.verdict.label

    def save(self, directory: Path | str) -> Path:
        """Writes `subspace.safetensors` and `audit.json` into `directory/<site>/`."""
        folder = Path(directory) / self.record.site
        self.subspace.save(folder / SUBSPACE_FILE)
        save_audit(self.record, folder / AUDIT_FILE)
        return folder

    def __repr__(self) -> str:
        fldd = {name: self.record.effect(name).fldd.value for name in ("full", "subspace", "row")}
        numbers = ", ".join(f"{k} {v:.2f}" for k, v in fldd.items() if v is not None)
        return f"Audit({self.record.site}: {self.label}, FLDD {numbers})"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th>{name}</th>" + "".join(f"<td>{_cell(e)}</td>" for _, e in effect) + "</tr>"
            for name, effect in self.record.effects.items()
        )
        heads = "".join(f"<th>{metric}</th>" for metric in EffectRecord.model_fields)
        reasons = "".join(f"<li>{escape(r)}</li>" for r in self.record.verdict.reasons)
        return (
            f"<b>{escape(self.record.site)}: {self.label}</b><ul>{reasons}</ul>"
            f"<table><tr><th></th>{heads}</tr>{rows}</table>"
        )


def _cell(estimate: Estimate) -> str:
    return "" if estimate.value is None else f"{estimate.value:.2f}"


@dataclass(frozen=True)
class Judgement:
    """What `audit` found, before it is written down."""

    case: Case = field(repr=False)
    effects: dict[str, EffectRecord]
    tests: dict[str, Test]
    verdict: Verdict


def judge(
    lens: LensModel,
    captures: TaskCapture,
    subspace: Subspace,
    *,
    budget: str = "standard",
    tests: Sequence[str] | None = None,
    seed: int = 0,
) -> Judgement:
    """The evidence and the verdict alone; arguments and errors as in `audit`."""
    chosen = chosen_tests(budget, tests)
    subspace.check(lens)
    site = subspace.site
    require(lens, site)
    if site not in captures.test.base:
        raise SubspaceError(f"the subspace is at {site}, which was not captured")
    basis = subspace.basis.double()
    replay = captures.test.at(site, lens)
    steps = iter(track([*range(4), *chosen], f"audit of {site}"))
    next(steps)
    parts, readers = _decompose(lens, replay, basis)
    next(steps)
    scorer = Scorer.of(captures.test)
    outcomes = outcomes_by_name(replay, named_patches(parts, basis))
    effects = {
        name: scorer.metrics(found) if found is not None else EffectRecord.absent()
        for name, found in outcomes.items()
    }
    next(steps)
    drops = None
    if budget != "fast":
        natural = captures.train.difference(site).cpu().double()
        effects["random"], drops = random_effects(replay, natural, basis.shape[1], seed)
        effects["reversed"] = _reversed(captures, site, basis)
    next(steps)
    natural = Natural.of(captures.train, site)
    explained = (SUPPORT_AT,) if budget == "fast" else EXPLAINED
    case = Case(
        lens, site, subspace, basis, captures, replay, scorer, parts, readers, outcomes,
        split_by_support(natural.x, replay, basis, scorer, explained), natural,
        Natural.of(captures.test, site), drops, seed,
    )  # fmt: skip
    found = {str(name): TESTS[str(name)][1](case) for name in steps}
    verdict = decide(
        found,
        effects["subspace"].nats,
        effects["subspace"].fldd,
        min(scorer.units.count, captures.train.pairs.units.count),
        exact=parts is not None and parts.exact and not parts.degenerate,
        rank_too_low=parts is not None and parts.exact and parts.rank_too_low,
    )
    return Judgement(case, effects, {name: found[name] for name in chosen}, verdict)


def chosen_tests(budget: str, tests: Sequence[str] | None = None) -> list[str]:
    """The tests that a budget runs, or those of `tests`; what the verdict rests on always runs.
    Raises `LensError` for an unknown name."""
    if budget not in BUDGETS:
        raise LensError(f"unknown budget '{budget}': one of {', '.join(BUDGETS)}")
    unknown = sorted(set(tests or ()) - set(TESTS))
    if unknown:
        raise LensError(f"unknown test '{unknown[0]}': one of {', '.join(TESTS)}")
    level = BUDGETS.index(budget)
    wanted = [n for n, (least, _) in TESTS.items() if BUDGETS.index(least) <= level]
    return [n for n in TESTS if n in CONDITIONS or n in (wanted if tests is None else tests)]


def audit(
    lens: LensModel,
    captures: TaskCapture,
    subspace: Subspace,
    *,
    budget: str = "standard",
    tests: Sequence[str] | None = None,
    seed: int = 0,
    command: str = "",
) -> Audit:
    """Judges `subspace` on the task's test pairs; statistics of nature come from its training
    prompts.

    `captures` must hold the subspace's site (`capture_task`). `budget` is `fast` (what the verdict
    rests on), `standard` or `full` (the subspace is fitted again on halves of the data); `tests`
    names those to run instead.

    Raises `SubspaceError` if the subspace belongs to another model, `SiteError` if its site was
    not captured or fails a proof, `LensError` for an unknown budget or test.

    >>> result = audit(lens, captures, subspace)
    >>> result.label, result.record.verdict.reasons
    """
    started = time.monotonic()
    found = judge(lens, captures, subspace, budget=budget, tests=tests, seed=seed)
    effects = dict(found.effects)
    no_op = effects.pop("no_op")
    record = AuditRecord(
        model=ModelRecord(
            id=lens.id, weights_sha256=lens.weights_sha256, dtype=str(lens.dtype).split(".")[-1]
        ),
        task=_task_record(captures),
        site=str(subspace.site),
        subspace=SubspaceRecord(file=SUBSPACE_FILE, dim=subspace.dim, fit=subspace.fit),
        clean=_clean(captures, found.case.scorer),
        effects=effects,
        no_op=no_op,
        tests=found.tests,
        verdict=found.verdict,
        notes=_notes(found.case),
        figures=draw(found.case),
        seconds=time.monotonic() - started,
        peak_rss_bytes=peak_rss_bytes(),
        versions=versions(),
        command=command,
    )
    return Audit(subspace, record)


def _decompose(
    lens: LensModel, replay: Replay, basis: Tensor
) -> tuple[Decomposition | None, tuple[ReaderShare, ...]]:
    site = replay.site
    if lens.map.writer(site) is not None:
        return exact_split(lens, site, basis, centred=centred(lens)), ()
    some = replay.subset(torch.arange(min(READER_PAIRS, len(replay.pairs))))
    difference = some.difference
    held = basis.to(difference)
    readers = attribute_readers(lens, some, (difference @ held) @ held.T)
    if not any(r.reader.attention for r in readers):
        return None, readers
    return proxy_split(readers, basis, READERS_IN_PROXY), readers


def _reversed(captures: TaskCapture, site: Site, basis: Tensor):
    swapped = captures.reversed
    replay = swapped.at(site)
    patches = {"subspace": named_patches(None, basis)["subspace"]}
    found = outcomes_by_name(replay, patches)["subspace"]
    assert found is not None
    return Scorer.of(swapped).metrics(found)


def _task_record(captures: TaskCapture) -> TaskRecord:
    task = captures.task
    return TaskRecord(
        name=task.name,
        train_pairs=len(task.train),
        test_pairs=len(task.test),
        held_out_pairs=len(task.held_out) if task.held_out else 0,
        train_sha256=task.train.sha256,
        test_sha256=task.test.sha256,
        labels=list(task.test.labels),
    )


def _clean(captures: TaskCapture, scorer: Scorer) -> Clean:
    answers = np.array([pair.answer for pair in captures.test.pairs.pairs])
    return Clean(
        logit_diff=mean(scorer.clean, scorer.units),
        top_answer=proportion(captures.test.clean.top.numpy() == answers, scorer.units),
    )


def _notes(case: Case) -> list[str]:
    notes = []
    if case.parts is not None:
        k = case.basis.shape[1]
        for name, part in (("row", case.parts.unit_row), ("null", case.parts.unit_null)):
            if part.shape[1] < k:
                notes.append(f"{k - part.shape[1]} of {k} directions have no {name} part: dropped")
    if case.readers:
        total = sum(abs(r.attribution) for r in case.readers) or 1.0
        mlps = sum(abs(r.attribution) for r in case.readers if not r.reader.attention)
        names = ", ".join(r.name for r in case.readers if r.reader.attention)
        strongest = ", ".join(names.split(", ")[:READERS_IN_PROXY])
        notes.append(
            f"the row/null split stands for the strongest attention readers {strongest}; "
            f"{mlps / total:.0%} of the attribution goes to MLPs, which read every direction"
        )
    if case.subspace.fit.get("orthonormalised"):
        notes.append("the columns that were given were not orthonormal: their span is audited")
    if case.test.z is None:
        notes.append("the pairs carry no z: the pictures show bases (0) and sources (1) instead")
    return notes
