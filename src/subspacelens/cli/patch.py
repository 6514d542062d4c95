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


def patch(
    site: Where,
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
    """Patch whole components or saved subspaces, together where there are several, and print what
    it does to the answers of the test pairs.

    A row for all at once, one for each place alone, and the interaction: what all do beyond the sum
    of the single effects. With --metric a column more: the mean change of that metric.

    Examples: subspacelens patch --site L18.mlp_act@S2+END; subspacelens patch --site
    L18.mlp_act@S2=runs/fit/L18.mlp_act@S2/subspace.safetensors --site L20.attn_v.1@S2
    """
    from ..core.places import parse_places
    from ..engine.metrics import metric_of
    from ..engine.routing import routed
    from ..measure.patch import patch as run_patch
    from ..model.lens import unchanged

    space, measured = bytes_of(memory), metric_of(metric)
    with showing_progress():
        lens, chosen = prepared(
            model, task, test_pairs, pairs, seed, device, dtype,
            only=only_correct, skip=skip, answers=answers,
        )  # fmt: skip
        with unchanged(lens):
            changes = _changes(site, lens)
            test = chosen.test
            if skip:
                places = [parse_places(text, test.labels) for text in changes]
                sites = [place.site for each in places for place in each]
                test = routed(lens, test, sites, shifted=shifted)
            effect = run_patch(lens, test, changes, shifted=shifted, memory=space, metric=measured)
    _show(effect, test, measured)


def _changes(texts: list[str], lens):
    """The change at each place: None for a whole component, or the subspace in a file."""
    changes = {}
    for text in texts:
        where, _, path = text.partition("=")
        if where in changes:
            raise LensError(f"--site {where} is given twice")
        changes[where] = _subspace(Path(path), where, lens) if path else None
    return changes


def _subspace(path: Path, where: str, lens):
    """The subspace in a file: ours, or another tool's, which does not say its site."""
    from ..core.site import Site
    from ..fit import given
    from ..fit.subspace import Subspace

    if not path.exists() or Subspace.is_ours(path):
        return Subspace.load(path, lens)
    place = Site.parse(where.partition("@")[0] + "@END")
    return given(lens, place, path).basis


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
