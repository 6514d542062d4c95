"""Where a block's queries, keys and values are: found among its projections, and proven.

A value is what the cache is given as it stands; a key changes the cached keys and no value; a query
changes neither, and of what attention puts out its own head alone. Separate projections are known
and one for all three: queries, keys and values one after the other, or group by group.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import permutations

import torch
from torch import Tensor

from ...core.site import PROJECTED
from ..hooks import on_input, on_output
from .recording import same
from .running import BlockRun
from .values import Heads, Linear

UNCHANGED, CHANGED = 1e-6, 1e-3
"""At most, and at least, by how much what is compared differs, relative to its norm."""


@dataclass(frozen=True)
class _Seen:
    """What attention makes of what enters a block: `by_head` has what its output projection reads,
    and its keys and values, (heads, columns, width) each."""

    by_head: tuple[Tensor, Tensor, Tensor]

    @classmethod
    def of(cls, x: Tensor, out_proj: Linear, run: BlockRun, heads: int) -> _Seen:
        mixed: list[Tensor] = []
        with on_input(out_proj.module, mixed.append):
            run(x)
        keys, values = run.cached
        by_query = mixed[0].reshape(x.shape[1], heads, -1).transpose(0, 1)
        return cls((by_query, keys[0], values[0]))


def find_heads(
    x: Tensor, linears: Sequence[Linear], out_proj: Linear, run: BlockRun, heads: int
) -> dict[str, Heads] | None:
    """The queries, keys and values of a block, by stream, made by `linears`, those of its attention
    that read the residual stream `x` (1, columns, d_model); None where that cannot be proven."""
    if out_proj.weight.shape[1] % heads:
        return None
    clean, outputs = _Seen.of(x, out_proj, run, heads), _outputs(x, linears, run)
    for layout in _layouts(linears, clean):
        *_, last = layout
        values = outputs[last.linear.name][:, last.part()].unflatten(1, (-1, last.width))
        cached = clean.by_head[2]
        each = len(cached) // len(last.starts)
        if not same(values.transpose(0, 1).repeat_interleave(each, 0), cached, UNCHANGED):
            continue
        proven: dict[str, Heads] = {}
        for kind, (stream, found) in enumerate(zip(PROJECTED, layout, strict=True)):
            size = outputs[found.linear.name][:, found.part()].std()
            moved = _moved(x, found, size, out_proj, run, heads)
            one = _proven(kind, found, clean, moved)
            if one is None:
                break
            proven[stream] = one
        else:
            return proven
    return None


def _layouts(linears: Sequence[Linear], clean: _Seen) -> Iterator[tuple[Heads, Heads, Heads]]:
    """The ways in which projections of these sizes can hold queries, keys and values. Keys and
    values may be repeated for the queries that share them before they are cached, or not."""
    cached = len(clean.by_head[1])
    for groups in (cached, *(g for g in range(cached - 1, 0, -1) if cached % g == 0)):
        yield from _grouped(linears, clean, groups)


def _grouped(
    linears: Sequence[Linear], clean: _Seen, groups: int
) -> Iterator[tuple[Heads, Heads, Heads]]:
    queries, keys, values = clean.by_head
    heads, key, value = len(queries), keys.shape[-1], values.shape[-1]
    if heads % groups or queries.shape[-1] != value:
        return
    counts, widths = (heads, groups, groups), (key, key, value)
    sizes = [count * width for count, width in zip(counts, widths, strict=True)]

    def after(linear: Linear, start: int, kind: int) -> Heads:
        width = widths[kind]
        return Heads(linear, tuple(start + width * i for i in range(counts[kind])), width)

    for q, k, v in permutations(linears, 3):
        if [linear.weight.shape[0] for linear in (q, k, v)] == sizes:
            yield after(q, 0, 0), after(k, 0, 1), after(v, 0, 2)
    for one in linears:
        if one.weight.shape[0] != sum(sizes):
            continue
        yield after(one, 0, 0), after(one, sizes[0], 1), after(one, sizes[0] + sizes[1], 2)
        shared = heads // groups
        step = shared * key + key + value
        yield (
            Heads(one, tuple(h // shared * step + h % shared * key for h in range(heads)), key),
            Heads(one, tuple(g * step + shared * key for g in range(groups)), key),
            Heads(one, tuple(g * step + (shared + 1) * key for g in range(groups)), value),
        )


def _outputs(x: Tensor, linears: Sequence[Linear], run: BlockRun) -> Mapping[str, Tensor]:
    """What each projection puts out, (columns, width), by its name."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str, y: Tensor) -> None:
        outputs[name] = y.reshape(x.shape[1], -1).clone()

    with ExitStack() as stack:
        for linear in linears:
            see = lambda y, name=linear.name: keep(name, y)  # noqa: E731
            stack.enter_context(on_output(linear.module, see))
        run(x)
    return outputs


def _moved(
    x: Tensor, found: Heads, size: Tensor, out_proj: Linear, run: BlockRun, heads: int
) -> _Seen:
    """What attention makes of it with noise, several times the natural `size`, in the last head."""
    noise = torch.randn(x.shape[1], found.width, generator=torch.Generator().manual_seed(2))
    part = found.part(len(found.starts) - 1)

    def add(y: Tensor) -> Tensor:
        every = y.reshape(x.shape[1], -1).clone()
        every[:, part] += 3 * size * noise.to(y)
        return every.reshape(y.shape)

    with on_output(found.linear.module, add):
        return _Seen.of(x, out_proj, run, heads)


def _proven(kind: int, found: Heads, clean: _Seen, moved: _Seen) -> Heads | None:
    """Queries (`kind` 0), keys (1) or values (2), if a change of the last head is seen there, and
    not in keys or values that it is none of; `mixed` where it is seen in the other heads too."""
    for other in {1, 2} - {kind}:
        if not same(moved.by_head[other], clean.by_head[other], UNCHANGED):
            return None
    after, before = moved.by_head[kind], clean.by_head[kind]
    others = len(after) - len(after) // len(found.starts)
    if same(after[others:], before[others:], CHANGED):
        return None
    if others == 0 or same(after[:others], before[:others], UNCHANGED):
        return found
    together = f"the heads of {PROJECTED[kind]} are normed together: take all of them at once"
    return replace(found, mixed=together)
