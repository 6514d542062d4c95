"""`pairs`: a file of pairs from a table or from a benchmark's layout."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..core.format import counted
from ..core.progress import showing_progress
from .check import Show, show_reading
from .options import Device, Dtype, Model, loaded
from .printing import paragraph, say


def pairs_command(
    source: Annotated[
        Path, typer.Argument(help="A .csv, .tsv, .json, .jsonl or .parquet file of records.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Write the pairs here; without it, see them first.")
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(help="`table`, `mib`, `ravel` or `causalgym`; by default told by its fields."),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(help="FIELD=COLUMN of a table, such as base=clean; may be given repeatedly."),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=COLUMN, whose text the label is on, or NAME=BASE,SOURCE for a column each; "
            "may be given repeatedly."
        ),
    ] = None,
    counterfactual: Annotated[
        str | None, typer.Option(help="Which counterfactual of a MIB record is the source.")
    ] = None,
    as_written: Annotated[
        bool, typer.Option("--as-written", help="Put no space before answers that have none.")
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="The first so many pairs.")] = None,
    model: Model = "smollm2",
    show: Show = 2,
    device: Device = None,
    dtype: Dtype = "float32",
) -> None:
    """Turn a table, or a file of MIB, RAVEL or CausalGym, into a file of pairs.

    Without --out nothing is written: it shows what --model sees of the pairs and how many it gets
    right, as `check` does.
    """
    import json

    from ..core.errors import ResultError
    from ..core.files import write_atomically
    from ..tasks.convert import Choices, convert
    from ..tasks.pairs import reading_of

    if out is not None and out.exists():
        raise ResultError(f"--out {out} is there already: remove it, or choose another name")
    choices = Choices(
        columns=dict(_both(text, "--column") for text in column or ()),
        labels={
            name: (columns.partition(",")[0], columns.rpartition(",")[2])
            for name, columns in (_both(text, "--label") for text in label or ())
        },
        counterfactual=counterfactual,
        as_written=as_written,
    )
    found = convert(source, layout, choices, limit)
    lines = [json.dumps(line, ensure_ascii=False) for line in found.lines]
    for reason, count in found.left_out.items():
        paragraph(f"- {counted(count, 'record')} left out, because {reason}")
    if out is not None:
        write_atomically(out, "".join(f"{line}\n" for line in lines).encode())
        paragraph(f"- {counted(len(lines), 'pair')} of the layout '{found.layout}'")
        say(out)
        return
    with showing_progress():
        lens = loaded(model, device, dtype)
        numbered = ((f"{source}, pair {n}", line) for n, line in enumerate(lines, start=1))
        show_reading(lens, reading_of(numbered, lens.tokenizer), source.stem, show)


def _both(text: str, option: str) -> tuple[str, str]:
    from ..core.errors import TaskError

    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise TaskError(f"{option} {text}: write it as NAME=COLUMN")
    return name, value
