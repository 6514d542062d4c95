"""`facts`: facts of the user's or the embedded ones, and which of them a model knows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..core.progress import showing_progress
from .options import Device, Dtype, Model, loaded
from .printing import PlainTable, say

commands = typer.Typer(help="Facts that a model may know.", no_args_is_help=True)

FactsFile = Annotated[
    Path | None,
    typer.Option("--facts", help="A JSON file in CounterFact's schema; else the embedded facts."),
]


@commands.command("known")
def known_command(
    model: Model = "smollm2",
    facts: FactsFile = None,
    limit: Annotated[int | None, typer.Option(help="Use the first so many facts.")] = None,
    device: Device = None,
    dtype: Dtype = "float32",
    out: Annotated[
        Path | None, typer.Option(help="Write the known facts here, in CounterFact's schema.")
    ] = None,
) -> None:
    """Count the facts whose prompt the model continues with the right token."""
    import json
    from collections import Counter

    from ..core.files import write_atomically
    from ..engine.recall import known_facts
    from ..tasks.facts import as_counterfact

    with showing_progress():
        asked = facts_of(facts, limit)
        known = known_facts(loaded(model, device, dtype), asked)
    table = PlainTable("relation", "facts", "known", "different objects known", title=model)
    total, right = (Counter(fact.relation for fact in some) for some in (asked, known))
    for relation, count in total.items():
        objects = {fact.answer for fact in known if fact.relation == relation}
        table.add_row(relation, str(count), str(right[relation]), str(len(objects)))
    table.add_row("all", str(len(asked)), str(len(known)), "")
    table.show()
    if out is not None:
        write_atomically(out, json.dumps(as_counterfact(known), indent=1).encode())
        say(out)


def facts_of(path: Path | None, limit: int | None = None):
    """The facts of a file, or the embedded ones."""
    from ..core.errors import TaskError
    from ..tasks.facts import embedded_facts, read_facts

    if limit is not None and limit < 1:
        raise TaskError(f"--limit {limit}: at least one fact is needed")
    return embedded_facts()[:limit] if path is None else read_facts(path, limit=limit)
