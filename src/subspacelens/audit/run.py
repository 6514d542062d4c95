"""The audit: one subspace, one task, one verdict, and the record of all its evidence."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import polars as pl

from ..core.format import percent, plain, with_interval
from ..core.machine import peak_rss_bytes, versions
from ..core.records import EffectRecord, Estimate, ModelRecord
from ..core.statistics import Units, mean, proportion
from ..engine.metrics import Chosen
from ..engine.task_capture import TaskCapture
from ..fit.subspace import Subspace
from ..measure.hypotheses import Agreement, agreement
from ..measure.splits import READERS_IN_PROXY
from ..model.lens import LensModel, unchanged
from .controls.run import controls as run_controls
from .controls.words import tempered
from .drawing import draw
from .evidence import Case
from .evidence.case import OfSetting
from .judging import Judgement, judge
from .pair_by_pair import pair_examples, pair_table
from .record import (
    AuditRecord,
    Clean,
    MetricRecord,
    OverTemplates,
    SubspaceRecord,
    TaskRecord,
    VerdictName,
    save_audit,
)

SUBSPACE_FILE = "subspace.safetensors"
AUDIT_FILE = "audit.json"
LEAST_TEMPLATES = 3


@dataclass(frozen=True)
class Audit:
    """The subspace that was audited and the record of its evidence (see `audit` for what is where).
    In a notebook it shows the verdict, its reasons and the effects.

    >>> result = sl.audit(lens, captures, subspace)
    >>> result.label, result.record.effects["subspace"].fldd.value
    >>> result.frame().to_pandas()  # one row a pair
    """

    subspace: Subspace = field(repr=False)
    record: AuditRecord = field(repr=False)

    @property
    def label(self) -> VerdictName:
        """`faithful`, `partial`, `mixed`, `illusory` or `undetermined`."""
        return self.record.verdict.label

    def frame(self) -> pl.DataFrame:
        """One row a pair that was judged on (`AuditRecord.frame`)."""
        return self.record.frame()

    def tests_frame(self) -> pl.DataFrame:
        """One row a test (`AuditRecord.tests_frame`)."""
        return self.record.tests_frame()

    def save(self, directory: Path | str) -> Path:
        """Writes `subspace.safetensors` and `audit.json` into `directory/<site>/`, and returns that
        folder. Raises `ResultError` where it cannot."""
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
            f"<tr><th>{escape(name)}</th>"
            + "".join(f"<td>{plain(estimate.value)}</td>" for _, estimate in effect)
            + "</tr>"
            for name, effect in self.record.effects.items()
        )
        heads = "".join(f"<th>{metric}</th>" for metric in EffectRecord.model_fields)
        reasons = "".join(f"<li>{escape(r)}</li>" for r in self.record.verdict.reasons)
        return (
            f"<b>{escape(self.record.site)}: {self.label}</b><ul>{reasons}</ul>"
            f"<table><tr><th></th>{heads}</tr>{rows}</table>"
        )


def audit(
    lens: LensModel,
    captures: TaskCapture,
    subspace: Subspace,
    *,
    budget: str = "standard",
    tests: Sequence[str] | None = None,
    controls: bool | None = None,
    metric: Chosen = None,
    seed: int = 0,
    command: str = "",
) -> Audit:
    """Is the effect of patching `subspace` real, or an illusion of one?

    Judges on the task's test pairs; what natural activations do is taken from its training prompts.
    `captures` must hold the subspace's site (`capture_task`). `budget` is `fast` (what the verdict
    rests on), `standard`, or `full` (the subspace is fitted again on halves of the data, to
    shuffled labels, and in a copy that knows nothing); `tests` names tests to run instead. With
    `controls`, by default under `full`, known truth is planted at the site and audited too.
    `metric` is what the tests compare instead of the logit difference: a name such as
    `target_prob`, a `Metric`, or a function of logits (`engine.metrics.metric_of`); FLDD, gradients
    and controls stay with the logit difference. `command` is kept in the record.

    How to read what comes back:

    - `result.label` is the verdict. `faithful`: the patch writes what nature writes there when z
      changes. `partial`: so it does, and the whole component does far more. `illusory`: it works
      through what nothing downstream reads, or where nature does not move. `mixed`: some of either.
      `undetermined`: neither can be said.
    - `result.record.verdict` has the `reasons` in words with their numbers, a `code` for them in
      one word, the `assumptions`, the strongest `objection`, and a `score` from 0 (faithful) to 1
      (illusory) that ranks and decides nothing. `result.record.axes` says it of each axis of a
      subspace of several dimensions.
    - `result.record.effects` has a row for each patch: `full` replaces the whole component,
      `subspace` is the patch under audit, `row` and `null` are only its part that is read
      downstream and only the part that is not, `read_row` and `read_null` write the whole subspace
      but sense with one part, `random` are subspaces of the same size, `reversed` exchanges base
      and source. Each has `nats` (mean drop of the logit difference), `fldd` (0: nothing, 1: the
      difference is gone, 2: it is reversed), `iia` and `iia_pair` (shares of pairs that give the
      source's answer, of the whole vocabulary and of the two). `no_op` is no patch.
    - `result.record.tests` has the evidence by name: `value`, `low`, `high` (95 % interval over
      base prompts), `control` (the same for random directions, or by chance), and a `reading` in
      words. None stands for what does not exist.
    - `result.frame()` has a row a pair, `result.tests_frame()` a row a test.
    - `result.record.controls` says how often the audit was right on planted faithful and illusory
      subspaces that are like this one. A verdict that they do not bear out is `undetermined`.

    Raises `SubspaceError` if the subspace belongs to another model, `ModelError` if the captures
    do, `SiteError` if its site was not captured or fails a proof, `LensError` for an unknown budget
    or test. Source: arXiv 2311.17030; docs/audit.md has every test and the rule.

    >>> site = "L18.mlp_act@S2"
    >>> captures = sl.capture_task(lens, task, [site])
    >>> result = sl.audit(lens, captures, sl.das(lens, captures.train, site))
    >>> result.label, result.record.effects["row"].fldd.value
    ('illusory', 0.36)
    """
    started = time.monotonic()
    with unchanged(lens):
        judgement = judge(
            lens, captures, subspace, budget=budget, tests=tests, metric=metric, seed=seed
        )
        case, verdict, checked = judgement.case, judgement.verdict, None
        if controls if controls is not None else budget == "full":
            checked = run_controls(case, verdict.label, seed)
            verdict = tempered(verdict, checked)
        hypotheses = _hypotheses(case)
        weights = lens.weights_sha256
        pairs = pair_table(case)
        examples = pair_examples(case, pairs)
    record = AuditRecord(
        model=ModelRecord(id=lens.id, weights_sha256=weights, dtype=str(lens.dtype).split(".")[-1]),
        task=task_record(captures),
        site=str(subspace.site),
        subspace=SubspaceRecord(file=SUBSPACE_FILE, dim=subspace.dim, fit=subspace.fit),
        clean=clean_of(case),
        effects=judgement.effects,
        no_op=case.effects["no_op"].record,
        over_templates=_over_templates(case),
        metric=_metric(case),
        hypotheses=hypotheses,
        tests=judgement.tests,
        axes=list(judgement.axes),
        controls=checked,
        verdict=verdict,
        notes=_notes(judgement) + _hypothesis_notes(hypotheses),
        figures=draw(case),
        pairs=pairs,
        examples=examples,
        seconds=time.monotonic() - started,
        peak_rss_bytes=peak_rss_bytes(),
        versions=versions(),
        command=command,
    )
    return Audit(subspace, record)


def task_record(captures: TaskCapture) -> TaskRecord:
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


def clean_of(case: OfSetting) -> Clean:
    """What the model answers without a patch."""
    right = case.replay.clean.says("answer", case.replay.pairs).numpy()
    return Clean(logit_diff=mean(case.clean, case.units), top_answer=proportion(right, case.units))


def _hypotheses(case: Case) -> dict[str, Agreement]:
    if not any(pair.predictions for pair in case.replay.pairs):
        return {}
    return agreement(case.replay.measured_by(None).effect(case.patch))


def _hypothesis_notes(hypotheses: Mapping[str, Agreement]) -> list[str]:
    def said(estimate: Estimate) -> str:
        return "no pairs" if estimate.value is None else with_interval(estimate, percent)

    return [
        f"variable {name}: under the patch the model says what it predicts in "
        f"{said(each.deciding)} of the {each.deciding_pairs} pairs on which the variables differ "
        f"(cause {said(each.cause)}, isolate {said(each.isolate)})"
        for name, each in hypotheses.items()
    ]


def _metric(case: Case) -> MetricRecord | None:
    metric = case.replay.metric
    if metric is None:
        return None
    clean = mean(metric.sign * case.replay.clean.measured.double().numpy(), case.units)
    changes = {name: effect.change for name, effect in case.effects.items() if name != "no_op"}
    return MetricRecord(name=metric.name, unit=metric.unit, clean=clean, changes=changes)


def _over_templates(case: Case) -> OverTemplates | None:
    templates = Units.of(pair.template for pair in case.replay.pairs)
    if templates.count < LEAST_TEMPLATES:
        return None
    fldd = case.effects["subspace"].fldd_over(templates)
    return OverTemplates(count=templates.count, fldd=fldd)


def _template_notes(case: Case) -> list[str]:
    """The interval over templates, where it says more than that over prompts."""
    over, fldd = _over_templates(case), case.effects["subspace"].fldd
    if over is None or fldd.low is None or fldd.high is None:
        return []
    low, high = over.fldd.low, over.fldd.high
    if low is not None and high is not None and high - low <= fldd.high - fldd.low:
        return []
    known = "no bounded interval" if low is None else with_interval(over.fldd, plain)
    return [f"over {over.count} templates instead of prompts the FLDD is {known}"]


def _task_notes(case: Case) -> list[str]:
    """What the model says instead, where it gives the right answer in less than half of the
    prompts."""
    top = case.replay.clean.top.numpy()
    right = case.replay.clean.says("answer", case.replay.pairs).numpy()
    if right.mean() >= 1 / 2:
        return []
    token, count = Counter(top[~right].tolist()).most_common(1)[0]
    tokenizer = case.lens.tokenizer
    word = f"token {token}" if tokenizer is None else repr(tokenizer.decode([token]))
    return [
        f"the model gives the right answer in {right.mean():.0%} of the test prompts; most often "
        f"({count} of {len(right)}) it says {word} instead"
    ]


def _notes(judgement: Judgement) -> list[str]:
    case = judgement.case
    notes = _task_notes(case) + _template_notes(case)
    if case.replay.metric is not None:
        notes.append(
            f"the tests compare changes of {case.replay.metric.name}; FLDD, nats, the directions "
            "that act, controls and pictures are of the logit difference"
        )
    if judgement.left_out:
        notes.append(
            f"{judgement.left_out} test pairs share their tokens up to {case.site.label}, or a "
            "group, with pairs to fit on, so that what is there is known from these: left out"
        )
    if case.parts is not None:
        k = case.basis.shape[1]
        for name, part in (("row", case.parts.unit_row), ("null", case.parts.unit_null)):
            if part.shape[1] < k:
                notes.append(f"{k - part.shape[1]} of {k} directions have no {name} part: dropped")
    if case.readers:
        total = sum(abs(r.attribution) for r in case.readers) or 1.0
        mlps = sum(abs(r.attribution) for r in case.readers if not r.reader.attention)
        names = [r.name for r in case.readers if r.reader.attention]
        notes.append(
            "the row/null split stands for the strongest attention readers "
            f"{', '.join(names[:READERS_IN_PROXY])}; {mlps / total:.0%} of the attribution goes to "
            "MLPs, which read every direction"
        )
    if case.subspace.fit.get("orthonormalised"):
        notes.append("the columns that were given were not orthonormal: their span is audited")
    if case.test.two is None:
        known = "the pairs carry no z"
        if case.setting.classes:
            known = f"z has {len(case.setting.classes)} values in the pairs"
        notes.append(f"{known}: the pictures show bases (0) and sources (1) instead")
    return notes
