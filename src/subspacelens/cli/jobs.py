"""The studies as jobs: what each depends on, where its record is, and how it is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .options import command_line
from .out import read_json

if TYPE_CHECKING:
    from ..core.kept import Kept
    from ..model.lens import LensModel
    from ..studies.made import Made

EXPECTED = {
    "toy": 1.0, "ioi": 1145.0, "facts": 578.0, "editing": 538.0, "prevalence": 1947.0,
    "prevalence-facts": 113.0,
}  # fmt: skip
"""Seconds that a whole study of SmolLM2 took on two cores of an EPYC. What a folder's own record of
it took is a better guess."""


@dataclass(frozen=True)
class Job:
    """One study. `asked`: the hash of all that its numbers depend on; `file`: its record in
    `folder`, written last; `make` runs it, writes all files, and returns the page and lines to
    print."""

    name: str
    folder: Path
    file: str
    asked: str
    make: Callable[[Made, Kept], tuple[Path, list[str]]]

    @property
    def record(self) -> dict[str, Any]:
        """The record that the folder holds, of whatever; empty where it holds none."""
        held = read_json(self.folder / self.file)
        return held if isinstance(held, dict) else {}

    @property
    def made(self) -> dict[str, Any] | None:
        """When, where and by which code the record was made, if it is of this very study."""
        made = self.record.get("made") or {}
        return made if made.get("asked_sha256") == self.asked else None

    @property
    def seconds(self) -> float | None:
        """What the record in the folder took, of this study or an earlier version of it."""
        told = self.record.get("seconds")
        return sum(told.values()) if isinstance(told, dict) else told

    def run(self) -> tuple[Path, list[str]]:
        """Makes it, from its parts where an earlier run was stopped."""
        from ..core.kept import Kept
        from ..studies.made import Made

        kept = Kept(self.folder / "parts", self.asked)
        done = self.make(Made.now(self.asked), kept)
        kept.clear()
        return done


def toy_job(out: Path) -> Job:
    from ..report.toy_page import markdown, write_toy
    from ..studies.made import asked_sha256
    from ..studies.toy import run_toy

    def make(made: Made, kept: Kept) -> tuple[Path, list[str]]:
        result = run_toy()
        return write_toy(result, out, made), [markdown(result)]

    return Job("toy", out, "toy.json", asked_sha256("toy"), make)


def ioi_job(
    lens: LensModel, preset: str | None, quick: bool, seed: int, memory: int | None, out: Path
) -> Job:
    from ..report.ioi_page import markdown, write_ioi
    from ..studies.ioi import reproduce_ioi
    from ..studies.made import asked_sha256

    def make(made: Made, kept: Kept) -> tuple[Path, list[str]]:
        study = reproduce_ioi(
            lens, preset=preset, quick=quick, seed=seed, memory=memory, command=command_line()
        )
        study = replace(study, record=study.record.model_copy(update={"made": made}))
        return write_ioi(study, out), [markdown(study.record)]

    asked = asked_sha256(
        "ioi", model=lens.identity.key, name=lens.id, preset=preset, quick=quick, seed=seed
    )
    return Job("ioi", out, "ioi.json", asked, make)


def facts_job(
    lens: LensModel, facts, text: Path | None, *, step: int, seed: int, paper: bool, quick: bool,
    out: Path,
) -> Job:  # fmt: skip
    from ..report.facts_page import markdown, write_facts
    from ..studies.facts import facts_plan, run_facts

    plan = facts_plan(len(lens.map.blocks), step=step, seed=seed, paper=paper, quick=quick)

    def make(made: Made, kept: Kept) -> tuple[Path, list[str]]:
        corpus = corpus_of(lens, text, quick)
        record = run_facts(lens, facts, corpus, plan, command_line(), kept)
        record = record.model_copy(update={"made": made})
        return write_facts(record, out), [markdown(record)]

    return Job("facts", out, "facts.json", _of_facts("facts", lens, facts, text, quick, plan), make)


def editing_job(
    lens: LensModel, facts, text: Path | None, *, step: int, seed: int, quick: bool, out: Path
) -> Job:
    from ..report.editing_page import markdown, write_editing
    from ..studies.editing import editing_plan, run_editing

    plan = editing_plan(len(lens.map.blocks), step=step, seed=seed, quick=quick)

    def make(made: Made, kept: Kept) -> tuple[Path, list[str]]:
        corpus = corpus_of(lens, text, quick)
        record = run_editing(lens, facts, corpus, plan, command_line(), kept)
        record = record.model_copy(update={"made": made})
        return write_editing(record, out), [markdown(record)]

    asked = _of_facts("editing", lens, facts, text, quick, plan)
    return Job("editing", out, "editing.json", asked, make)


def prevalence_job(
    name: str, lens: LensModel, task, labels, parts, corpus: Path | None, memory: int | None,
    out: Path, *, model: str, task_name: str, pairs: int, steps: int, seeds: int, shifted: bool,
    workers: int | None, fits: Sequence[str] = ("das",),
) -> Job:  # fmt: skip
    from ..engine.text import read_corpus
    from ..report.survey_page import markdown, reading, write_survey
    from ..studies.made import asked_sha256
    from ..studies.prevalence import prevalence
    from ..sweep.grid import TaskSpec
    from ..sweep.plan import task_hashes

    def make(made: Made, kept: Kept) -> tuple[Path, list[str]]:
        text = read_corpus(corpus, lens.tokenizer) if corpus else None
        result = prevalence(
            lens, task, labels, parts=parts, model=model, task_spec=TaskSpec(name=task_name),
            directory=out, corpus=text, pairs=pairs, steps=steps, fits=fits, seeds=seeds,
            workers=workers, shifted=shifted, memory=memory, kept=kept,
        ).model_copy(update={"made": made})  # fmt: skip
        page, it = write_survey(result, out), result.illusions
        return page, [markdown(it), *(f"{label}: {reading(it, label)}" for label in it.labels)]

    asked = asked_sha256(
        "prevalence", model=lens.identity.key, task=task_hashes(task), labels=list(labels),
        parts=list(parts), corpus=_hash(corpus), pairs=pairs, steps=steps, seeds=seeds,
        fits=list(fits), shifted=shifted,
    )  # fmt: skip
    return Job(name, out, "survey.json", asked, make)


def corpus_of(lens: LensModel, text: Path | None, quick: bool):
    """The user's text, or the embedded one."""
    from ..engine.text import embedded_corpus, read_corpus

    if text is not None:
        return read_corpus(text, lens.tokenizer)
    return embedded_corpus(lens, tokens=4_000 if quick else 20_000)


def _of_facts(name: str, lens: LensModel, facts, text: Path | None, quick: bool, plan) -> str:
    from ..studies.made import asked_sha256

    return asked_sha256(
        name, model=lens.identity.key, facts=[asdict(fact) for fact in facts], text=_hash(text),
        quick=quick, plan=asdict(plan),
    )  # fmt: skip


def _hash(path: Path | None) -> str | None:
    """None for no file, and for one that cannot be read: whoever reads it says why."""
    from ..core.files import file_sha256

    try:
        return None if path is None else file_sha256(path)
    except OSError:
        return None
