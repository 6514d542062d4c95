"""The instant map judged: what it predicts against fitted DAS and the replayed whole component.

Sites are spread over layers, streams and labels, without a look at what is there. Of each the map
predicts from the training pairs, the fit takes the same pairs, and what either does is seen on test
pairs that neither has seen.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from ..core.first_order import first_order
from ..core.geometry import orthonormal, unit
from ..core.illusion_share import illusion_share
from ..core.kept import keep, kept
from ..core.machine import quarter_free
from ..core.progress import note, track
from ..core.site import Site
from ..engine.capture import Capture, capture
from ..engine.patches import Full, ReadWrite, SubspacePatch
from ..fit import FITS
from ..measure.groups import capture_groups
from ..measure.maps import InstantMap, instant_map
from ..measure.maps.scoring import Score, along_path, available, differing
from ..model.lens import LensModel
from ..tasks.pairset import Task

Row = dict[str, Any]

QUANTITIES = ("whole", "das", "illusion")
MODES = ("first", "refined")
JUDGED = ("ioi", "agreement", "pronoun")
"""The tasks on which the map is judged, where no others are given."""
SEEN = 0.1
"""Shares of illusion are compared where the fitted subspace has at least this FLDD: of nothing
there is no share."""


def bench_instant(
    lens: LensModel,
    tasks: Sequence[Task],
    folder: Path,
    *,
    sites: int = 64,
    pairs: int = 64,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Judges the map at `sites` sites of every task, but for those where base and source are the
    same, with `pairs` pairs to fit on and as many to judge on. `options` are those of the fit
    `das`. Each site is written to `folder` when it is done, and not done again; the result holds
    all rows and their `summary`.

    >>> bench_instant(lens, [sl.ioi(lens.tokenizer)], Path("runs/bench-instant"))["summary"]
    """
    rows: list[Row] = []
    seconds: dict[str, float] = {}
    for task in tasks:
        labels = differing(task.train[:pairs])
        found = instant_map(lens, task.train, available(lens), labels, limit=pairs)
        chosen = [s for s in spread(lens, labels, sites, seed) if found.at(s).das > 0]
        seconds[task.name] = found.seconds
        rows += [
            row
            for row in track(
                _rows(lens, task, chosen, found, folder, pairs, dict(options or {}), seed),
                f"instant map, {task.name}",
                len(chosen),
            )
        ]
    return dict(model=lens.id, pairs=pairs, map_seconds=seconds, rows=rows, summary=summary(rows))


def spread(lens: LensModel, labels: Sequence[str], count: int, seed: int) -> list[Site]:
    """`count` sites, evenly over the layers; streams, labels and heads come in turn, in an order
    that is drawn by `seed`."""
    rng = random.Random(seed)
    layers = len(lens.map.blocks)
    kinds = list(product(available(lens), labels))
    turn: list[tuple[str, str]] = []
    chosen: dict[Site, None] = {}
    for number in range(count):
        layer = number * layers // count
        turn = turn or rng.sample(kinds, len(kinds))
        stream, label = turn.pop()
        block = lens.map.blocks[layer]
        if stream in block.missing:
            continue
        head = rng.randrange(block.n_heads) if stream == "head_z" else None
        chosen[Site(layer, stream, label, head)] = None
    return list(chosen)


def _rows(
    lens: LensModel,
    task: Task,
    sites: Sequence[Site],
    found: InstantMap,
    folder: Path,
    pairs: int,
    options: dict[str, Any],
    seed: int,
) -> Iterator[Row]:
    """What is in `folder` already, then what is missing."""
    train, test = task.train[:pairs], task.test[:pairs]
    origin = dict(
        weights=found.model.weights_sha256, train=train.sha256, test=test.sha256,
        options=FITS["das"].options | options, seed=seed,
    )  # fmt: skip
    missing: list[Site] = []
    for site in sites:
        row = kept(folder / task.name / f"{site}.json", origin)
        if row is None:
            missing.append(site)
        else:
            yield row
    memory = quarter_free(lens.map.devices)
    for group in capture_groups(lens, train, missing, memory):
        fitted_on, judged_on = (capture(lens, split, group) for split in (train, test))
        for site in group:
            score = found.at(site)
            row = _row(lens, task.name, site, fitted_on, judged_on, options, seed)
            row |= dict(first=_predicted(score.whole, score.das, score.illusion), origin=origin)
            row["scale"] = found.clean_logit_diff
            keep(folder / task.name / f"{site}.json", row)
            seen = row["seen"]
            note(f"{task.name} {site}: predicted {score.das:.2f}, seen {seen['das']:.2f} nats")
            yield row


