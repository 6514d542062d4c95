"""The audit: one subspace, one task, one verdict with all its evidence."""

from __future__ import annotations

import platform
import resource
import sys
import time
from dataclasses import dataclass, field
from html import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..certify import centred, require
from ..errors import SubspaceError
from ..model import LensModel
from ..progress import track
from ..replay import Replay
from ..results import (
    METRICS,
    AuditRecord,
    Clean,
    DoseResponse,
    Estimate,
    Figures,
    ModelRecord,
    Scatter,
    SubspaceRecord,
    SupportCurve,
    TaskRecord,
    Written,
    save_audit,
)
from ..site import Site
from ..subspace import Subspace
from ..task_capture import TaskCapture
from . import evidence
from .decomposition import (
    READERS_IN_PROXY,
    Decomposition,
    ReaderShare,
    attribute_readers,
    exact_split,
    proxy_split,
)
from .effects import Scorer, named_patches, outcomes_by_name, random_effects
from .evidence import Case, Natural
from .statistics import mean, proportion
from .verdict import decide

SUBSPACE_FILE = "subspace.safetensors"
AUDIT_FILE = "audit.json"
READER_PAIRS = 64


@dataclass(frozen=True)
class Audit:
    """The result: the subspace that was audited and the record of what was found."""

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
        fldd = {
            name: self.record.effects[name]["fldd"].value for name in ("full", "subspace", "row")
        }
        numbers = ", ".join(f"{k} {v:.2f}" for k, v in fldd.items() if v is not None)
        return f"Audit({self.record.site}: {self.label}, FLDD {numbers})"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th>{name}</th>" + "".join(f"<td>{_cell(e[m])}</td>" for m in e) + "</tr>"
            for name, e in self.record.effects.items()
        )
        heads = "".join(f"<th>{m}</th>" for m in next(iter(self.record.effects.values())))
        reasons = "".join(f"<li>{escape(r)}</li>" for r in self.record.verdict.reasons)
        return (
            f"<b>{escape(self.record.site)}: {self.label}</b><ul>{reasons}</ul>"
            f"<table><tr><th></th>{heads}</tr>{rows}</table>"
        )


def _cell(estimate) -> str:
    return "" if estimate.value is None else f"{estimate.value:.2f}"


