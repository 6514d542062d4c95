"""Which prompts run together, and which pairs are replayed together: pure functions of lengths."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

TOKENS_PER_BATCH = 2048

OVERHEAD, FEWEST = 26, 37
"""What a bucket costs beside its columns, in columns: its dispatch, and the least that is computed
while the weights are read (measured on SmolLM2 with 2 cores)."""


T = TypeVar("T")


def prompt_batches(prompts: Iterable[T], lengths: Callable[[T], int], pads: bool) -> list[list[T]]:
    """Prompts of similar length together, at most `TOKENS_PER_BATCH` columns a batch."""
    batches: list[list[T]] = []
    for prompt in sorted(prompts, key=lengths):
        length = lengths(prompt)
        batch = batches[-1] if batches else None
        if (
            batch
            and (len(batch) + 1) * length <= TOKENS_PER_BATCH
            and _similar(lengths(batch[0]), length, pads)
        ):
            batch.append(prompt)
        else:
            batches.append([prompt])
    return batches


def _similar(shorter: int, longer: int, pads: bool) -> bool:
    return longer <= shorter * 5 // 4 + 1 if pads else longer == shorter


def replay_groups(prefixes: Sequence[int], suffixes: Sequence[int], pads: bool) -> list[list[int]]:
    """Which prompts are replayed together, as positions: those of one suffix length whose prefixes
    are of similar length, and neighbouring lengths where one pass costs less than two.

    `prefixes` and `suffixes` (n,) count the columns before a label and from it on. `pads` says
    whether padding on the left changes nothing.
    """
    groups: list[list[int]] = []
    for i in sorted(range(len(suffixes)), key=lambda i: (suffixes[i], prefixes[i])):
        first = groups[-1][0] if groups else i
        if groups and suffixes[first] == suffixes[i] and _pads(prefixes[first], prefixes[i], pads):
            groups[-1].append(i)
        else:
            groups.append([i])
    joined = groups[:1]
    for group in groups[1:]:
        both = joined[-1] + group
        apart = sum(_cost([suffixes[i] for i in part]) for part in (joined[-1], group))
        lengths = [prefixes[i] for i in both]
        cheaper = _cost([suffixes[i] for i in both]) <= apart
        if cheaper and _pads(min(lengths), max(lengths), pads):
            joined[-1] = both
        else:
            joined.append(group)
    return joined


def _pads(shorter: int, longer: int, pads: bool) -> bool:
    """Whether prefixes of these lengths share a bucket: a padded prefix costs attention alone, a
    bucket of its own another reading of all weights."""
    return longer <= 2 * shorter + 16 if pads else longer == shorter


def _cost(suffixes: list[int]) -> int:
    """Of a pass over a bucket with these suffixes, in columns."""
    return OVERHEAD + max(FEWEST, len(suffixes) * max(suffixes))


def padded(prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, mask and positions of prompts padded on the left, each (n, T)."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    return ids, mask, (mask.cumsum(1) - 1).clamp(min=0)
