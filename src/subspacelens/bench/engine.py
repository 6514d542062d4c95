"""`bench_engine`: seconds of the engine, of plain hooks, of pyvene and of the bare products."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..core.errors import TaskError
from ..core.machine import peak_rss_bytes
from ..core.progress import track
from ..core.site import Site
from ..engine.capture import capture
from ..engine.outcomes import answers_of
from ..engine.replay import Replay
from ..model.hooks import first_tensor, on_output
from ..model.lens import LensModel
from ..tasks import ioi
from ..tasks.pairset import Pair, PairSet, Prompt
from . import peers

SCHEMA = "subspacelens.bench.engine/1"
STEP_SITES = ("L18.mlp_act@S2", "L17.resid_post@S2", "L20.mlp_act@END")
FIT_SITE = "L20.mlp_act@END"
MAP_LABELS = ("S2", "END")
TEMPLATE = "wait"
"""The template whose prompts are 18 tokens long, as in the published prototype; from S2 on they
have 5 columns, as have five of the six training templates."""
PYVENE_EVERY = 3
"""pyvene runs in one of so many repeats: its steps are long and vary little."""


def bench_engine(lens: LensModel, *, quick: bool = False) -> dict:
    """Times the engine in one run; `quick` is for trying it out, with numbers of no worth.

    Seconds are medians of interleaved repeats. `steps`: forward, backward and update of a
    one-dimensional DAS on 64 IOI pairs of one template. `fit`: capture and training until the
    held-out loss that the engine reaches. `map`: the full patch of `resid_post` at every layer and
    two labels. `growth`: seconds of an engine step against numbers of pairs, of directions, of
    suffix columns (`L18.mlp_act`) and of prefix columns. `peak_rss_bytes`: of the process, before
    hooks or pyvene have run. What is not installed is None.

    Raises `TaskError` if the tokenizer or the depth of the model does not fit.
    """
    if len(lens.map.blocks) <= 20:
        raise TaskError(f"bench engine needs more than 20 blocks, not {len(lens.map.blocks)}")
    count, repeats = (8, 1) if quick else (64, 9)
    train, test = _pairs(lens, count)
    sites = [Site.parse(text) for text in STEP_SITES]
    captured = capture(lens, train, sites)
    growth = _growth(lens, train, quick)
    peak = peak_rss_bytes()
    return {
        "schema": SCHEMA,
        "setting": {
            "model": lens.id,
            "dtype": str(lens.dtype).removeprefix("torch."),
            "device": str(lens.device),
            "threads": torch.get_num_threads(),
            "template": TEMPLATE,
            "pairs": count,
            "tokens": len(train[0].base.ids),
            "repeats": repeats,
        },
        "steps": {str(site): _steps(captured.at(site), repeats) for site in sites},
        "fit": {FIT_SITE: _fit(lens, train, test, Site.parse(FIT_SITE), 2 if quick else 40)},
        "map": _map(lens, train, 1 if quick else 3, 3 if quick else len(lens.map.blocks)),
        "growth": growth,
        "peak_rss_bytes": peak,
    }


def profile_step(lens: LensModel, site: Site, *, steps: int = 5) -> dict[str, float]:
    """Where the time of a DAS step at `site` goes: share of each operation, largest first, by
    PyTorch's profiler, on the 64 pairs of `bench_engine`."""
    train, _ = _pairs(lens, 64)
    replay = capture(lens, train, [site]).at(site)
    step = peers.engine_from(replay, replay).step
    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(steps):
            step()
    times = {event.key: event.self_cpu_time_total for event in profile.key_averages()}
    total = sum(times.values())
    return {name: times[name] / total for name in sorted(times, key=times.__getitem__)[::-1]}


