"""`audit`, `fit` and `report`."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from ..core.format import percent, plain, with_interval
from ..core.progress import showing_progress
from ..core.site import Site
from .addition import audit_additions, checked_operation
from .options import (
    BudgetName,
    Captures,
    Controls,
    Device,
    Dim,
    Dtype,
    FitName,
    FitOptions,
    Memory,
    Model,
    OnlyCorrect,
    Pairs,
    Seed,
    Shifted,
    Sites,
    TaskName,
    TestPairs,
    Tests,
    bytes_of,
    chosen_fit,
    command_line,
    given_subspace,
    prepared,
    sites_of,
    writable,
)
from .printing import PlainTable, paragraph, say
from .sites import at_each_site, capture_sites


def audit(
    model: Model = "smollm2",
    task: TaskName = "ioi",
    test_pairs: TestPairs = None,
    site: Sites = None,
    fit: FitName = "das",
    fit_option: FitOptions = None,
    dim: Dim = 1,
    subspace: Annotated[
        Path | None,
        typer.Option(
            help="Audit this subspace instead of fitting one: a file of ours, or, with --site, a "
            "vector or matrix from .npy, .npz, .pt or .safetensors."
        ),
    ] = None,
    key: Annotated[str | None, typer.Option(help="Which array of that file.")] = None,
    row: Annotated[
        int | None, typer.Option(help="Which row of that array, such as an autoencoder's latent.")
    ] = None,
    operation: Annotated[
        str,
        typer.Option(
            help="What is done with it: `interchange` takes the source's value in the subspace, "
            "`add` adds --alpha times the vector in --subspace, as long as it is there."
        ),
    ] = "interchange",
    alpha: Annotated[
        float | None, typer.Option(help="How much of the vector is added. By default 1.")
    ] = None,
    pairs: Pairs = None,
    only_correct: OnlyCorrect = False,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = "float32",
    memory: Memory = None,
    shifted: Shifted = False,
    captures: Captures = None,
    budget: BudgetName = "standard",
    tests: Tests = None,
    controls: Controls = None,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("runs/audit"),
) -> None:
    """Fit a subspace at each site, or take one, and say: faithful, illusory, or what else.

    Writes OUT/<site>/subspace.safetensors, OUT/<site>/audit.json and OUT/report.html. A site that
    fails leaves OUT/<site>/failure.json, the others go on, and the exit code is 2. Without options
    it runs the main job: indirect object identification in SmolLM2-135M-Instruct, at a site where
    DAS finds an illusion and at one where it finds the feature. With --operation add it judges a
    steering vector, and writes OUT/<site>/addition.json and OUT/addition.html.
    """
    from ..audit import audit as run_audit
    from ..audit.judging import chosen_tests
    from ..model.lens import unchanged
    from ..report import write_report

    checked_operation(operation, alpha, subspace)
    if operation == "add" and subspace is not None:
        return audit_additions(
            model=model, task=task, test_pairs=test_pairs, site=site, vector=subspace,
            alpha=1.0 if alpha is None else alpha, key=key, row=row, pairs=pairs,
            only_correct=only_correct, seed=seed, device=device, dtype=dtype, memory=memory,
            shifted=shifted, captures=captures, budget=budget, tests=tests, controls=controls,
            out=out,
        )  # fmt: skip
    space = bytes_of(memory)
    find = chosen_fit(fit, fit_option, dim, seed)
    named = None if tests is None else [name.strip() for name in tests.split(",")]
    chosen_tests(budget, named)
    writable(out)
    with showing_progress(), ExitStack() as whole_command:
        lens, chosen = prepared(
            model, task, test_pairs, pairs, seed, device, dtype, only=only_correct
        )
        whole_command.enter_context(unchanged(lens))
        given = given_subspace(lens, subspace, site, key, row) if subspace else None
        sites = [given.site] if given else sites_of(site, model, task)
        activations, refused = capture_sites(lens, chosen, sites, dim, shifted, captures, space)

        def audited(where: Site):
            if where in refused:
                raise refused[where]
            direction = given or find(lens, activations.train, where)
            result = run_audit(
                lens, activations, direction, budget=budget, tests=named, controls=controls,
                seed=seed, command=command_line(),
            )  # fmt: skip
            result.save(out)
            return result.record

        records, whole = at_each_site(sites, out, audited)
    if records:
        page = write_report(out)
        for record in records:
            _print_record(record)
        say(f"report: {page}")
    if not whole:
        raise typer.Exit(2)


def fit_command(
    model: Model = "smollm2",
    task: TaskName = "ioi",
    site: Sites = None,
    fit: FitName = "das",
    fit_option: FitOptions = None,
    dim: Dim = 1,
    pairs: Pairs = None,
    only_correct: OnlyCorrect = False,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = "float32",
    memory: Memory = None,
    shifted: Shifted = False,
    captures: Captures = None,
    out: Annotated[Path, typer.Option(help="Folder for the subspaces.")] = Path("runs/fit"),
) -> None:
    """Find a subspace at each site and save it, without judging it.

    Writes OUT/<site>/subspace.safetensors; a site that fails leaves OUT/<site>/failure.json, the
    others go on, and the exit code is 2.
    """
    from ..audit.run import SUBSPACE_FILE

    find, space = chosen_fit(fit, fit_option, dim, seed), bytes_of(memory)
    writable(out)
    with showing_progress():
        lens, chosen = prepared(model, task, None, pairs, seed, device, dtype, only=only_correct)
        sites = sites_of(site, model, task)
        activations, refused = capture_sites(lens, chosen, sites, dim, shifted, captures, space)

        def saved(where: Site) -> None:
            if where in refused:
                raise refused[where]
            path = out / str(where) / SUBSPACE_FILE
            find(lens, activations.train, where).save(path)
            say(path)

        _, whole = at_each_site(sites, out, saved)
    if not whole:
        raise typer.Exit(2)


def report(directory: Annotated[Path, typer.Argument(help="A folder that `audit` wrote.")]) -> None:
    """Draw DIRECTORY/report.html again from the saved results."""
    from ..report import write_report

    say(write_report(directory))


def _print_record(record) -> None:
    from ..audit.controls.words import in_words
    from ..report.words import AXIS_WORDS

    metrics = ("nats", "fldd", "iia", "iia_pair")
    table = PlainTable("patch", *metrics, title=f"{record.site}: {record.verdict.label.upper()}")

    def row(name: str, effect, style: str | None = None) -> None:
        table.add_row(name, *(with_interval(each, plain) for _, each in effect), style=style)

    for name, effect in record.effects.items():
        row(name, effect)
    row("no patch", record.no_op, style="dim")
    table.show()
    for axis in record.axes:
        last = axis.number + axis.dimensions - 1
        name = f"axis {axis.number}" if axis.dimensions == 1 else f"axes {axis.number} to {last}"
        share = with_interval(axis.share, percent)
        say(f"  {name}: {share} of the effect, {AXIS_WORDS.get(axis.label, axis.label)}")
    for reason in record.verdict.reasons:
        paragraph(f"  - {reason}")
    for text in in_words(record.controls, record.task.test_pairs) if record.controls else ():
        paragraph(f"  controls: {text}")
    for text in record.notes:
        paragraph(f"  note: {text}")
    say("")
