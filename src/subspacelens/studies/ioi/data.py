"""The pairs of the study: fresh ones to judge on, and others further and further from training."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ...core.errors import TaskError
from ...model.lens import LensModel
from ...tasks import PairSet, Prompt, Task, ioi
from ...tasks.ioi_variants import ioi_variants
from .plan import Sizes

FRESH, HELD_OUT = "fresh pairs", "held-out templates"
"""Names of kinds of pairs: the table's, and those of templates that no fit has seen."""


@dataclass(frozen=True)
class Data:
    """`task`: to fit on, and small sets for the audits. `fresh`: as many pairs of either direction
    with the test split's words. `variants`: pairs unlike those that were fitted, by kind."""

    task: Task
    fresh: PairSet
    variants: Mapping[str, PairSet]


def study_data(lens: LensModel, sizes: Sizes, *, bos: bool, seed: int) -> Data:
    """All pairs of the study. `bos`: the tokenizer's first token stands before each prompt."""
    make = dict(train=sizes.train, held_out=sizes.held_out, seed=seed)
    task = ioi(lens.tokenizer, test=sizes.test, **make)
    fresh = ioi(lens.tokenizer, test=sizes.fresh, **make).test
    variants = ioi_variants(lens.tokenizer, size=sizes.held_out, seed=seed)
    held_out = {} if task.held_out is None else {HELD_OUT: task.held_out}
    data = Data(task, fresh, held_out | variants)
    return _with_bos(data, lens) if bos else data


def with_first_token(pairs: PairSet, token: int) -> PairSet:
    """`token` put before every prompt that does not begin with it."""

    def longer(prompt: Prompt) -> Prompt:
        if prompt.ids[0] == token:
            return prompt
        columns = {label: column + 1 for label, column in prompt.columns.items()}
        return Prompt(prompt.text, (token, *prompt.ids), columns)

    moved = (replace(p, base=longer(p.base), source=longer(p.source)) for p in pairs.pairs)
    return PairSet(pairs.name, pairs.split, tuple(moved))


def _with_bos(data: Data, lens: LensModel) -> Data:
    token = lens.tokenizer.bos_token_id
    if not isinstance(token, int):
        raise TaskError("the preset begins each prompt with BOS, but the tokenizer has none")
    task = data.task
    train, test, fresh = (
        with_first_token(pairs, token) for pairs in (task.train, task.test, data.fresh)
    )
    variants = {name: with_first_token(pairs, token) for name, pairs in data.variants.items()}
    return Data(Task(task.name, train, test, variants.get(HELD_OUT)), fresh, variants)


def shuffled_labels(pairs: PairSet, seed: int) -> tuple[PairSet, list[bool]]:
    """Answer and target exchanged in a random half of the pairs of either direction, so that what
    a fit is asked for has nothing to do with z; and which pairs those are."""
    rng = random.Random(f"shuffled/{seed}")
    chosen = [False] * len(pairs)
    for z in (0, 1):
        places = [i for i, pair in enumerate(pairs.pairs) if (pair.z or (0, 0))[0] == z]
        for i in rng.sample(places, len(places) // 2):
            chosen[i] = True
    swapped = tuple(
        replace(p, answer=p.target, target=p.answer) if flip else p
        for p, flip in zip(pairs.pairs, chosen, strict=True)
    )
    return PairSet(pairs.name, f"{pairs.split}, shuffled labels", swapped), chosen
