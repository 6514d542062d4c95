"""`audit`, `fit` and `report`."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from ..core.errors import LensError
from ..core.format import percent, plain, with_interval
from ..core.progress import showing_progress
from ..core.site import Site
from .addition import audit_additions, checked_operation
from .check import say_task
from .options import (
    Answers,
    BudgetName,
    Captures,
    Controls,
    Device,
    Dim,
    Dtype,
    FitName,
    FitOptions,
    Memory,
    MetricName,
    Model,
    OnlyCorrect,
    Pairs,
    Seed,
    Shifted,
    Sites,
    Skip,
    TaskName,
    TestPairs,
    Tests,
    bytes_of,
    check_sites,
    chosen_fit,
    command_line,
    dim_of,
    fit_settings,
    given_subspace,
    located_file,
    prepared,
    sites_of,
    writable,
)
from .out import Overwrite, refuse_other_audits, refuse_other_page
from .printing import PlainTable, is_wide, paragraph, say, say_grounds
from .rows import one_site, rows_of, screen_rows
from .sites import at_each_site, capture_sites


def audit(
    model: Model = "smollm2",
    task: TaskName = "ioi",
    test_pairs: TestPairs = None,
    site: Sites = None,
    fit: FitName = "das",
    fit_option: FitOptions = None,
    dim: Dim = "1",
    subspace: Annotated[
        Path | None,
        typer.Option(
            help="Audit this subspace instead of fitting one: a file of ours, a file, folder or "
            "hub id of another tool (see `subspacelens inspect`; --site @END names a token at its "
            "own place), or, with --site, a vector or matrix from .npy, .npz, .pt or .safetensors."
        ),
    ] = None,
    key: Annotated[str | None, typer.Option(help="Which array of that file.")] = None,
    row: Annotated[
        str | None,
        typer.Option(
            help="Which row of that array, such as an autoencoder's latent; or several, 0-63 or "
            "0,3,7: each is judged fast, on one page, corrected for how many they are."
        ),
    ] = None,
    latent: Annotated[
        list[int] | None,
        typer.Option(help="A latent of a dictionary; several given are one subspace."),
    ] = None,
    centred: Annotated[
        bool,
        typer.Option(
            "--centred",
            help="It was found in a residual stream without its mean (TransformerLens in "
            "compatibility mode): take its mean out too.",
        ),
    ] = False,
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
    skip: Skip = False,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = "float32",
    memory: Memory = None,
    shifted: Shifted = False,
    captures: Captures = None,
    answers: Answers = "whole",
    budget: BudgetName = "standard",
    tests: Tests = None,
    controls: Controls = None,
    metric: MetricName = "logit_diff",
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("runs/audit"),
    overwrite: Overwrite = False,
) -> None:
    """Fit a subspace at each site, or take one, and say: faithful, illusory, or what else.

    Writes OUT/<site>/subspace.safetensors, OUT/<site>/audit.json and OUT/report.html. A site that
    fails leaves OUT/<site>/failure.json, the others go on, and the exit code is 2. With
    several rows of a --subspace there is OUT/<site>/screen.json and screen.html instead; with
    --operation add it judges a steering vector, and writes OUT/<site>/addition.json and
    OUT/addition.html. Results of something else in OUT are not replaced, unless with --overwrite.
    Without options it runs the main job: indirect object identification in SmolLM2-135M-Instruct,
    at a site where DAS finds an illusion and at one where it finds the feature.
    """
    from ..audit import audit as run_audit
    from ..audit.judging import chosen_tests
    from ..engine.metrics import metric_of
    from ..engine.routing import routed
    from ..fit.foreign import check_bos
    from ..model.lens import unchanged
    from ..report import write_report

    checked_operation(operation, alpha, subspace)
    rows = [] if row is None else rows_of(row)
    if operation == "add" and subspace is not None:
        if len(rows) > 1:
            raise LensError("--row: with --operation add one vector is added, not several")
        return audit_additions(
            model=model, task=task, test_pairs=test_pairs, site=site, vector=subspace,
            alpha=1.0 if alpha is None else alpha, key=key, row=rows[0] if rows else None,
            pairs=pairs, only_correct=only_correct, skip=skip, answers=answers, seed=seed,
            device=device, dtype=dtype, memory=memory, shifted=shifted, captures=captures,
            budget=budget, tests=tests, controls=controls, out=out,
        )  # fmt: skip
    space, k = bytes_of(memory), dim_of(dim)
    find = chosen_fit(fit, fit_option, k, seed)
    named = None if tests is None else [name.strip() for name in tests.split(",")]
    chosen_tests(budget, named)
    of_rows = None
    if len(rows) > 1:
        if subspace is None:
            raise LensError("--row: of which array? Name its file with --subspace")
        if tests or controls or budget == "full":
            raise LensError(
                "--row: several rows are judged fast; --tests, --controls and --budget full go "
                "with one"
            )
        of_rows = subspace, one_site(subspace, site)
    metric_of(metric)
    check_sites(site)
    if subspace is not None:
        subspace = located_file(subspace)
    writable(out)
    if not overwrite and not of_rows:
        refuse_other_page(out, "report.html", "*/audit.json", "*/failure.json")
    with showing_progress(), ExitStack() as whole_command:
        lens, chosen = prepared(
            model, task, test_pairs, pairs, seed, device, dtype,
            only=only_correct, skip=skip, answers=answers,
        )  # fmt: skip
        whole_command.enter_context(unchanged(lens))
        if of_rows:
            path, where = of_rows
            chosen = routed(lens, chosen, [where], shifted=shifted) if skip else chosen
            activations, _ = capture_sites(lens, chosen, [where], 1, shifted, captures, space)
            screen_rows(lens, activations, where, path, key, rows, seed, out, overwrite)
            return
        given = None
        if subspace:
            number = rows[0] if rows else None
            given = given_subspace(lens, subspace, site, key, number, latent, centred)
            check_bos(given, lens, chosen.test)
        sites = [given.site] if given else sites_of(site, model, task, lens)
        chosen = routed(lens, chosen, sites, shifted=shifted) if skip else chosen
        if not overwrite:
            settings = (
                {**given.fit, "dim": given.dim, "pairs": given.data_sha256}
                if given
                else fit_settings(fit, fit_option, k, seed, chosen)
            )
            refuse_other_audits(out, sites, lens, chosen, settings)
        activations, refused = capture_sites(lens, chosen, sites, k or 1, shifted, captures, space)
        say_task(lens, activations)

        def audited(where: Site):
            if where in refused:
                raise refused[where]
            direction = given or find(activations.train, where)
            result = run_audit(
                lens, activations, direction, budget=budget, tests=named, controls=controls,
                metric=metric, seed=seed, command=command_line(),
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
    dim: Dim = "1",
    pairs: Pairs = None,
    only_correct: OnlyCorrect = False,
    skip: Skip = False,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = "float32",
    memory: Memory = None,
    shifted: Shifted = False,
    captures: Captures = None,
    answers: Answers = "whole",
    out: Annotated[Path, typer.Option(help="Folder for the subspaces.")] = Path("runs/fit"),
    overwrite: Overwrite = False,
) -> None:
    """Find a subspace at each site and save it, without judging it.

    Writes OUT/<site>/subspace.safetensors; a site that fails leaves OUT/<site>/failure.json, the
    others go on, and the exit code is 2.
    """
    from ..audit.run import SUBSPACE_FILE
    from ..engine.routing import routed

    k, space = dim_of(dim), bytes_of(memory)
    find = chosen_fit(fit, fit_option, k, seed)
    check_sites(site)
    writable(out)
    with showing_progress():
        lens, chosen = prepared(
            model, task, None, pairs, seed, device, dtype,
            only=only_correct, skip=skip, answers=answers,
        )  # fmt: skip
        sites = sites_of(site, model, task, lens)
        chosen = routed(lens, chosen, sites, shifted=shifted) if skip else chosen
        if not overwrite:
            settings = fit_settings(fit, fit_option, k, seed, chosen)
            refuse_other_audits(out, sites, lens, chosen, settings, judged=False)
        activations, refused = capture_sites(lens, chosen, sites, k or 1, shifted, captures, space)

        def saved(where: Site) -> None:
            if where in refused:
                raise refused[where]
            path = out / str(where) / SUBSPACE_FILE
            find(activations.train, where).save(path)
            say(path)

        _, whole = at_each_site(sites, out, saved)
    if not whole:
        raise typer.Exit(2)


def report(
    directory: Annotated[
        Path, typer.Argument(help="A folder that a command wrote, or a folder of such folders.")
    ],
) -> None:
    """Draw the pages of DIRECTORY again from the saved results.

    Where `audit` wrote it that is DIRECTORY/report.html, where `find` did DIRECTORY/find.html too,
    and of anything else, such as a folder of several runs, DIRECTORY/index.html: every result below
    it in one table, with its verdict and a link to its page.
    """
    from ..report import write_pages

    for page in write_pages(directory):
        say(page)


def _print_record(record) -> None:
    from ..report.words import AXIS_WORDS

    metrics = ("nats", "fldd", "iia", "iia_pair")[: 4 if is_wide() else 3]
    table = PlainTable("patch", *metrics, title=f"{record.site}: {record.verdict.label.upper()}")

    def row(name: str, effect, style: str | None = None) -> None:
        cells = (with_interval(getattr(effect, metric), plain) for metric in metrics)
        table.add_row(name, *cells, style=style)

    for name, effect in record.effects.items():
        if effect.nats.value is not None:
            row(name, effect)
    row("no patch", record.no_op, style="dim")
    table.show()
    for axis in record.axes:
        last = axis.number + axis.dimensions - 1
        name = f"axis {axis.number}" if axis.dimensions == 1 else f"axes {axis.number} to {last}"
        share = with_interval(axis.share, percent)
        paragraph(f"  {name}: {share} of the effect, {AXIS_WORDS.get(axis.label, axis.label)}")
    say_grounds(record)
