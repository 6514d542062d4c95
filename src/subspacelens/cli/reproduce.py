"""`reproduce`: the paper, study by study, or all of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..core.errors import LensError
from ..core.progress import showing_progress
from .facts import FactsFile, facts_of
from .jobs import EXPECTED, Job, editing_job, facts_job, ioi_job, prevalence_job, toy_job
from .options import Device, Dtype, Memory, Model, Seed, bytes_of, loaded, writable
from .printing import PlainTable, say

if TYPE_CHECKING:
    from ..model.lens import LensModel

Text = Annotated[
    Path | None,
    typer.Option(help="Text for the second moments; else CPython's and the model's own."),
]
Out = Annotated[Path, typer.Option(help="Folder for the page and tables.")]
Quick = Annotated[bool, typer.Option("--quick", help="Few layers, facts and steps, to try it out.")]
Step = Annotated[int, typer.Option(help="Every so many layers.")]

commands = typer.Typer(help="Reproduce the paper, study by study.", no_args_is_help=True)


@commands.command("toy")
def reproduce_toy(
    out: Out = Path("runs/toy"),
) -> None:
    """The distilled example: an illusion in three hidden units.

    Writes OUT/toy.json, OUT/toy.md and OUT/report.html.
    """
    writable(out)
    _tell(*toy_job(out).run())


@commands.command("facts")
def reproduce_facts(
    model: Model = "smollm2",
    facts: FactsFile = None,
    text: Text = None,
    step: Step = 3,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = "float32",
    paper: Annotated[
        bool, typer.Option("--paper", help="The paper's fit: 600 steps, 8 runs a pair. Hours.")
    ] = False,
    quick: Quick = False,
    out: Out = Path("runs/facts"),
) -> None:
    """Factual recall: a direction that flips facts where its whole component does nothing.

    Writes OUT/facts.json, OUT/facts.md and OUT/report.html. Stopped, the same command goes on.
    """
    from ..model.lens import unchanged

    writable(out)
    with showing_progress():
        asked = facts_of(facts)
        lens = loaded(model, device, dtype)
        job = facts_job(lens, asked, text, step=step, seed=seed, paper=paper, quick=quick, out=out)
        with unchanged(lens):
            done = job.run()
    _tell(*done)


@commands.command("editing")
def reproduce_editing(
    model: Model = "smollm2",
    facts: FactsFile = None,
    text: Text = None,
    step: Step = 3,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = "float32",
    quick: Quick = False,
    out: Out = Path("runs/editing"),
) -> None:
    """Rank-1 edits, the patches that they amount to, and what causal tracing says of the layer.

    Writes OUT/editing.json, OUT/editing.md and OUT/report.html. Stopped, the same command goes on.
    """
    from ..model.lens import unchanged

    writable(out)
    with showing_progress():
        asked = facts_of(facts)
        lens = loaded(model, device, dtype)
        job = editing_job(lens, asked, text, step=step, seed=seed, quick=quick, out=out)
        with unchanged(lens):
            done = job.run()
    _tell(*done)


@commands.command("ioi")
def reproduce_ioi(
    model: Model = "smollm2",
    quick: Annotated[
        bool, typer.Option("--quick", help="A first look: few pairs, wide intervals.")
    ] = False,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Take the sites and heads of a known circuit instead of finding it: `gpt2`, the "
            "paper's, which is the default for --model gpt2."
        ),
    ] = None,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = "float32",
    memory: Memory = None,
    out: Out = Path("runs/ioi"),
) -> None:
    """Indirect object identification: the circuit, illusions in its MLPs, the feature in its
    residual stream, and controls.

    Writes OUT/ioi.json, OUT/ioi.md, OUT/map.json, OUT/report.html and OUT/audits.
    """
    from ..model.lens import unchanged

    budget = bytes_of(memory)
    writable(out)
    with showing_progress():
        lens = loaded(model, device, dtype)
        with unchanged(lens):
            done = ioi_job(lens, preset, quick, seed, budget, out).run()
    _tell(*done)


@commands.command("all")
def reproduce_all(
    study: Annotated[
        list[str] | None,
        typer.Option(help=f"One of {', '.join(EXPECTED)}; may be given several times. Else all."),
    ] = None,
    model: Model = "smollm2",
    facts: FactsFile = None,
    text: Text = None,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = "float32",
    memory: Memory = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes for DAS at every MLP.")] = (
        None
    ),
    quick: Quick = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only say what there is to do, and how long it takes.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for a folder a study.")] = Path("runs/studies"),
) -> None:
    """All studies of the paper, a folder each. What OUT holds already is kept if it was made of the
    same model, data and settings by the same code; a study that was stopped goes on.

    Writes what each command writes into OUT/toy, OUT/ioi, OUT/facts, OUT/editing, OUT/prevalence
    and, for the illusion map of facts, OUT/prevalence-facts.
    """
    from ..model.lens import unchanged

    for name in study or ():
        if name not in EXPECTED:
            raise LensError(f"no study '{name}': one of {', '.join(EXPECTED)}")
    budget = bytes_of(memory)
    writable(out)
    with showing_progress():
        asked = facts_of(facts)
        lens = loaded(model, device, dtype)
        jobs = [
            _job(name, lens, asked, text, model, seed, budget, workers, quick, out / name)
            for name in dict.fromkeys(study or EXPECTED)
        ]
        _say_plan(jobs, quick)
        for job in () if plan else jobs:
            if job.made is None:
                with unchanged(lens):
                    page, _ = job.run()
                say(f"{job.name}: {page}")


def _job(
    name: str, lens: LensModel, asked, text: Path | None, model: str, seed: int,
    memory: int | None, workers: int | None, quick: bool, out: Path,
) -> Job:  # fmt: skip
    """A study as its section in the docs has it, or a quick one."""
    from ..sweep.plan import FACTS, known_fact_task
    from ..tasks.facts import SUBJECT
    from ..tasks.named import named_task

    if name == "toy":
        return toy_job(out)
    if name == "ioi":
        return ioi_job(lens, None, quick, seed, memory, out)
    if name == "facts":
        return facts_job(lens, asked, text, step=3, seed=seed, paper=False, quick=quick, out=out)
    if name == "editing":
        return editing_job(lens, asked, text, step=3, seed=seed, quick=quick, out=out)
    pairs, steps, seeds = (8, 4, 2) if quick else (64, 40, 10)
    if name == "prevalence":
        task, labels = named_task(lens.tokenizer, "ioi", seed=seed), ("S2", "END")
        parts = ("promises", "weights", "distortion", "random", *(() if quick else ("das",)))
    else:
        task, labels, parts = known_fact_task(lens, seed=seed), (SUBJECT, "END"), ("promises",)
    return prevalence_job(
        name, lens, task, labels, parts, text, memory, out, model=model,
        task_name=FACTS if task.name == FACTS else "ioi", pairs=pairs, steps=steps, seeds=seeds,
        shifted=task.name == FACTS, workers=workers,
    )  # fmt: skip


def _say_plan(jobs: list[Job], quick: bool) -> None:
    """What is there, what is to do, and how long that took before, as the folder's own records have
    it, or on the machine of `EXPECTED`."""
    from ..core.format import duration

    table = PlainTable("study", "is there", "takes about")
    left = 0.0
    for job in jobs:
        seconds = job.seconds or (None if quick else EXPECTED[job.name])
        made = job.made
        left += 0 if made else seconds or 0
        there = f"yes, of {made['began']}" if made else "no"
        table.add_row(job.name, there, duration(seconds) if seconds else "-")
    table.show()
    if all(job.made for job in jobs):
        say("nothing to do")
    elif left:
        say(f"to do: about {duration(left)}")


def _tell(page: Path, lines: list[str]) -> None:
    for line in lines:
        say(line)
    say(f"report: {page}")
