"""`find`: from pairs to a subspace that one can rely on, or to why there is none."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..core.format import plain, with_interval
from ..core.progress import showing_progress
from .options import (
    AUTO,
    Answers,
    Device,
    Dtype,
    Memory,
    Model,
    OnlyCorrect,
    Pairs,
    Seed,
    Shifted,
    Skip,
    TaskName,
    TestPairs,
    bytes_of,
    check_streams,
    command_line,
    dim_of,
    prepared,
    writable,
)
from .out import Overwrite, read_json, refuse_other, refuse_other_page
from .printing import PlainTable, paragraph, say

if TYPE_CHECKING:
    from ..find.record import FindRecord, Place


def find_command(
    model: Model = "smollm2",
    task: TaskName = "ioi",
    test_pairs: TestPairs = None,
    budget: Annotated[
        str,
        typer.Option(
            help="`fast`: few sites, audited fast; `standard`: more sites, more numbers of "
            "dimensions, all tests, and planted truth at the first two."
        ),
    ] = "standard",
    stream: Annotated[
        list[str] | None,
        typer.Option(
            help="A stream to search, such as mlp_act; may be given several times. By default the "
            "residual stream, MLPs, heads and attentions."
        ),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            help="A token label to search; may be given several times. By default every label by "
            "which base and source differ and that is in one column of both."
        ),
    ] = None,
    dim: Annotated[
        str, typer.Option(help="Dimensions of the subspaces, or `auto`: as few as do as well.")
    ] = AUTO,
    fit: Annotated[
        str | None,
        typer.Option(
            help="How subspaces are found (see `subspacelens fits`), instead of the fit that is "
            "recommended for such pairs."
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Processes that share the sites. By default this process does them."
        ),
    ] = None,
    pairs: Pairs = None,
    only_correct: OnlyCorrect = False,
    skip: Skip = False,
    answers: Answers = "whole",
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = "float32",
    memory: Memory = None,
    shifted: Shifted = False,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("runs/find"),
    overwrite: Overwrite = False,
) -> None:
    """Find where a feature lives, and a subspace there that one can rely on.

    Writes OUT/find.html and OUT/find.json, the best subspace as OUT/subspace.safetensors, for every
    site that was audited OUT/<site>/subspace.safetensors and OUT/<site>/audit.json, and
    OUT/report.html, the page of all audits. What was done is kept in
    OUT/kept and not done again. Says so where the model does not do the task, where no site of one
    column carries the feature alone, and where no subspace can be relied on.
    """
    from ..find import find
    from ..find.budget import budget_of
    from ..find.record import FIND_FILE
    from ..fit import named
    from ..report.find_page import PAGE, write_find_page

    budget_of(budget)
    check_streams(stream)
    if fit is not None:
        named(fit)
    space, k = bytes_of(memory), dim_of(dim) or AUTO
    writable(out)
    if not overwrite:
        refuse_other_page(out, PAGE, FIND_FILE)
    with showing_progress():
        lens, chosen = prepared(
            model, task, test_pairs, pairs, seed, device, dtype,
            only=only_correct, skip=skip, answers=answers,
        )  # fmt: skip
        if not overwrite:
            _refuse_other_search(out, FIND_FILE, lens, chosen)
        found = find(
            lens, chosen, budget=budget, streams=stream, labels=label, dim=k, fit=fit,
            directory=out, workers=workers, shifted=shifted, memory=space, seed=seed,
            command=command_line(),
        )  # fmt: skip
    page = write_find_page(out)
    _print_record(found.record)
    say(f"report: {page}")


def _refuse_other_search(out: Path, name: str, lens, task) -> None:
    """Raises `ResultError` where OUT holds, in the file `name`, the search of another model or
    task."""
    path = out / name
    if not path.exists():
        return
    expected = {
        "the model": ("model.weights_sha256", lens.weights_sha256),
        "the task": ("task.name", task.name),
    }
    refuse_other(out, path, read_json(path), expected)


def _print_record(record: FindRecord) -> None:
    paragraph(record.answer)
    if record.places:
        table = PlainTable("site", "k", "verdict", "FLDD", "whole", "by", title="audited")
        for place in record.places:
            table.add_row(
                place.site, place.dim, place.label, with_interval(place.effect.fldd, plain),
                plain(place.whole.fldd.value), place.fit.get("method"),
            )  # fmt: skip
        table.show()
    for place in record.found:
        _print_sources(place)
    if record.predicted:
        table = PlainTable("site", "DAS, predicted", "whole", title="DAS would fool you here too")
        for each in record.predicted[:8]:
            table.add_row(each.site, plain(each.das), plain(each.whole))
        table.show()
    for site, why in record.failed.items():
        paragraph(f"  {site} failed: {why}")
    for text in record.notes:
        paragraph(f"  note: {text}")


def _print_sources(place: Place) -> None:
    for title, rows in (
        ("written by", [(each.name, each.effect) for each in place.writers]),
        ("read by", [(each.name, each.share) for each in place.readers]),
    ):
        if rows:
            shown = ", ".join(f"{name} {plain(share)}" for name, share in rows[:5])
            paragraph(f"  {place.site}, {title}: {shown}")
