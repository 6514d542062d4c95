"""`survey`, and its study `reproduce prevalence`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..core.errors import LensError, TaskError
from ..core.progress import showing_progress
from .jobs import prevalence_job
from .options import (
    Device,
    Dtype,
    Memory,
    Model,
    Shifted,
    bytes_of,
    check_streams,
    loaded,
    prepared,
    writable,
)
from .out import Overwrite, refuse_other_map, refuse_other_survey
from .printing import paragraph, say

TaskName = Annotated[
    str,
    typer.Option(
        "--task", help="`ioi`, `facts` (those that the model knows), or a JSON Lines file of pairs."
    ),
]
Labels = Annotated[
    list[str] | None, typer.Option("--label", help="Token label; may be given several times.")
]
Pairs = Annotated[int, typer.Option(min=2, help="Pairs to build on, and pairs to patch.")]
Steps = Annotated[int, typer.Option(min=1, help="Most passes of each DAS fit over its pairs.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes for DAS at every MLP.")]


def survey(
    model: Model = "smollm2",
    task: TaskName = "ioi",
    label: Labels = None,
    das: Annotated[
        bool, typer.Option("--das", help="Also fit and audit DAS at every MLP; takes long.")
    ] = False,
    instant: Annotated[
        bool,
        typer.Option(
            "--instant",
            help="Predict instead, in seconds and at every stream: what the whole component does, "
            "what DAS would find, and how much of that is illusion.",
        ),
    ] = False,
    stream: Annotated[
        list[str] | None,
        typer.Option(help="With --instant: a stream, by default all; may be given several times."),
    ] = None,
    refine: Annotated[
        int,
        typer.Option(
            min=0,
            help="With --instant: at so many of the strongest sites, average the gradient along "
            "the path of the patch.",
        ),
    ] = 0,
    dim: Annotated[
        int, typer.Option(min=1, help="With --instant: dimensions of what DAS would find.")
    ] = 1,
    pairs: Pairs = 64,
    steps: Steps = 16,
    workers: Workers = None,
    device: Device = None,
    dtype: Dtype = "float32",
    memory: Memory = None,
    shifted: Shifted = False,
    out: Annotated[Path, typer.Option(help="Folder for the page and tables.")] = Path(
        "runs/survey"
    ),
    overwrite: Overwrite = False,
) -> None:
    """Draw the illusion map: the layers at which DAS must not be trusted on this model and task.

    Writes OUT/report.html, survey.json, survey.md and illusions.svg; with --das the sweep is kept
    in OUT/das, and the same command goes on where it was stopped. With --instant it writes
    OUT/instant.json and OUT/instant.html.
    """
    if instant:
        if das:
            raise LensError("--instant predicts what --das fits: give one of them")
        _instant(model, task, label, stream, refine, dim, pairs, device, dtype, memory, shifted,
                 out, overwrite)  # fmt: skip
        return
    if stream or refine or dim != 1:
        raise LensError("--stream, --refine and --dim go with --instant")
    parts = ("weights", "das") if das else ("weights",)
    _run(model, task, label, parts, pairs, steps, 10, workers, None, device, dtype, memory,
         shifted, out, overwrite)  # fmt: skip


def _instant(
    model, task, label, stream, refine, dim, pairs, device, dtype, memory, shifted, out, overwrite
) -> None:
    from ..measure.maps import instant_map
    from ..report.instant_page import promise, reading, write_instant_page

    budget = bytes_of(memory)
    check_streams(stream)
    writable(out)
    with showing_progress():
        lens, chosen, shifted = _prepared(model, task, shifted, device, dtype)
        if not overwrite:
            refuse_other_map(out, lens, chosen.test[:pairs], "instant.json")
        found = instant_map(
            lens, chosen.test, stream, label, dim=dim, refine=refine, shifted=shifted,
            memory=budget, limit=pairs,
        )  # fmt: skip
    page = write_instant_page(found, out)
    for score in found.strongest(8):
        paragraph(f"{score.site}: {promise(score, found.measure).replace('<br>', ', ')}")
    for name in found.labels:
        paragraph(f"{name}: {reading(found, name)}")
    say(f"report: {page}")


def _prepared(model: str, task: str, shifted: bool, device: str | None, dtype: str):
    """The model, the task, and whether its labels may stand in different columns."""
    from ..sweep.plan import FACTS, known_fact_task

    if task != FACTS:
        return *prepared(model, task, None, None, 0, device, dtype), shifted
    lens = loaded(model, device, dtype)
    return lens, known_fact_task(lens), True


def reproduce_prevalence(
    model: Model = "smollm2",
    task: TaskName = "ioi",
    label: Labels = None,
    das: Annotated[
        bool, typer.Option(help="DAS at every MLP, most of the time that this takes.")
    ] = True,
    fit: Annotated[
        list[str] | None,
        typer.Option(
            help="What is fitted at every MLP instead of DAS, such as mean-difference; given "
            "several times, each of them, side by side."
        ),
    ] = None,
    pairs: Pairs = 64,
    steps: Steps = 16,
    seeds: Annotated[int, typer.Option(min=2, help="Random MLPs of each kind.")] = 10,
    workers: Workers = None,
    corpus: Annotated[
        Path | None, typer.Option(help="Text file for the distortion; by default embedded text.")
    ] = None,
    device: Device = None,
    dtype: Dtype = "float32",
    memory: Memory = None,
    shifted: Shifted = False,
    out: Annotated[Path, typer.Option(help="Folder for the page and tables.")] = Path(
        "runs/prevalence"
    ),
    overwrite: Overwrite = False,
) -> None:
    """How common the illusion is: built illusions, weights, distortion, random MLPs, DAS.

    Writes OUT/report.html, survey.json, survey.md, illusions.svg and the sweep OUT/das.
    """
    parts = ("promises", "weights", "distortion", "random", *(("das",) if das else ()))
    _run(model, task, label, parts, pairs, steps, seeds, workers, corpus, device, dtype, memory,
         shifted, out, overwrite, fit or ("das",))  # fmt: skip


def _run(
    model, task, label, parts, pairs, steps, seeds, workers, corpus, device, dtype, memory,
    shifted, out, overwrite, fits=("das",),
) -> None:  # fmt: skip
    from ..fit import named
    from ..sweep.plan import FACTS
    from ..tasks.facts import SUBJECT

    for name in fits:
        named(name)
    budget = bytes_of(memory)
    writable(out)
    if task == FACTS and "das" in parts:
        raise TaskError(
            "facts have no direction in common for DAS to find: leave out --das, or use --no-das"
        )
    with showing_progress():
        lens, chosen, shifted = _prepared(model, task, shifted, device, dtype)
        if not overwrite:
            refuse_other_survey(out, lens, chosen)
        labels = label or [n for n in ("S2", SUBJECT, "END") if n in chosen.test.labels]
        unknown = [name for name in labels if name not in chosen.test.labels]
        if unknown:
            known = ", ".join(chosen.test.labels)
            raise TaskError(f"task {chosen.name} has no label '{unknown[0]}', only {known}")
        job = prevalence_job(
            "prevalence", lens, chosen, labels, parts, corpus, budget, out, model=model,
            task_name=task, pairs=pairs, steps=steps, seeds=seeds, shifted=shifted,
            workers=workers, fits=tuple(dict.fromkeys(fits)),
        )  # fmt: skip
        page, told = job.run()
    say(told[0])
    for line in told[1:]:
        paragraph(line)
    say(f"report: {page}")
