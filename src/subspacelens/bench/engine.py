"""`bench_engine`: seconds of the engine, of its rivals and of the bare matrix products."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

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
from .whole_fit import whole_fits

SCHEMA = "subspacelens.bench.engine/2"
STEP_SITES = ("L18.mlp_act@S2", "L17.resid_post@S2", "L20.mlp_act@END")
FIT_SITES = ("L18.mlp_act@S2", "L20.mlp_act@END")
MAP_LABELS = ("S2", "END")
TEMPLATE = "wait"
"""The template whose prompts are 18 tokens long, as in the published prototype; from S2 on they
have 5 columns, as have five of the six training templates."""
TRAIN, TEST = 64, 96
"""Pairs of the template that are trained on and held out."""


def bench_engine(
    lens: LensModel,
    *,
    pythons: Mapping[str, Path] | None = None,
    whole: bool = False,
    quick: bool = False,
) -> dict:
    """Times the engine in one run; `quick` is for trying it out, with numbers of no worth.

    `fits`: one direction, capture included, until the held-out FLDD is 99 % of the best, by us and
    by each rival, with `whole` to the end of each (`whole_fits`); `pythons` says what the rivals
    run in (`peer_pythons`). The others are medians of interleaved repeats in seconds. `steps`:
    forward, backward and update of a one-dimensional DAS on 64 IOI pairs of one template. `map`:
    the full patch of `resid_post` at every layer and two labels. `growth`: an engine step against
    numbers of pairs, of directions, of suffix columns (`L18.mlp_act`) and of prefix columns.
    `peak_rss_bytes`: of the process, before hooks have run.

    Raises `TaskError` if the tokenizer or the depth of the model does not fit.
    """
    if len(lens.map.blocks) <= 20:
        raise TaskError(f"bench engine needs more than 20 blocks, not {len(lens.map.blocks)}")
    train, test = _pairs(lens, *((8, 8) if quick else (TRAIN, TEST)))
    repeats = 1 if quick else 9
    sites = [Site.parse(text) for text in STEP_SITES]
    captured = capture(lens, train, sites)
    growth = _growth(lens, train, quick)
    peak = peak_rss_bytes()
    fits = whole_fits(
        lens,
        train,
        test,
        [Site.parse(text) for text in FIT_SITES],
        pythons or {},
        whole=whole,
        **({"steps": 4, "few": 2} if quick else {}),
    )
    return {
        "schema": SCHEMA,
        "setting": {
            "model": lens.id,
            "dtype": str(lens.dtype).removeprefix("torch."),
            "device": str(lens.device),
            "threads": torch.get_num_threads(),
            "template": TEMPLATE,
            "pairs": len(train),
            "held_out_pairs": len(test),
            "tokens": len(train[0].base.ids),
            "repeats": repeats,
        },
        "fits": fits,
        "steps": {str(site): _steps(captured.at(site), repeats) for site in sites},
        "map": _map(lens, train, 3 if quick else len(lens.map.blocks)),
        "growth": growth,
        "peak_rss_bytes": peak,
    }


def profile_step(lens: LensModel, site: Site, *, steps: int = 5) -> dict[str, float]:
    """Where the time of a DAS step at `site` goes: share of each operation, largest first, by
    PyTorch's profiler, on the training pairs of `bench_engine`."""
    train, _ = _pairs(lens, TRAIN, TEST)
    step = peers.engine(capture(lens, train, [site]).at(site))
    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(steps):
            step()
    times = {event.key: event.self_cpu_time_total for event in profile.key_averages()}
    total = sum(times.values())
    return {name: times[name] / total for name in sorted(times, key=times.__getitem__)[::-1]}


def medians(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each, run in turns after one round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in track(range(-1, repeats), "bench " + ", ".join(runs)):
        for name, run in runs.items():
            seconds[name].append(_timed(run))
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def _timed(run: Callable[[], object]) -> float:
    gc.collect()
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _pairs(lens: LensModel, count: int, held_out: int) -> tuple[PairSet, PairSet]:
    """Training and held-out pairs of the one template."""
    task = ioi(lens.tokenizer, train=6 * count, test=6 * held_out, held_out=0)

    def chosen(pairs: PairSet) -> PairSet:
        return PairSet("ioi", pairs.split, tuple(p for p in pairs if p.template == TEMPLATE))

    train, test = chosen(task.train), chosen(task.test)
    if len({len(p.ids) for pair in (*train, *test) for p in (pair.base, pair.source)}) != 1:
        raise TaskError(f"bench engine: prompts of template {TEMPLATE} differ in length here")
    return train, test


def _seconds(times: dict[str, float], names: Sequence[str]) -> dict[str, float | None]:
    return {f"{name}_seconds": times.get(name) for name in names}


def _steps(replay: Replay, repeats: int) -> dict[str, float | None]:
    runs: dict[str, Callable[[], object]] = {
        "engine": peers.engine(replay),
        "hooks": peers.hooks(replay.lens, replay.pairs, replay.site),
        "floor": peers.floor(replay),
    }
    return _seconds(medians(runs, repeats), tuple(runs))


def _map(lens: LensModel, pairs: PairSet, layers: int) -> dict[str, float | None]:
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

    times = medians({"engine": by_replay, "hooks": by_hooks}, 1)
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