def audit(
    lens: LensModel,
    captures: TaskCapture,
    subspace: Subspace,
    *,
    seed: int = 0,
    memory: int | None = None,
    command: str = "",
) -> Audit:
    """Judges `subspace` on the task's test pairs; statistics of nature come from its training
    prompts.

    `captures` must hold the subspace's site (`capture_task`). `memory` is the replay budget in
    bytes. Raises `SubspaceError` if the subspace belongs to another model, `SiteError` if its site
    was not captured or fails a proof.
    """
    started = time.monotonic()
    subspace.check(lens)
    site = subspace.site
    require(lens, site)
    if site not in captures.test.base:
        raise SubspaceError(f"the subspace is at {site}, which was not captured")
    basis = subspace.basis.double()
    replay = Replay(lens, captures.test, site, memory=memory)
    steps = iter(track(range(6), f"audit of {site}"))

    next(steps)
    parts, readers = _decompose(lens, replay, basis)
    next(steps)
    scorer = Scorer.of(captures.test)
    outcomes = outcomes_by_name(replay, named_patches(parts, basis))
    case = Case(
        lens, site, basis, captures, replay, scorer, parts, readers, outcomes,
        Natural.of(captures.train, site), Natural.of(captures.test, site), seed,
    )  # fmt: skip
    effects = {
        name: scorer.metrics(found) if found is not None else _nothing()
        for name, found in outcomes.items()
    }
    no_op = effects.pop("no_op")
    next(steps)
    natural = captures.train.difference(site).cpu().double()
    effects["random"] = random_effects(
        lens, captures.test, site, natural, basis.shape[1], seed, memory
    )
    effects["reversed"] = _reversed(lens, captures, site, basis, memory)
    next(steps)
    by_support = evidence.split_by_support(case)
    next(steps)
    tests = {
        "full_component": evidence.full_component(case),
        "row_effect": evidence.row_effect(case),
        "null_effect": evidence.null_effect(case),
        "read_source": evidence.read_source(case),
        "amplification": evidence.amplification(case),
        "support": evidence.support(case, by_support),
        "dormancy": evidence.dormancy(case),
        "separation": evidence.separation(case),
        "generalisation": evidence.generalisation(case),
    }
    figures = _figures(case, by_support)
    next(steps, None)
    for _ in steps:
        pass
    verdict = decide(
        tests,
        effects["subspace"]["nats"],
        effects["subspace"]["fldd"],
        int(scorer.units.of_pair.max()) + 1,
        exact=parts is not None and parts.exact and not parts.degenerate,
        rank_too_low=parts is not None and parts.exact and parts.rank_too_low,
    )
    record = AuditRecord(
        model=ModelRecord(
            id=lens.id, weights_sha256=lens.weights_sha256, dtype=str(lens.dtype).split(".")[-1]
        ),
        task=_task_record(captures),
        site=str(site),
        subspace=SubspaceRecord(file=SUBSPACE_FILE, dim=subspace.dim, fit=subspace.fit),
        clean=_clean(captures, scorer),
        effects=effects,
        no_op=no_op,
        tests=tests,
        verdict=verdict,
        notes=_notes(case),
        figures=figures,
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
    some = replay.subset(torch.arange(min(READER_PAIRS, len(replay.captured.pairs))))
    difference = some.captured.difference(site)
    held = basis.to(difference)
    readers = attribute_readers(lens, some, (difference @ held) @ held.T)
    if not any(r.reader.attention for r in readers):
        return None, readers
    return proxy_split(readers, basis, READERS_IN_PROXY), readers


def _nothing():
    return {name: Estimate(value=None) for name in METRICS}


def _reversed(lens, captures: TaskCapture, site: Site, basis: Tensor, memory):
    swapped = captures.reversed
    replay = Replay(lens, swapped, site, memory=memory)
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
    if case.test.z is None:
        notes.append("the pairs carry no z: the pictures show bases (0) and sources (1) instead")
    return notes


def _figures(case: Case, by_support: evidence.SupportSplit) -> Figures:
    z = case.test.role if case.test.z is None else case.test.z

    def scatter(values, classes=z) -> Scatter:
        values = np.asarray(values)
        return Scatter(z0=values[classes == 0].tolist(), z1=values[classes == 1].tolist())

    def projected(basis: Tensor) -> Scatter | None:
        if basis.shape[1] == 0:
            return None
        return scatter(evidence.class_scores(case.train, case.test, basis))

    captured, site = case.captures.test, case.site
    weight = case.lens.map.writer(site)
    write = (lambda x: x @ weight.T.cpu().double()) if weight is not None else (lambda x: x)
    base = captured.base[site].cpu().double()
    delta = (captured.difference(site).cpu().double() @ case.basis) @ case.basis.T
    _, _, directions = torch.linalg.svd(write(delta), full_matrices=False)
    along = directions[0]
    effects, marks = evidence.dose_response(case)
    fldd = 1 / case.scorer.clean.sum()
    projection = projected(case.basis)
    assert projection is not None
    return Figures(
        row_projection=projected(case.parts.unit_row) if case.parts else None,
        null_projection=projected(case.parts.unit_null) if case.parts else None,
        projection=projection,
        dose_response=DoseResponse(dose=list(evidence.DOSES), effect=effects, marks=marks),
        written=Written(
            natural=scatter(write(case.test.x) @ along),
            patched=scatter(write(base + delta) @ along, z[: len(base)]),
        ),
        support=SupportCurve(
            explained=list(evidence.EXPLAINED),
            components=by_support.components,
            share=by_support.share,
            on=(by_support.on.sum(1) * fldd).tolist(),
            off=(by_support.off.sum(1) * fldd).tolist(),
        ),
    )


def peak_rss_bytes() -> int:
    """Largest resident size of this process so far."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024


def versions() -> dict[str, str]:
    """Versions of what the numbers rest on."""
    found = {"python": platform.python_version()}
    for name in ("subspacelens", "torch", "transformers", "numpy", "scipy", "scikit-learn"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found
