"""What the patch does to the MLPs behind it: a hidden pathway is one that nature never walks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack

import numpy as np
import torch
from torch import Tensor

from ...core.site import EXPERT, Site
from ...core.statistics import ratio
from ...engine.activations import activations
from ...engine.buckets import place_of
from ...engine.replay import Piece, Replay
from ...engine.task_capture import TaskCapture
from ..record import Test
from .case import NO_EFFECT, READ_ELSEWHERE, Case, smallest_effect, test_of, void
from .landing import RANGE

BLOCKS = 4
PAIRS = 64


def hidden_pathway(case: Case) -> Test:
    """How much of the effect needs values that nature does not show? (`pathway`)"""
    if case.site.read_elsewhere:
        return void(READ_ELSEWHERE)
    replay = case.replay
    return pathway(case.captures, replay, case.patch.delta(replay.base, replay.source), case.drop)


def pathway(captures: TaskCapture, replay: Replay, delta: Tensor, drop: np.ndarray) -> Test:
    """Of a change `delta` (n, dim) that takes `drop` (n,) from the answers: E with the hidden units
    of the next `BLOCKS` MLPs, at the patched column, held between the 0.5 and the 99.5 % quantile
    of the training prompts, over E. What the holding does without a patch is taken away."""
    sites = _next_mlps(captures.test.at(replay.site))
    if not sites:
        return void("no MLP whose units can be held reads what this site writes at its own column")
    natural = _natural(captures, replay.site.label, sites)
    ranges = {site.layer: value_range(x) for site, x in natural.items()}
    replay, delta, whole = replay.subset(slice(PAIRS)), delta[:PAIRS], drop[:PAIRS]
    if abs(whole.mean()) < smallest_effect(replay):
        return void(NO_EFFECT)
    patched, outside = held(replay, delta, ranges)
    still, usual = held(replay, 0 * delta, ranges)
    left = ratio((still - patched).numpy(), whole, replay.units)
    return test_of(
        left,
        f"with the units of the MLPs of {sites[0].layer} to {sites[-1].layer} held where natural "
        f"ones are, {left.value:.0%} of the effect is left; the patch moves {outside:.1%} of them "
        f"outside, of unpatched prompts {usual:.1%} are",
        1.0,
    )


def _next_mlps(replay: Replay) -> list[Site]:
    """The hidden activations behind the site. The last block is replayed column by column and has
    no reader behind it but the unembedding: it counts only where nothing follows the label."""
    blocks, start, site = replay.lens.map.blocks, replay.entry[1], replay.site
    if site.stream in ("mlp_act", "mlp_out", EXPERT):
        start = max(start, site.layer + 1)
    at_end = all(bucket.suffix == 1 for bucket in replay.buckets)
    layers = range(start, len(blocks) if at_end else len(blocks) - 1)
    sites = [Site(layer, "mlp_act", site.label) for layer in layers]
    return [s for s in sites if "mlp_act" in blocks[s.layer].entries][:BLOCKS]


def _natural(captures: TaskCapture, label: str, sites: list[Site]) -> dict[Site, Tensor]:
    """Read once for all sites of the captures that have the label."""
    kept = "hidden activations of training prompts", label
    if kept not in captures.shared:
        labelled = [site for site in captures.test.sites if site.label == label]
        wanted = [mlp for site in labelled for mlp in _next_mlps(captures.test.at(site))]
        train = captures.train.pairs[:PAIRS]
        prompts = [pair.base for pair in train] + [pair.source for pair in train]
        captures.shared[kept] = activations(captures.train.lens, prompts, dict.fromkeys(wanted))
    return {site: captures.shared[kept][site] for site in sites}


def value_range(x: Tensor) -> tuple[Tensor, Tensor]:
    low, high = (torch.quantile(x.float(), q, dim=0).to(x) for q in RANGE)
    return low, high


def held(
    replay: Replay, delta: Tensor, ranges: Mapping[int, tuple[Tensor, Tensor]]
) -> tuple[Tensor, float]:
    """Logit differences (n,), or what the metric of the replay gives (`Outcomes.measured`), under a
    change `delta` (n, dim) with the hidden activations of the MLPs of these layers held within
    their ranges, and the share of values that had to be."""
    measured, outside = torch.empty(len(delta)), [0, 0]
    with torch.no_grad():
        for piece in replay.pieces(gradients=False):
            with ExitStack() as stack:
                for layer, (low, high) in ranges.items():
                    place, module = place_of(replay.lens.map, Site(layer, "mlp_act", "END"))
                    stack.enter_context(place(module, _holding(low, high, piece, outside)))
                values = piece.measured(piece.of(delta[None]))
                measured[piece.pairs] = values[0].float().cpu()
    return measured.double(), outside[0] / max(1, outside[1])


def _holding(
    low: Tensor, high: Tensor, piece: Piece, outside: list[int]
) -> Callable[[Tensor], Tensor]:
    def change(x: Tensor) -> Tensor:
        columns = x.reshape(piece.count, -1, x.shape[-1]).clone()
        inside = columns[:, 0].clamp(low.to(x.device), high.to(x.device))
        outside[0] += int((inside != columns[:, 0]).sum())
        outside[1] += inside.numel()
        columns[:, 0] = inside
        return columns.reshape(x.shape)

    return change
