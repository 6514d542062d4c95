"""Pairs divided into train, test and held-out, so that no prompt is on two sides."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

from scipy.cluster.hierarchy import DisjointSet

from ..core.errors import TaskError
from .pairset import Pair


@dataclass(frozen=True)
class Row:
    """A pair, where it was written, and what was written there as its answer and target, of several
    the first."""

    where: str
    pair: Pair
    texts: tuple[str, str] = ("", "")

    @property
    def prompts(self) -> tuple[Hashable, ...]:
        """What no two splits may share."""
        prompts = (self.pair.base.ids, self.pair.source.ids)
        return (*prompts, ("group", self.pair.group)) if self.pair.group else prompts

    @property
    def beginnings(self) -> tuple[Hashable, ...]:
        """The same, with the prompts up to each label where base and source differ by then."""
        base, source = self.pair.base, self.pair.source
        ends = {
            label: (c + 1, source.columns.get(label, c) + 1) for label, c in base.columns.items()
        }
        cut = [(base.ids[:b], source.ids[:s]) for b, s in ends.values()]
        return (*self.prompts, *(ids for both in cut if both[0] != both[1] for ids in both))


def divide_templates(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Rows of the first templates, rows of the last third (none with fewer than 3 templates)."""
    roots = _joined((("template", row.pair.template), *row.prompts) for row in rows)
    order = list(dict.fromkeys(roots))
    last = set(order[len(order) - len(order) // 3 :])
    return (
        [row for row, root in zip(rows, roots, strict=True) if root not in last],
        [row for row, root in zip(rows, roots, strict=True) if root in last],
    )


def divide_prompts(rows: Sequence[Row], path: str) -> tuple[list[Row], list[Row]]:
    """About two thirds of the rows, and the rest, without a prompt in common."""
    for keys in ([row.beginnings for row in rows], [row.prompts for row in rows]):
        roots = _joined(keys)
        groups: dict[Hashable, list[Row]] = {}
        for row, root in zip(rows, roots, strict=True):
            groups.setdefault(root, []).append(row)
        if 3 * max(map(len, groups.values())) <= 2 * len(rows):
            break
    if len(groups) < 2:
        raise TaskError(
            f"{path}: the pairs cannot be divided into train and test, for all of them share "
            "prompts: add pairs with other prompts, or give a test file"
        )
    order = sorted(groups, key=lambda root: min(map(_digest, groups[root])))
    order.remove(max(order, key=lambda root: len(groups[root])))
    chosen: set[Hashable] = set()
    count = 0
    while order and 3 * count < len(rows):
        chosen.add(order[0])
        count += len(groups[order.pop(0)])
    return (
        [row for row, root in zip(rows, roots, strict=True) if root not in chosen],
        [row for row, root in zip(rows, roots, strict=True) if root in chosen],
    )


def _digest(row: Row) -> str:
    return min(
        hashlib.sha256(text.encode()).hexdigest()
        for text in (row.pair.base.text, row.pair.source.text)
    )


def _joined(items: Iterable[Sequence[Hashable]]) -> list[Hashable]:
    """One representative per item, equal where items are linked by keys that they share."""
    items = list(items)
    linked = DisjointSet(key for keys in items for key in keys)
    for first, *others in items:
        for other in others:
            linked.merge(first, other)
    return [linked[first] for first, *_ in items]


def refuse_shared_prompts(*splits: Sequence[Row]) -> None:
    earlier: dict[Hashable, str] = {}
    for rows in splits:
        for row in rows:
            for prompt in row.prompts:
                if prompt in earlier:
                    what = "group" if prompt == ("group", row.pair.group) else "prompt"
                    raise TaskError(
                        f"{row.where}: shares a {what} with {earlier[prompt]}, which is in another "
                        f"split: keep a {what} in one split only"
                    )
        earlier |= {prompt: row.where for row in rows for prompt in row.prompts}


def refuse_shared_templates(train: Sequence[Row], held_out: Sequence[Row]) -> None:
    known = {row.pair.template for row in train}
    for row in held_out:
        if row.pair.template in known:
            raise TaskError(
                f"{row.where}: held-out pairs need a template that no train pair has, not "
                f"'{row.pair.template}': give them a template of their own"
            )
