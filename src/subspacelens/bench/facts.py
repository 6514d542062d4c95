"""How fast directions are fitted one a pair: the batched replay against plain hooks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.progress import track
from ..core.site import Site
from ..engine.buckets import place_of
from ..engine.capture import capture
from ..engine.recall import known_facts
from ..engine.replay import Replay
from ..fit.per_pair import evaluated
from ..model.hooks import on_input
from ..model.lens import LensModel
from ..tasks.facts import SUBJECT, Fact, fact_pairs, pair_set
from ..tasks.pairset import Pair, PairSet
from .peers import floor


def bench_facts(
    lens: LensModel,
    facts: Sequence[Fact],
    layers: Sequence[int],
    *,
    pairs: int = 16,
    steps: int = 30,
    hook_steps: int = 3,
) -> list[dict[str, Any]]:
    """Seconds for `steps` gradient steps on the directions of `pairs` pairs, a layer a row. Plain
    hooks run `hook_steps` steps, one pair at a time, and are scaled to `steps`; the replay's time
    includes its capture; `floor_seconds` are the bare matrix products of the replayed columns, as
    many times. `error`: largest difference of their logit differences, in nats."""
    known = known_facts(lens, facts)
    each = -(-pairs // max(1, len({fact.relation for fact in known})))
    chosen = fact_pairs(lens.tokenizer, known, per_relation=each, fewest=1)[:pairs]
    data = pair_set(lens.tokenizer, chosen)
    return [_layer(lens, data, layer, steps, hook_steps) for layer in layers]


def _layer(
    lens: LensModel, data: PairSet, layer: int, steps: int, hook_steps: int
) -> dict[str, Any]:
    site = Site(layer, "mlp_act", SUBJECT)
    capture(lens, data[:2], [site], shifted=True)
    begin = time.perf_counter()
    replay = capture(lens, data, [site], shifted=True).at(site)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(1, *replay.base.shape, generator=generator)
    first = free = _unit(start.to(replay.base))
    losses: list[Tensor] = []
    for _ in track(range(steps), f"replay at {site}"):
        values, slopes = evaluated(replay, free)
        losses.append(values[0])
        free = _unit(free - 0.1 * slopes)
    replayed = time.perf_counter() - begin
    begin = time.perf_counter()
    hooked = _hooked(replay, first[0], hook_steps)
    plain = (time.perf_counter() - begin) * steps / hook_steps
    products = floor(replay)
    products()
    begin = time.perf_counter()
    for _ in range(hook_steps):
        products()
    least = (time.perf_counter() - begin) * steps / hook_steps
    return {
        "site": str(site),
        "pairs": len(data),
        "steps": steps,
        "replay_seconds": replayed,
        "hooks_seconds": plain,
        "floor_seconds": least,
        "hooks_steps_timed": hook_steps,
        "speedup": plain / replayed,
        "error": max(
            float((mine - theirs).abs().max()) for mine, theirs in zip(losses, hooked, strict=False)
        ),
        "threads": torch.get_num_threads(),
    }


def _unit(x: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x, dim=-1)


def _hooked(replay: Replay, start: Tensor, steps: int) -> list[Tensor]:
    """The logit differences (n,) at each step, by one full pass a pair and step."""
    v, losses = start, []
    for _ in track(range(steps), "plain hooks"):
        values, moved = [], []
        for pair, direction, delta in zip(replay.pairs, v, replay.difference, strict=True):
            value, slope = _one(replay.lens, pair, direction, delta, replay.site)
            values.append(value)
            moved.append(direction - 0.1 * slope)
        losses.append(torch.stack(values))
        v = _unit(torch.stack(moved))
    return losses


def _one(
    lens: LensModel, pair: Pair, direction: Tensor, delta: Tensor, site: Site
) -> tuple[Tensor, Tensor]:
    v = direction.detach().requires_grad_(True)
    column = pair.base.columns[site.label]

    def change(x: Tensor) -> Tensor:
        add = torch.zeros_like(x)
        add[..., column, :] = (v @ delta) * v
        return x + add

    _, module = place_of(lens.map, site)
    with on_input(module, change):
        ids = torch.tensor([pair.base.ids], device=lens.device)
        logits = lens.model(input_ids=ids, use_cache=False).logits[0, -1]
    value = logits[pair.answer] - logits[pair.target]
    (slope,) = torch.autograd.grad(value, v)
    return value.detach(), slope
