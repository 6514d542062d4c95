"""What the patches of an audit do pair by pair, and the pairs that are shown for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..engine.likely import likeliest, token_texts
from ..tasks.pairset import Prompt
from .evidence import Case
from .record import ExampleKind, PairExample, PairTable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHOWN = ("full", "subspace", "row")
"""The patches that are told pair by pair, where they exist."""
OF_EACH_KIND = 4
TOP = 5


def pair_table(case: Case) -> PairTable:
    """Every pair that was judged on, in the order of the task."""
    order = case.setting.chosen.argsort()
    pairs = case.replay.pairs.at(order.tolist())
    tokenizer, label = case.lens.tokenizer, case.site.label
    return PairTable(
        pair=case.setting.chosen[order].tolist(),
        base=[pair.base.text for pair in pairs],
        source=[pair.source.text for pair in pairs],
        base_marks=marks([pair.base for pair in pairs], label, tokenizer),
        source_marks=marks([pair.source for pair in pairs], label, tokenizer),
        template=[pair.template for pair in pairs],
        answer=["".join(token_texts(pair.accepted.answers[0], tokenizer)) for pair in pairs],
        target=["".join(token_texts(pair.accepted.targets[0], tokenizer)) for pair in pairs],
        clean=case.replay.clean.logit_diff.double()[order].tolist(),
        patched={
            name: effect.patched.logit_diff.double()[order].tolist()
            for name, effect in case.effects.items()
            if name in SHOWN
        },
    )


def pair_examples(case: Case, table: PairTable) -> list[PairExample]:
    """A dozen pairs of the table, with the likeliest next tokens under no patch and under each."""
    clean, patched = np.array(table.clean), np.array(table.patched["subspace"])
    kinds = chosen_pairs(clean, clean - patched)
    rows = case.setting.chosen.argsort()[torch.tensor(list(kinds))]
    some = case.replay.subset(rows)
    deltas = {
        name: effect.delta[rows.to(effect.delta.device)]
        for name, effect in case.effects.items()
        if name in SHOWN and effect.delta is not None
    }
    deltas = {"clean": 0 * deltas["full"], **deltas}
    tops = {
        name: likeliest(some.delta_logits(delta), TOP, case.lens.tokenizer)
        for name, delta in deltas.items()
    }
    return [
        PairExample(row=row, kind=kind, tops={name: list(each[i]) for name, each in tops.items()})
        for i, (row, kind) in enumerate(kinds.items())
    ]


def chosen_pairs(clean: np.ndarray, drop: np.ndarray) -> dict[int, ExampleKind]:
    """Pairs to show, none twice, from logit differences without a patch and what the patch takes
    from them, (n,) each: four `typical` ones, whose effect is nearest to the median; four `extreme`
    ones, the two strongest and the two weakest effects; four `failing` ones, of which two at most
    are answered wrongly without a patch and the rest keep their answer most clearly."""
    ranked = np.argsort(drop, kind="stable")
    half = OF_EACH_KIND // 2
    kinds: dict[int, ExampleKind] = {}

    def take(order: Sequence[int] | np.ndarray, count: int, kind: ExampleKind) -> None:
        left = [int(i) for i in order if int(i) not in kinds]
        kinds.update(dict.fromkeys(left[:count], kind))

    take(np.argsort(np.abs(drop - np.median(drop)), kind="stable"), OF_EACH_KIND, "typical")
    take(ranked[::-1], half, "extreme")
    take(ranked, half, "extreme")
    wrong = np.argsort(clean, kind="stable")[: (clean < 0).sum()]
    before = len(kinds)
    take(wrong, half, "failing")
    kept = np.argsort(drop - clean, kind="stable")
    take(kept, OF_EACH_KIND - (len(kinds) - before), "failing")
    return kinds


def marks(
    prompts: Sequence[Prompt], label: str, tokenizer: PreTrainedTokenizerBase | None
) -> list[list[tuple[int, int]]]:
    """Characters [start, end) of each prompt's text that the token at `label` stands for, white
    space at its edges aside; none where the text alone does not tell them."""
    if tokenizer is None or not tokenizer.is_fast:
        return [[] for _ in prompts]
    found = []
    for prompt in prompts:
        column, spans = prompt.columns.get(label), _offsets(prompt, tokenizer)
        there = spans[column : column + 1] if column is not None else []
        trimmed = [_trimmed(prompt.text, *span) for span in there]
        found.append([span for span in trimmed if span[0] < span[1]])
    return found


def _offsets(prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> list[tuple[int, int]]:
    """Characters of each token, where encoding the text gives what the model reads."""
    for special in (True, False):
        encoded = tokenizer(
            prompt.text, add_special_tokens=special, return_offsets_mapping=True
        ).data
        if tuple(encoded["input_ids"]) == prompt.ids[: len(encoded["input_ids"])]:
            return [(int(start), int(end)) for start, end in encoded["offset_mapping"]]
    return []


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    inside = text[start:end]
    return end - len(inside.lstrip()), start + len(inside.rstrip())
