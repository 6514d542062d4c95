"""Who reads the residual stream after a site, and how much of an effect goes through each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ..engine.outcomes import Outcomes
from ..engine.replay import Piece, Replay
from ..model.hooks import at_columns, first_call, on_output
from ..model.mapping.values import Reader
from ..model.norms import norm_gain


@dataclass(frozen=True)
class ReaderShare:
    """One reader of the residual stream, at the patched column: a head's queries, keys or values,
    or an MLP. `attribution` is its share of the effect by gradient times change, in nats a pair,
    positive where it pushes the logit difference down as the patch does."""

    name: str
    layer: int
    reader: Reader
    rows: slice
    attribution: float


def reader_matrix(share: ReaderShare) -> Tensor:
    """W diag(γ), for LayerNorm W diag(γ) C with C = I - 11ᵀ/d: what the reader sees of the
    residual stream up to its scale, float64 (rows, d)."""
    weight = share.reader.linear.weight[share.rows].cpu().double()
    if share.reader.norm is None:
        return weight
    gamma, centres = norm_gain(share.reader.norm, weight.shape[1])
    weight = weight * gamma
    return weight - weight.mean(dim=1, keepdim=True) if centres else weight


def attribute_readers(replay: Replay, delta: Tensor) -> tuple[ReaderShare, ...]:
    """Readers of the patched column in the blocks after the site, strongest first, for the change
    `delta` (n, dim): the mean over both ends of the patch of ∂metric/∂(reader's output) times the
    output's change."""
    blocks = replay.lens.map.blocks
    sums: dict[tuple[int, int], Tensor] = {}
    for piece in replay.pieces():
        moved = delta[piece.pairs.to(delta.device)][None]
        ends = [_reader_states(replay, piece, moved * scale) for scale in (0.0, 1.0)]
        for key, (clean, clean_grad) in ends[0].items():
            patched, patched_grad = ends[1][key]
            share = ((clean_grad + patched_grad) / 2 * (patched - clean)).sum(0)
            sums[key] = sums.get(key, torch.zeros_like(share)) + share
    width = blocks[0].out_proj.weight.shape[1] // blocks[0].n_heads
    shares = []
    for (layer, index), share in sums.items():
        reader = blocks[layer].readers[index]
        own = reader.linear.name.rsplit(".", 1)[-1]
        rows = len(share)
        size = width if reader.attention and rows % width == 0 else rows
        for start in range(0, rows, size):
            part = slice(start, start + size)
            head = f".{start // size}" if size < rows else ""
            value = -float(share[part].sum()) / len(replay.pairs)
            shares.append(ReaderShare(f"L{layer}.{own}{head}", layer, reader, part, value))
    return tuple(sorted(shares, key=lambda r: -abs(r.attribution)))


def _reader_states(
    replay: Replay, piece: Piece, delta: Tensor
) -> dict[tuple[int, int], tuple[Tensor, Tensor]]:
    """Output of every reader at the patched column and the metric's gradient there. Left out: what
    runs before the patch enters its block, and the last block's MLP where columns follow, which
    reads the patched column for nobody."""
    outputs: dict[tuple[int, int], Tensor] = {}
    delta = delta.detach().requires_grad_(True)
    blocks, rows = replay.lens.map.blocks, piece.count
    last = len(blocks) - 1
    followed = piece.bucket.suffix > 1 and not piece.reads_patched

    def keep(key: tuple[int, int]) -> Callable[[Tensor], None]:
        def keeping(y: Tensor) -> None:
            if key not in outputs and y.requires_grad:
                outputs[key] = y

        return keeping

    with ExitStack() as stack:
        for layer in range(replay.entry[1], len(blocks)):
            for index, reader in enumerate(blocks[layer].readers):
                if layer == last and followed and not reader.attention:
                    continue
                if layer > replay.entry[1] or replay.way.reaches(reader):
                    stack.enter_context(on_output(reader.linear.module, keep((layer, index))))
        metric = piece.logit_diff(delta).sum()
    keys = list(outputs)
    if not keys:
        return {}
    grads = torch.autograd.grad(metric, [outputs[k] for k in keys], allow_unused=True)
    states = {}
    for key, grad in zip(keys, grads, strict=True):
        y = outputs[key].detach()
        grad = torch.zeros_like(y) if grad is None else grad
        y, grad = (t.reshape(rows, -1, t.shape[-1])[:, 0].cpu().double() for t in (y, grad))
        states[key] = (y, grad)
    return states


def frozen(replay: Replay, delta: Tensor, readers: Sequence[ReaderShare]) -> Outcomes:
    """Outcomes of adding `delta` (n, dim) while the readers give at the patched token what they
    give without it."""
    unknown = torch.full((len(delta),), torch.nan)
    found = Outcomes(
        unknown, torch.full((len(delta),), -1), None if replay.metric is None else unknown.clone()
    )
    with torch.no_grad():
        for piece in replay.pieces(gradients=False):
            moved = delta[piece.pairs.to(delta.device)][None]
            clean: dict[int, Tensor] = {}
            with _at_patched_token(readers, piece.count, clean.__setitem__):
                piece.hidden(0 * moved)
            with _at_patched_token(readers, piece.count, lambda i, _, kept=clean: kept[i]):
                outcomes = piece.outcomes(moved)[0]
            found.logit_diff[piece.pairs] = outcomes.logit_diff.cpu()
            found.top[piece.pairs] = outcomes.top.cpu()
            if found.metric is not None and outcomes.metric is not None:
                found.metric[piece.pairs] = outcomes.metric.float().cpu()
    return found


@contextmanager
def _at_patched_token(
    readers: Sequence[ReaderShare], count: int, change: Callable[[int, Tensor], Tensor | None]
) -> Iterator[None]:
    """Calls `change(i, y)` with what reader i gives at the patched token, the first of each of
    `count` rows, y (count, width); what it returns, unless None, is used instead."""
    columns = torch.zeros(count, dtype=torch.long)
    with ExitStack() as stack:
        for number, share in enumerate(readers):
            module, own = share.reader.linear.module, partial(change, number)
            stack.enter_context(at_columns(_on_first, module, columns, own, part=share.rows))
        yield


def _on_first(
    module: nn.Module, change: Callable[[Tensor], Tensor | None]
) -> AbstractContextManager[None]:
    return on_output(module, first_call(change))