def medians(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each, run in turns after one round that is not counted. What is named
    pyvene runs in one round of `PYVENE_EVERY` only."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in track(range(-1, repeats), "bench " + ", ".join(runs)):
        for name, run in runs.items():
            if name == "pyvene" and round_ % PYVENE_EVERY:
                continue
            seconds[name].append(_timed(run))
    return {name: statistics.median(times[1:] or times) for name, times in seconds.items()}


def _timed(run: Callable[[], object]) -> float:
    gc.collect()
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _pairs(lens: LensModel, count: int) -> tuple[PairSet, PairSet]:
    """Training and held-out pairs of the one template."""
    task = ioi(lens.tokenizer, train=6 * count, test=6 * max(8, count // 2), held_out=0)

    def chosen(pairs: PairSet) -> PairSet:
        return PairSet("ioi", pairs.split, tuple(p for p in pairs if p.template == TEMPLATE))

    train, test = chosen(task.train), chosen(task.test)
    if len({len(p.ids) for pair in (*train, *test) for p in (pair.base, pair.source)}) != 1:
        raise TaskError(f"bench engine: prompts of template {TEMPLATE} differ in length here")
    return train, test


def _seconds(times: dict[str, float], names: Sequence[str]) -> dict[str, float | None]:
    return {f"{name}_seconds": times.get(name) for name in names}


def _steps(replay: Replay, repeats: int) -> dict[str, float | None]:
    lens, pairs, site = replay.lens, replay.pairs, replay.site
    runs: dict[str, Callable[[], object]] = {
        "engine": peers.engine_from(replay, replay).step,
        "floor": peers.floor(replay),
        "hooks": peers.hooks(lens, pairs, pairs, site).step,
    }
    rival = peers.pyvene(lens, pairs, pairs, site)
    if rival is not None:
        runs["pyvene"] = rival.step
    return _seconds(medians(runs, repeats), ("engine", "hooks", "pyvene", "floor"))


def _fit(
    lens: LensModel, train: PairSet, test: PairSet, site: Site, steps: int
) -> dict[str, float | None]:
    every = max(1, steps // 8)

    def fit(make, target: float | None, most: int) -> tuple[float | None, float]:
        """Seconds until the held-out loss is at most `target`, and the lowest one seen."""
        started = time.perf_counter()
        trainer = make(lens, train, test, site)
        if trainer is None:
            return None, 0.0
        lowest = float("inf")
        for step in track(range(1, most + 1), f"fit by {make.__name__}"):
            trainer.step()
            if step % every == 0:
                lowest = min(lowest, trainer.held_out())
                if target is not None and lowest <= target:
                    return time.perf_counter() - started, lowest
        return None if target is not None else time.perf_counter() - started, lowest

    _, lowest = fit(peers.engine, None, steps)
    target = lowest + 0.01 * abs(lowest)
    seconds = {
        make.__name__: fit(make, target, 2 * steps)[0]
        for make in (peers.engine, peers.hooks, peers.pyvene)
    }
    return {f"{name}_seconds": value for name, value in seconds.items()} | {
        "held_out_logit_difference": target
    }


def _map(lens: LensModel, pairs: PairSet, repeats: int, layers: int) -> dict[str, float | None]:
    sites = [Site(layer, "resid_post", label) for layer in range(layers) for label in MAP_LABELS]
    base, source = (peers.ids_of(lens, pairs, side) for side in ("base", "source"))
    answers = answers_of(pairs).to(lens.device)

    def by_replay() -> Tensor:
        captured = capture(lens, pairs, sites)
        return torch.stack(
            [
                replay.delta_outcomes(replay.difference).logit_diff
                for replay in map(captured.at, sites)
            ]
        )

    @torch.no_grad()
    def by_hooks() -> Tensor:
        theirs: dict[int, Tensor] = {}
        blocks = [lens.map.blocks[layer].module for layer in range(layers)]
        handles = [
            block.register_forward_hook(
                lambda _m, _a, out, layer=layer: theirs.__setitem__(
                    layer, first_tensor(out).clone()
                )
            )
            for layer, block in enumerate(blocks)
        ]
        lens.map.inner(input_ids=source, use_cache=False)
        for handle in handles:
            handle.remove()
        differences = []
        for site in sites:
            column = pairs[0].base.columns[site.label]

            def patch(x: Tensor, column=column, layer=site.layer) -> Tensor:
                patched = x.clone()
                patched[:, column] = theirs[layer][:, column]
                return patched

            logits = peers.hooked_logits(lens, base, on_output, blocks[site.layer], patch, answers)
            differences.append(logits[:, 0] - logits[:, 1])
        return torch.stack(differences)

    times = medians({"engine": by_replay, "hooks": by_hooks}, repeats)
    return _seconds(times, ("engine", "hooks"))


def _growth(lens: LensModel, pairs: PairSet, quick: bool) -> dict[str, list[list[float]]]:
    repeats = 1 if quick else 5
    sizes = (4, 8) if quick else (16, 32, 64, 128)
    many = (1, 2) if quick else (1, 2, 4, 8, 16)
    columns = (1, 2) if quick else (1, 2, 4, 8, 16)
    prefixes = (8, 16) if quick else (16, 32, 64, 128)
    end, late = Site(20, "mlp_act", "END"), Site(18, "mlp_act", "END")

    def step(replay: Replay, directions: int = 1) -> Callable[[], None]:
        difference = replay.difference
        start = torch.randn(directions, difference.shape[1], device=difference.device)

        def run() -> None:
            free = start.to(difference).requires_grad_(True)
            for piece in replay.pieces(directions):
                moved = difference[piece.pairs.to(difference.device)]
                basis = free[piece.patches]
                delta = (moved @ basis.T).T[..., None] * basis[:, None]
                piece.logit_diff(delta).sum().backward(inputs=[free])

        return run

    def timed(runs: dict[int, Callable[[], object]]) -> list[list[float]]:
        times = medians({str(n): run for n, run in runs.items()}, repeats)
        return [[n, times[str(n)]] for n in runs]

    whole = capture(lens, pairs, [end]).at(end)
    counted = [Site(18, "mlp_act", f"last {n}") for n in columns]
    labelled = capture(lens, _relabelled(pairs, columns), counted)
    return {
        "pairs": timed({n: step(capture(lens, _repeated(pairs, n), [end]).at(end)) for n in sizes}),
        "directions": timed({n: step(whole, n) for n in many}),
        "columns": timed(
            {n: step(labelled.at(site)) for n, site in zip(columns, counted, strict=True)}
        ),
        "prefix": timed(
            {n: step(capture(lens, _preceded(pairs, n), [late]).at(late)) for n in prefixes}
        ),
    }


def _changed(pairs: PairSet, change: Callable[[Prompt], Prompt]) -> PairSet:
    def pair(old: Pair) -> Pair:
        return replace(old, base=change(old.base), source=change(old.source))

    return PairSet(pairs.name, pairs.split, tuple(pair(old) for old in pairs))


def _repeated(pairs: PairSet, count: int) -> PairSet:
    times = -(-count // len(pairs))
    return PairSet(pairs.name, pairs.split, (pairs.pairs * times)[:count])


def _relabelled(pairs: PairSet, counts: Sequence[int]) -> PairSet:
    """Labels `last n` at the n-th column from the end."""

    def change(prompt: Prompt) -> Prompt:
        width = len(prompt.ids)
        own = {f"last {n}": width - n for n in counts}
        return replace(prompt, columns={**own, "END": width - 1})

    return _changed(pairs, change)


def _preceded(pairs: PairSet, prefix: int) -> PairSet:
    """The same prompts with `prefix` columns before the last: cut, or with tokens repeated."""

    def change(prompt: Prompt) -> Prompt:
        *before, last = prompt.ids
        longer = before * -(-prefix // len(before))
        return replace(prompt, ids=(*longer[-prefix:], last), columns={"END": prefix})

    return _changed(pairs, change)