def _row(
    lens: LensModel,
    task: str,
    site: Site,
    train: Capture,
    test: Capture,
    options: Mapping[str, Any],
    seed: int,
) -> Row:
    replay, judged = train.at(site), test.at(site)
    started = time.perf_counter()
    refined = Score.of(replay.difference, along_path(replay), 1)
    refining = time.perf_counter() - started
    direction = FITS["das"](lens, train, site, dim=1, seed=seed, **options)
    fitting = time.perf_counter() - started - refining
    basis = direction.basis.double().cpu()
    closed = first_order(replay.difference, replay.gradients())
    delta = replay.difference.double().cpu()
    pattern = orthonormal(unit(delta.T @ (delta @ basis)))
    patches = {
        "whole": Full(),
        "das": SubspacePatch(basis.float()),
        "natural": ReadWrite(basis.float(), (pattern @ (pattern.T @ basis)).float()),
        "closed": SubspacePatch(closed.basis(1).float()),
    }
    effects = judged.effects(patches)
    seen = {name: float(effect.drop.mean()) for name, effect in effects.items()}
    share = 1 - min(1.0, max(0.0, seen["natural"] / seen["das"])) if seen["das"] > 0 else None
    return dict(
        task=task,
        site=str(site),
        refined=_predicted(refined.whole, refined.das, refined.illusion),
        seen=seen | dict(illusion=share),
        clean=float(judged.clean.logit_diff.double().mean()),
        cosine=float((closed.basis(1)[:, 0] @ basis[:, 0]).abs()),
        share_of_fit=_number(illusion_share(replay.difference, replay.gradients(), basis)),
        seconds=dict(refine=refining, fit=fitting),
    )


def _predicted(whole: float, das: float, illusion: float) -> dict[str, float | None]:
    return dict(whole=whole, das=das, illusion=_number(illusion))


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def points(
    rows: Sequence[Row], mode: str, quantity: str
) -> tuple[list[Row], np.ndarray, np.ndarray]:
    """Rows with a prediction of `quantity` by `mode`, and what was predicted and what was seen, in
    FLDD or as a share: effects as shares of the clean logit difference of the pairs that each is
    of."""
    there, predicted, seen = [], [], []
    for row in rows:
        before, after = row[mode][quantity], row["seen"][quantity]
        if quantity == "illusion":
            if None in (before, after) or row["seen"]["das"] < SEEN * row["clean"]:
                continue
        elif min(row["scale"], row["clean"]) <= 0:
            continue
        else:
            before, after = before / row["scale"], after / row["clean"]
        there.append(row)
        predicted.append(before)
        seen.append(after)
    return there, np.array(predicted), np.array(seen)


def summary(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """For every task and for all together, either mode and every quantity: Spearman's rank
    correlation between predicted and seen, their mean absolute distance, the slope of seen on
    predicted through the origin, and the three sites that are farthest off."""
    result = []
    names = list(dict.fromkeys(row["task"] for row in rows))
    for name, mode, quantity in product((*names, "all"), MODES, QUANTITIES):
        there, predicted, seen = points(
            [row for row in rows if name in ("all", row["task"])], mode, quantity
        )
        off = np.abs(predicted - seen)
        worst = [int(i) for i in np.argsort(-off)[:3]]
        result.append(
            dict(
                task=name,
                mode=mode,
                quantity=quantity,
                sites=len(there),
                spearman=_rank_correlation(predicted, seen),
                error=float(off.mean()) if len(off) else None,
                slope=_slope(predicted, seen),
                worst=[
                    dict(
                        site=f"{there[i]['task']} {there[i]['site']}",
                        predicted=float(predicted[i]),
                        seen=float(seen[i]),
                    )
                    for i in worst
                ],
            )
        )
    return result


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(spearmanr(a, b)[0])  # type: ignore[arg-type]


def _slope(a: np.ndarray, b: np.ndarray) -> float | None:
    size = float(a @ a)
    return float(a @ b) / size if size > 0 else None


def instant_table(result: dict[str, Any]) -> str:
    """The summary as Markdown."""
    names = {"whole": "whole component", "das": "DAS", "illusion": "share of illusion"}
    modes = {"first": "first order", "refined": "refined"}
    lines = [
        "| task | quantity | mode | sites | Spearman | mean error | slope | farthest off |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["summary"]:
        far = ", ".join(
            f"`{w['site']}` {w['predicted']:.2f} / {w['seen']:.2f}" for w in row["worst"][:2]
        )
        numbers = [_text(row[name]) for name in ("spearman", "error", "slope")]
        what = [row["task"], names[row["quantity"]], modes[row["mode"]], str(row["sites"])]
        lines.append("| " + " | ".join([*what, *numbers, far]) + " |")
    return "\n".join(lines) + "\n"


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
