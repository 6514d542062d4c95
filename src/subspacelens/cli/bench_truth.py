"""`bench audit`, `bench find` and `bench constraints`: the library against known truth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..core.errors import LensError
from ..core.progress import showing_progress
from .addition import OPERATIONS
from .options import Device, Dtype, Model, Seed, loaded, writable
from .printing import PlainTable, say


def bench_audit_command(
    model: Model = "smollm2",
    task: Annotated[
        list[str] | None,
        typer.Option(help="A task by name, or a .jsonl file of pairs; may be repeated."),
    ] = None,
    places: Annotated[int, typer.Option(help="Layers and labels of each task.")] = 3,
    models: Annotated[int, typer.Option(help="Planted models at each place and kind.")] = 4,
    pairs: Annotated[int, typer.Option(help="Pairs to fit on, and as many to judge on.")] = 128,
    random: Annotated[
        int, typer.Option(help="Random subspaces at each site, in the model as it is.")
    ] = 20,
    operation: Annotated[
        str,
        typer.Option(help="Of which audit: `interchange`, or `add`, of vectors that are added."),
    ] = "interchange",
    controls: Annotated[
        bool, typer.Option(help="Also audit SmolLM2 on IOI, as it is, where much is known.")
    ] = False,
    trained: Annotated[
        bool,
        typer.Option(help="Also plant and audit fits in tiny models with z at a known place."),
    ] = True,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = "float32",
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("runs/bench-audit"),
) -> None:
    """Measure the audit against planted truth: models in which faithful and illusory directions
    are known by construction, at MLPs, heads and in the residual stream.

    It chooses its own places, in any model and for any pairs that carry z. By default the tasks
    are food and warmth: the rule was made on the others. Writes OUT/bench-audit.json,
    OUT/bench-audit.md and OUT/roc.html, and every site when it is done: the same command goes on
    where it was stopped. With --operation add OUT/additions.json and OUT/additions.md; --controls
    and --trained are of subspaces alone.
    """
    from ..bench import additions_table, audit_table, bench_additions, bench_audit, roc_figure
    from ..core.files import write_atomically
    from ..tasks.named import check_task, named_task

    if operation not in OPERATIONS:
        raise LensError(f"--operation '{operation}': one of {', '.join(OPERATIONS)}")
    if min(places, models) < 1:
        raise LensError("--places and --models: at least 1")
    names = task or ["food", "warmth"]
    for name in names:
        check_task(name, pairs=pairs)
    writable(out)
    with showing_progress():
        lens = loaded(model, device, dtype)
        tasks = {Path(name).stem: named_task(lens.tokenizer, name, pairs=pairs) for name in names}
        if operation == "add":
            result = bench_additions(
                lens, tasks, out / "additions", count=places, models=models, blind=random, seed=seed
            )
        else:
            result = bench_audit(
                lens, tasks, out / "sites", count=places, models=models, blind=random,
                controlled=controls, trained=trained, seed=seed,
            )  # fmt: skip
    if operation == "add":
        return _written(out / "additions", result, additions_table(result))
    picture = roc_figure(result).to_html(include_plotlyjs=True)
    write_atomically(out / "roc.html", picture.encode())
    _written(out / "bench-audit", result, audit_table(result))


def _written(stem: Path, result: dict, table: str) -> None:
    """All numbers as JSON, the table as Markdown and on the terminal."""
    import json

    from ..core.files import write_atomically

    write_atomically(stem.with_suffix(".json"), json.dumps(result, indent=1).encode())
    write_atomically(stem.with_suffix(".md"), table.encode())
    say(table)


def bench_find_command(
    model: Annotated[
        list[str] | None,
        typer.Option(help="A trained model by name; may be repeated. By default all."),
    ] = None,
    planted: Annotated[
        int, typer.Option(min=0, help="Planted models to search beside the trained ones.")
    ] = 20,
    budget: Annotated[str, typer.Option(help="`fast` or `standard`.")] = "fast",
    pairs: Annotated[int, typer.Option(help="Pairs to search on, and as many to judge on.")] = 192,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("runs/bench-find"),
) -> None:
    """Search tiny models that were trained to have z at a known place, and tiny random ones into
    which a circuit was planted: how often what is found carries z by interventions, its channel is
    recovered, and something illusory is presented as found.

    Writes OUT/bench-find.json, and every model when it is done: the same command goes on where it
    was stopped.
    """
    import json

    from ..bench import bench_find
    from ..bench.find import RATES
    from ..bench.truth import trained_names
    from ..core.files import write_atomically
    from ..core.format import percent, with_interval
    from ..core.records import Estimate
    from ..find.budget import budget_of

    budget_of(budget)
    for name in model or ():
        if name not in trained_names():
            raise LensError(f"--model {name}: one of {', '.join(trained_names())}")
    writable(out)
    with showing_progress():
        result = bench_find(
            out / "models", model, planted=planted, budget=budget, pairs=pairs, seed=seed
        )
    write_atomically(out / "bench-find.json", json.dumps(result, indent=1).encode())
    table = PlainTable(
        "model", "true site", "found", "carries z", "cos²", "truth", title="what was found"
    )
    nothing = {"carries": "", "cosine": None, "truth": ""}
    for row in result["models"]:
        for each in row["found"] or [nothing | {"site": row["outcome"]}]:
            carries = {True: "yes", False: "no"}.get(each["carries"], "")
            cosine = "" if each["cosine"] is None else f"{each['cosine']:.2f}"
            table.add_row(row["model"], row["site"], each["site"], carries, cosine, each["truth"])
    table.show()
    for part, rates in result["rates"].items():
        for name in RATES:
            told = with_interval(Estimate(**rates[name]), percent)
            say(f"{part}, {name}: {told} of {rates['models']['value']}")


def bench_constraints_command(
    model: Model = "smollm2",
    task: Annotated[str, typer.Option(help="A task by name, or a .jsonl file of pairs.")] = "ioi",
    places: Annotated[
        int, typer.Option(min=0, help="Layers and labels of the model to plant at; 0 for none.")
    ] = 3,
    models: Annotated[
        int, typer.Option(min=1, help="Planted models at each place and kind of site.")
    ] = 2,
    pairs: Annotated[int, typer.Option(min=2, help="Pairs to fit on, and to judge on.")] = 64,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = "float32",
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path(
        "runs/bench-constraints"
    ),
) -> None:
    """Compare fits that are held to what nature does with plain DAS, mean difference, probe and
    PCA, where the truth is known: in tiny models in which z was trained to live at a known place,
    and on channels, sensors and dormants planted in a model as it is.

    Writes OUT/constraints.json and OUT/constraints.md, and every place when it is done: the same
    command goes on where it was stopped.
    """
    from ..bench import bench_constraints, constraints_table
    from ..bench.constraints import Asked
    from ..tasks.named import check_task, named_task

    check_task(task, pairs=pairs)
    writable(out)
    asked = Asked(places=places, models=models, seed=seed)
    with showing_progress():
        lens = loaded(model, device, dtype) if places else None
        chosen = named_task(lens.tokenizer, task, pairs=pairs) if lens else None
        result = bench_constraints(lens, chosen, out / "sites", asked=asked)
    _written(out / "constraints", result, constraints_table(result))
