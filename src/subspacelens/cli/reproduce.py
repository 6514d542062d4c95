"""`reproduce`: the paper, study by study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..core.progress import showing_progress
from .facts import FactsFile, facts_of
from .options import Device, Dtype, Memory, Model, Seed, bytes_of, command_line, loaded, writable
from .printing import say

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
    from ..report.toy_page import markdown, write_toy
    from ..studies.toy import run_toy

    writable(out)
    result = run_toy()
    page = write_toy(result, out)
    say(markdown(result))
    say(f"report: {page}")


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

    Writes OUT/facts.json, OUT/facts.md and OUT/report.html.
    """
    from ..model.lens import unchanged
    from ..report.facts_page import markdown, write_facts
    from ..studies.facts import facts_plan, run_facts

    writable(out)
    with showing_progress():
        asked = facts_of(facts)
        lens = loaded(model, device, dtype)
        plan = facts_plan(len(lens.map.blocks), step=step, seed=seed, paper=paper, quick=quick)
        with unchanged(lens):
            corpus = corpus_of(lens, text, quick)
            record = run_facts(lens, asked, corpus, plan, command_line())
    page = write_facts(record, out)
    say(markdown(record))
    say(f"report: {page}")


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

    Writes OUT/editing.json, OUT/editing.md and OUT/report.html.
    """
    from ..model.lens import unchanged
    from ..report.editing_page import markdown, write_editing
    from ..studies.editing import editing_plan, run_editing

    writable(out)
    with showing_progress():
        asked = facts_of(facts)
        lens = loaded(model, device, dtype)
        plan = editing_plan(len(lens.map.blocks), step=step, seed=seed, quick=quick)
        with unchanged(lens):
            corpus = corpus_of(lens, text, quick)
            record = run_editing(lens, asked, corpus, plan, command_line())
    page = write_editing(record, out)
    say(markdown(record))
    say(f"report: {page}")


def corpus_of(lens, text: Path | None, quick: bool):
    """The user's text, or the embedded one."""
    from ..engine.text import embedded_corpus, read_corpus

    if text is not None:
        return read_corpus(text, lens.tokenizer)
    return embedded_corpus(lens, tokens=4_000 if quick else 20_000)


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
    from ..report.ioi_page import markdown, write_ioi
    from ..studies.ioi import reproduce_ioi as run_ioi

    budget = bytes_of(memory)
    writable(out)
    with showing_progress():
        lens = loaded(model, device, dtype)
        with unchanged(lens):
            study = run_ioi(
                lens, preset=preset, quick=quick, seed=seed, memory=budget, command=command_line()
            )
    page = write_ioi(study, out)
    say(markdown(study.record))
    say(f"report: {page}")
