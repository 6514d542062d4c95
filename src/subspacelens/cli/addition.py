"""`audit --operation add`: a vector, and what it writes."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import typer

from ..core.errors import LensError
from ..core.format import plain, with_interval
from ..core.progress import showing_progress
from ..core.site import Site
from .options import bytes_of, command_line, loaded, prepared, sites_of, writable
from .printing import PlainTable, say, say_grounds
from .sites import at_each_site, capture_sites

OPERATIONS = ("interchange", "add")


def checked_operation(operation: str, alpha: float | None, subspace: Path | None) -> None:
    """Raises `LensError` unless the operation is known and has what it needs, and no more."""
    if operation not in OPERATIONS:
        raise LensError(f"--operation '{operation}': one of {', '.join(OPERATIONS)}")
    if operation == "add" and subspace is None:
        raise LensError("--operation add: name the file of the vector with --subspace")
    if operation != "add" and alpha is not None:
        raise LensError("--alpha says how much of a vector is added: give --operation add too")


def audit_additions(
    *,
    model: str,
    task: str,
    test_pairs: Path | None,
    site: list[str] | None,
    vector: Path,
    alpha: float,
    key: str | None,
    row: int | None,
    pairs: int | None,
    only_correct: bool,
    skip: bool,
    answers: str,
    seed: int,
    device: str | None,
    dtype: str,
    memory: str | None,
    shifted: bool,
    captures: Path | None,
    budget: str,
    tests: str | None,
    controls: bool | None,
    out: Path,
) -> None:
    """Writes OUT/<site>/vector.npy, OUT/<site>/addition.json and OUT/addition.html; exit code 2 if
    a site failed."""
    from ..audit.addition import audit_addition, audit_texts
    from ..audit.addition.judging import chosen_tests
    from ..fit.vector import read_vector
    from ..model.lens import unchanged
    from ..report.addition_page import write_addition_page
    from ..tasks.texts import are_texts, texts_task

    space = bytes_of(memory)
    named = None if tests is None else [name.strip() for name in tests.split(",")]
    chosen_tests(budget, named)
    bare = are_texts(task)
    if bare and (test_pairs or named or controls or only_correct):
        raise LensError(
            f"{task}: lists of texts have no answers: leave out --test-pairs, --tests, --controls "
            "and --only-correct"
        )
    writable(out)
    with showing_progress(), ExitStack() as whole_command:
        if bare:
            lens = loaded(model, device, dtype)
            chosen = texts_task(lens.tokenizer, task, pairs=pairs)
        else:
            lens, chosen = prepared(
                model, task, test_pairs, pairs, seed, device, dtype,
                only=only_correct, skip=skip, answers=answers,
            )  # fmt: skip
        whole_command.enter_context(unchanged(lens))
        sites = sites_of(site, "", task, lens)
        shifted = shifted or bare
        activations, refused = capture_sites(lens, chosen, sites, 1, shifted, captures, space)

        def audited(where: Site):
            if where in refused:
                raise refused[where]
            found = read_vector(lens, where, vector, key=key, row=row)
            if bare:
                result = audit_texts(
                    lens, activations, where, found.values, alpha=alpha, seed=seed,
                    given=found.found, command=command_line(),
                )  # fmt: skip
            else:
                result = audit_addition(
                    lens, activations, where, found.values, alpha=alpha, budget=budget,
                    tests=named, controls=controls, seed=seed, given=found.found,
                    command=command_line(),
                )  # fmt: skip
            result.save(out)
            return result.record

        records, whole = at_each_site(sites, out, audited)
    if records:
        page = write_addition_page(out)
        for record in records:
            _print(record)
        say(f"report: {page}")
    if not whole:
        raise typer.Exit(2)


def _print(record) -> None:
    from ..report.addition_page import PATCH_WORDS, dose_rows, leaves_in_words

    metrics = ("nats", "fldd", "iia", "iia_pair")
    title = f"{record.site}, {record.vector.alpha:g} v: {record.verdict.label.upper()}"
    if not record.effects:
        say(title)
    table = PlainTable("patch", *metrics, title=title)
    for name, effect in record.effects.items():
        words, _ = PATCH_WORDS[name]
        table.add_row(words, *(with_interval(each, plain) for _, each in effect))
    table.add_row(
        "no patch", *(with_interval(each, plain) for _, each in record.no_op), style="dim"
    )
    if record.effects:
        table.show()
    doses = PlainTable(
        "alpha", "nats", "inside nature", "of mean length", "deviations", "class distances"
    )
    for row in dose_rows(record):
        doses.add_row(*map(plain, row))
    doses.show()
    say(f"  {leaves_in_words(record)}")
    say_grounds(record)
