"""The audit of an addition: one vector, one dose, one task, one verdict, and its record."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import Tensor

from ...core.files import write_atomically
from ...core.format import counted, plain
from ...core.machine import peak_rss_bytes, versions
from ...core.records import EffectRecord, Estimate, ModelRecord
from ...core.site import Site
from ...engine.task_capture import TaskCapture
from ...measure.effects import spread_of
from ...measure.readers import attribute_readers
from ...model.lens import LensModel, unchanged
from ..controls.words import tempered
from ..evidence.path import PAIRS
from ..record import (
    Clean,
    Controls,
    Scatter,
    Test,
    Verdict,
    VerdictName,
    Written,
)
from ..run import clean_of, task_record
from .case import Addition
from .controls import controls as run_controls
from .curve import curve
from .judging import Judgement, judge
from .record import (
    PATCHES,
    AdditionRecord,
    DoseCurve,
    ReaderRecord,
    VectorRecord,
    save_addition,
)

ADDITION_FILE = "addition.json"
VECTOR_FILE = "vector.npy"
MOST_READERS = 8


@dataclass(frozen=True)
class AdditionAudit:
    """The `vector` that was added, float64 (dim,), and the record of the evidence (see
    `audit_addition` for what is where).

    >>> result = sl.audit_addition(lens, captures, "L17.resid_post@S2", vector, alpha=4)
    >>> result.label, result.record.curve.leaves
    """

    vector: Tensor = field(repr=False)
    record: AdditionRecord = field(repr=False)

    @property
    def label(self) -> VerdictName:
        """`faithful`, `partial`, `mixed`, `illusory` or `undetermined`."""
        return self.record.verdict.label

    def save(self, directory: Path | str) -> Path:
        """Writes `vector.npy` and `addition.json` into `directory/<site>/`, and returns that
        folder. Raises `ResultError` where it cannot."""
        folder = Path(directory) / self.record.site
        write_atomically(folder / VECTOR_FILE, _bytes(self.vector))
        save_addition(self.record, folder / ADDITION_FILE)
        return folder

    def __repr__(self) -> str:
        fldd, vector = self.record.effect("add").fldd.value, self.record.vector
        what = f"{self.record.site}, {vector.alpha:g} v"
        return f"AdditionAudit({what}: {self.label}, FLDD {plain(fldd)})"


def audit_addition(
    lens: LensModel,
    captures: TaskCapture,
    site: Site | str,
    vector: Tensor,
    *,
    alpha: float = 1.0,
    budget: str = "standard",
    tests: Sequence[str] | None = None,
    controls: bool | None = None,
    seed: int = 0,
    given: Mapping[str, str | int | float | bool | None] | None = None,
    command: str = "",
) -> AdditionAudit:
    """Does adding `alpha` times `vector` write what nature writes when z changes?

    `vector` (dim,) is added as long as it is, at the site's token of each base prompt: times alpha
    where z goes from 0 to 1, times -alpha where it goes back, and times alpha everywhere where the
    pairs carry no z of two values; then what needs z is void, and so is the verdict. `budget` is
    `fast` (what the verdict rests on) or `standard`; `full` is `standard` with `controls`, which
    plants vectors of known truth at the site and judges them blind. `given` is kept in the record:
    where the vector comes from.

    - `result.label`: `faithful`: what is written is what nature writes when z changes, no further
      than nature goes, and better than random vectors that write as much. `illusory`: it works
      through where nature does not move with z. `partial`, `mixed`: as of a subspace.
      `undetermined`: neither can be said; the code `dose` says that the dose is beyond nature, and
      the reason names the largest that is not.
    - `result.record.effects`: `full` replaces the whole component, `add` is the addition, `mean`
      adds the difference of the class means, `random` vectors that write as much.
    - `result.record.curve`: effect, share inside nature, and size of the dose in natural units, for
      multiples of it; `leaves` is the largest α that stays inside.
    - `result.record.readers`: through whom it acts.

    Raises `SubspaceError` for a vector that does not fit, `ModelError` if the captures are another
    model's, `SiteError` if the site was not captured or fails a proof, `LensError` for an alpha of
    0 or none, and an unknown budget or test. docs/operations.md has every test and the rule.

    >>> captures = sl.capture_task(lens, task, ["L17.resid_post@S2"])
    >>> result = sl.audit_addition(lens, captures, "L17.resid_post@S2", vector, alpha=4)
    >>> result.label, result.record.verdict.code, result.record.curve.leaves
    """
    site = Site.of(site)
    started = time.monotonic()
    with unchanged(lens):
        judgement = judge(
            lens, captures, site, vector, alpha, budget=budget, tests=tests, seed=seed
        )
        case, verdict, checked = judgement.case, judgement.verdict, None
        if controls if controls is not None else budget == "full":
            checked = run_controls(case, verdict.label, seed)
            verdict = tempered(verdict, checked)
        effects = {name: case.effects[name].record for name in PATCHES if name in case.effects}
        return recorded(
            case,
            started,
            clean=clean_of(case),
            effects=effects | {"random": _random(case)},
            no_op=case.effects["no_op"].record,
            tests=judgement.tests,
            controls=checked,
            verdict=verdict,
            curve=curve(case),
            notes=_notes(judgement),
            readers=_readers(case),
            given=given,
            command=command,
        )


def recorded(
    case: Addition,
    started: float,
    *,
    clean: Clean,
    effects: dict[str, EffectRecord],
    no_op: EffectRecord,
    tests: dict[str, Test],
    verdict: Verdict,
    curve: DoseCurve,
    notes: list[str],
    given: Mapping[str, str | int | float | bool | None] | None,
    command: str,
    controls: Controls | None = None,
    readers: Sequence[ReaderRecord] = (),
) -> AdditionAudit:
    """The outcome for an addition, with where it comes from; `started`, of the monotonic clock."""
    lens = case.lens
    record = AdditionRecord(
        model=ModelRecord(
            id=lens.id,
            weights_sha256=lens.weights_sha256,
            dtype=str(lens.dtype).removeprefix("torch."),
        ),
        task=task_record(case.captures),
        site=str(case.site),
        vector=VectorRecord(
            file=VECTOR_FILE,
            sha256=hashlib.sha256(_bytes(case.vector)).hexdigest(),
            dim=len(case.vector),
            norm=float(case.vector.norm()),
            alpha=case.alpha,
            cosine=case.cosine,
            given=dict(given or {}),
        ),
        clean=clean,
        effects=effects,
        no_op=no_op,
        tests=tests,
        controls=controls,
        verdict=verdict,
        notes=notes,
        curve=curve,
        readers=list(readers),
        written=_written(case),
        seconds=time.monotonic() - started,
        peak_rss_bytes=peak_rss_bytes(),
        versions=versions(),
        command=command,
    )
    return AdditionAudit(case.vector, record)


def _bytes(vector: Tensor) -> bytes:
    file = io.BytesIO()
    np.save(file, vector.numpy(), allow_pickle=False)
    return file.getvalue()


def _random(case: Addition) -> EffectRecord:
    """The mean over uniformly random vectors, with the range of 95 % of them."""
    effects = case.random["uniform"]

    def spread(metric: str) -> Estimate:
        values = [getattr(effect, metric).value for effect in effects]
        return spread_of(np.array(values, dtype=float))

    return EffectRecord(**{metric: spread(metric) for metric in EffectRecord.model_fields})


def _readers(case: Addition) -> list[ReaderRecord]:
    replay = case.replay.subset(slice(PAIRS))
    shares = attribute_readers(replay, case.delta[:PAIRS].to(replay.base))
    total = sum(abs(share.attribution) for share in shares)
    if not total:
        return []
    strongest = shares[:MOST_READERS]
    return [ReaderRecord(name=each.name, share=each.attribution / total) for each in strongest]


def _written(case: Addition) -> Written:
    """In units of the addition: a patched reading lies 1 from where it was."""
    return Written(
        natural=_scatter(case, (case.along(case.setting.test.x) / case.alpha).numpy()),
        patched=_scatter(case, (case.unpatched / case.alpha + case.sign).numpy()),
    )


def _scatter(case: Addition, values: np.ndarray) -> Scatter:
    classes = (case.setting.test.role if case.z is None else case.z)[: len(values)]
    return Scatter(z0=values[classes == 0].tolist(), z1=values[classes == 1].tolist())


def _notes(judgement: Judgement) -> list[str]:
    case, notes = judgement.case, []
    if judgement.left_out:
        notes.append(
            f"{judgement.left_out} test pairs share their tokens up to {case.site.label}, or a "
            "group, with pairs to fit on: left out"
        )
    if case.z is None:
        notes.append(
            "the pairs carry no z of two values: the vector is added to all bases alike, and the "
            "pictures show bases (0) and sources (1)"
        )
    still = int((case.sign == 0).sum())
    if still:
        notes.append(f"in {counted(still, 'pair')} z does not change: nothing is added there")
    split = case.setting.split
    if split is not None:
        read = float(split.row(case.vector[:, None]).norm() ** 2 / case.vector.norm() ** 2)
        notes.append(
            f"{1 - read:.0%} of its squared norm is disconnected: nothing behind the site reads it"
        )
    return notes
