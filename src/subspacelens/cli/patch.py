"""`patch`: what patches at one place or at several do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..core.errors import LensError
from ..core.format import plain, with_interval
from ..core.progress import showing_progress
from .options import (
    Answers,
    Device,
    Dtype,
    Memory,
    MetricName,
    Model,
    OnlyCorrect,
    Pairs,
    Seed,
    Shifted,
    Skip,
    TaskName,
    TestPairs,
    bytes_of,
    prepared,
)
from .printing import PlainTable, is_wide, paragraph

Where = Annotated[
    list[str],
    typer.Option(
        "--site",
        help="Where: a site (L18.mlp_act@S2), several labels (@S2+END), all columns from a label "
        "on (@S2:) or all columns (@*), for the whole component; with =FILE behind it for the "
        "subspace in that file. May be given several times: all are patched together.",
    ),
]


OPERATIONS = ("interchange", "add", "ablate", "own")


def patch(
    site: Where,
    operation: Annotated[
        str,
        typer.Option(
            help="What is done with what is in a file: `interchange` takes the source's value in "
            "the subspace, `add` adds --alpha times the vector, as long as it is there and turned "
            "to each pair's z, `ablate` sets what is along the subspace to zero, `own` does what "
            "the tool does that wrote the file."
        ),
    ] = "interchange",
    alpha: Annotated[
        float | None, typer.Option(help="How much of a vector is added. By default 1.")
    ] = None,
    value: Annotated[
        float | None,
        typer.Option(help="To what `own` sets a latent. By default to that of the source."),
    ] = None,
    key: Annotated[str | None, typer.Option(help="Which array of a file.")] = None,
    row: Annotated[
        int | None, typer.Option(help="Which row of that array, such as a latent.")
    ] = None,
    model: Model = "smollm2",
    task: TaskName = "ioi",
    test_pairs: TestPairs = None,
    pairs: Pairs = None,
    only_correct: OnlyCorrect = False,
    skip: Skip = False,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = "float32",
    memory: Memory = None,
    shifted: Shifted = False,
    answers: Answers = "whole",
    metric: MetricName = "logit_diff",
) -> None:
    """Patch whole components, or what a file has, together where there are several, and print what
    it does to the answers of the test pairs.

    A file is ours, another tool's (see `subspacelens inspect`) or a plain array.

    A row for all at once, one for each place alone, and the interaction: what all do beyond the sum
    of the single effects. With --metric a column more: the mean change of that metric.

    Examples: subspacelens patch --site L18.mlp_act@S2+END; subspacelens patch --site
    L18.mlp_act@S2=runs/fit/L18.mlp_act@S2/subspace.safetensors --site L20.attn_v.1@S2;
    subspacelens patch --site L17.resid_post@*=steer.npy --operation add --alpha 4
    """
    from ..core.places import parse_places
    from ..engine.metrics import metric_of
    from ..engine.routing import routed
    from ..measure.patch import patch as run_patch
    from ..model.lens import unchanged

    if operation not in OPERATIONS:
        raise LensError(f"--operation '{operation}': one of {', '.join(OPERATIONS)}")
    if operation not in ("add", "own") and alpha is not None:
        raise LensError("--alpha says how much of a vector is added: give --operation add too")
    if operation != "own" and value is not None:
        raise LensError("--value says to what a latent is set: give --operation own too")
    space, measured = bytes_of(memory), metric_of(metric)
    with showing_progress():
        lens, chosen = prepared(
            model, task, test_pairs, pairs, seed, device, dtype,
            only=only_correct, skip=skip, answers=answers,
        )  # fmt: skip
        with unchanged(lens):
            test, changes = chosen.test, {}
            if skip:
                wheres = [text.partition("=")[0] for text in site]
                places = [place for where in wheres for place in parse_places(where, test.labels)]
                test = routed(lens, test, [place.site for place in places], shifted=shifted)
            for text in site:
                where, _, file = text.partition("=")
                if where in changes:
                    raise LensError(f"--site {where} is given twice")
                if not file and operation != "interchange":
                    raise LensError(f"--site {where}: name a file to {operation}, =FILE behind it")
                changes[where] = None
                if file:
                    changes[where] = _change(
                        lens, where, Path(file), operation, alpha, value, key, row, test
                    )
            effect = run_patch(lens, test, changes, shifted=shifted, memory=space, metric=measured)
    _show(effect, test, measured)


def _change(lens, where: str, path: Path, operation: str, alpha, value, key, row, pairs):
    """What is done with a file's subspace or vector; a file of another tool does not say for which
    token."""
    from ..engine.patches import Ablate, Add
    from ..fit import given
    from ..fit.operation import own_patch
    from ..fit.subspace import Subspace
    from ..fit.vector import read_vector
    from ..interop import read_foreign
    from ..interop.hub import located
    from ..interop.names import site_named
    from ..measure.nature import signs

    place, path = site_named(f"{where.partition('@')[0]}@END", lens), located(path)
    if operation == "add":
        vector = read_vector(lens, place, path, key=key, row=row).values
        return Add(vector, 1.0 if alpha is None else alpha, signs(pairs))
    if operation == "own":
        rows = () if row is None else (row,)
        found = read_foreign(path)
        return own_patch(lens, found, place, key=key, rows=rows, alpha=alpha, value=value)
    ours = not path.exists() or Subspace.is_ours(path)
    found = Subspace.load(path, lens) if ours else given(lens, place, path, key=key, row=row)
    if operation == "ablate":
        return Ablate(found.basis)
    return found if ours else found.basis


def _show(effect, pairs, metric) -> None:
    columns = ["nats", "fldd", "iia"][: 3 if metric is None or is_wide() else 2]
    heading = () if metric is None else (metric.name,)
    table = PlainTable("patch", *columns, *heading, title=f"{pairs.name}, {len(pairs)} test pairs")

    def row(name: str, *estimates) -> None:
        texts = [with_interval(each, plain) for each in estimates]
        table.add_row(name, *texts, *[""] * (len(columns) + len(heading) - len(texts)))

    def values(each):
        return *(getattr(each, name) for name in columns), *(each.change for _ in heading)

    for name, single in effect.single.items():
        row(name, *values(single))
    if len(effect.single) > 1:
        row("all together", *values(effect))
        row("interaction", effect.interaction, effect.interaction_fldd)
    table.show()
    if len(effect.single) > 1:
        paragraph(
            "Interaction: the effect of all together less the sum of the single ones. Each patch "
            "takes its source activation from the unpatched source prompt."
        )
