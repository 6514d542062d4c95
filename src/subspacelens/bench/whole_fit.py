"""The whole fit to equal loss: ours and those of its rivals, each in a process of its own."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.errors import LensError, TaskError
from ..core.progress import track
from ..core.site import Site
from ..engine.buckets import place_of
from ..engine.capture import capture
from ..engine.effect import fldd_of
from ..engine.patches import SubspacePatch
from ..engine.replay import Replay
from ..model.gguf import write_hub_folder
from ..model.lens import LensModel
from ..tasks.pairset import PairSet
from . import peer_process
from .environments import PACKAGES
from .peers import LR, first_direction
from .shadow import shadow

OURS, OUR_RECIPE = "subspacelens", "hooks, our recipe"
NAMES = ("hooks", OUR_RECIPE, *PACKAGES, OURS)
SHARE = 0.99
SAME_LOSS = 0.01
"""Nats by which the losses of the same steps may differ where some stand for others."""


@dataclass(frozen=True)
class Point:
    """A fit after some steps: seconds so far, the training loss of the last step in nats, and the
    held-out FLDD of its direction."""

    steps: int
    seconds: float
    loss: float
    fldd: float


@dataclass(frozen=True, kw_only=True)
class Course:
    """How one fit went. `loss_error`: the largest difference, in nats, of its training losses from
    those that the replay gives for the same directions; None for a fit of one step."""

    name: str
    points: tuple[Point, ...]
    peak_rss_bytes: int
    load_seconds: float
    loss_error: float | None
    versions: Mapping[str, str] = field(repr=False)

    @property
    def step_seconds(self) -> float:
        """Median over the steps."""
        seconds = [point.seconds for point in self.points]
        pairs = zip([0.0, *seconds], seconds, strict=False)
        return statistics.median(after - before for before, after in pairs)

    @property
    def best(self) -> float:
        """The largest held-out FLDD."""
        return max(point.fldd for point in self.points)

    def reaching(self, fldd: float) -> Point | None:
        """The first point whose held-out FLDD is that large; None if there is none."""
        return _first(self.points, fldd)

    def continued(self, further: Sequence[Point], fldd: float) -> Point | None:
        """Where it would reach `fldd`, at its own pace, if it went on like `further`: the same
        steps, and those that follow. None if they do not get there, or their losses differ."""
        there, last = _first(further, fldd), self.points[-1]
        pairs = zip(self.points, further, strict=False)
        if there is None or any(abs(a.loss - b.loss) > SAME_LOSS for a, b in pairs):
            return None
        return replace(there, seconds=last.seconds + (there.steps - last.steps) * self.step_seconds)


def _first(points: Sequence[Point], fldd: float) -> Point | None:
    return next((point for point in points if point.fldd >= fldd), None)


def whole_fits(
    lens: LensModel,
    train: PairSet,
    test: PairSet,
    sites: Sequence[Site],
    pythons: Mapping[str, Path],
    *,
    steps: int = 120,
    few: int = 6,
    whole: bool = False,
) -> dict[str, dict]:
    """One direction at each of `sites` by every rival, on the same pairs, from the same start where
    the rival takes one.

    Ours and plain hooks run to their end: the target is `SHARE` of the best held-out FLDD that
    either reached. Our recipe by hooks and TransformerLens run until it is reached. pyvene runs
    `few` steps; how many it needs is found by its `shadow`, and counted at its own pace. With
    `whole` all run to their end, and the best is that of anyone. `seconds` are None for what does
    not reach it.

    Raises `TaskError` where the model does not prefer the held-out pairs' answers, and `LensError`
    where our fit or that by hooks fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        model.mkdir()
        write_hub_folder(lens.model, lens.tokenizer, model)
        found = {}
        for site in sites:
            job = Path(folder) / "job.json"
            job.write_text(json.dumps(job_of(lens, train, site, model, steps)))
            found[str(site)] = _at(lens, train, test, site, pythons, job, few, whole)
    return found


def job_of(lens: LensModel, train: PairSet, site: Site, model: Path, steps: int) -> dict:
    """What a process needs to know: the model's folder, the place, token ids (n, T), columns (n,),
    ids of answer and target (n, 2), and the recipe."""
    _, module = place_of(lens.map, site)
    return {
        "model": str(model),
        "device": str(lens.device),
        "dtype": str(lens.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "site": str(site),
        "layer": site.layer,
        "module": next(name for name, child in lens.model.named_modules() if child is module),
        "base": [pair.base.ids for pair in train],
        "source": [pair.source.ids for pair in train],
        "columns": [pair.base.columns[site.label] for pair in train],
        "answers": [(pair.answer, pair.target) for pair in train],
        "start": first_direction(lens.map.dim(site)).flatten().tolist(),
        "steps": steps,
        "lr": LR,
    }


def _at(
    lens: LensModel,
    train: PairSet,
    test: PairSet,
    site: Site,
    pythons: Mapping[str, Path],
    job: Path,
    few: int,
    whole: bool,
) -> dict:
    known, judged = (capture(lens, pairs, [site]).at(site) for pairs in (train, test))
    if not float(judged.clean.logit_diff.mean()) > 0:
        raise TaskError(f"{lens.id} does not prefer the answers of the held-out pairs: no FLDD")

    def run(name: str, **until: Any) -> Course:
        script = Path(peer_process.__file__)
        command = (
            [sys.executable, "-m", "subspacelens.bench.own_process", name, str(job)]
            if name in (OURS, OUR_RECIPE)
            else [str(pythons.get(name, sys.executable)), "-I", str(script), name, str(job)]
        )
        return course(name, command, known, judged, **until)

    courses = {name: run(name) for name in (OURS, "hooks")}
    target = SHARE * max(course.best for course in courses.values())
    stop = {} if whole else {"target": target}
    courses[OUR_RECIPE] = run(OUR_RECIPE, **stop)
    failed = {}
    for name in PACKAGES:
        if name not in pythons:
            failed[name] = "not installed"
            continue
        try:
            courses[name] = run(name, **stop, most=few if not whole and name == "pyvene" else None)
        except LensError as error:
            failed[name] = str(error)
    if whole:
        target = SHARE * max(course.best for course in courses.values())
    rows = {name: _row(each, target) for name, each in courses.items()}
    if "pyvene" in courses and not whole:
        steps = enumerate(shadow(known, job), 1)
        points = [Point(n, 0.0, loss, _fldd(judged, basis)) for n, (loss, basis) in steps]
        rows["pyvene"] = _row(courses["pyvene"], target, points)
    rows |= {name: {"run": "not run", "why": why, "seconds": None} for name, why in failed.items()}
    return {"held_out_fldd": target, "fits": {name: rows[name] for name in NAMES}}


def _row(course: Course, target: float, further: Sequence[Point] = ()) -> dict:
    """`further`: the same steps and those that would follow, made by other means."""
    there, run, why = course.reaching(target), "whole", "never that good"
    if there is None and further:
        there = course.continued(further, target)
        run = f"{len(course.points)} steps"
        if _first(further, target) is not None:
            why = "the replay's losses are others"
    return {
        "run": run,
        "why": None if there else why,
        "seconds": there and there.seconds,
        "steps": there and there.steps,
        "step_seconds": None if course.name in (OURS, OUR_RECIPE) else course.step_seconds,
        "best_fldd": course.best,
        "loss_error": course.loss_error,
        "peak_rss_bytes": course.peak_rss_bytes,
        "load_seconds": course.load_seconds,
        "versions": dict(course.versions),
        "curve": [[p.steps, p.seconds, p.loss, p.fldd] for p in course.points],
    }


def course(
    name: str,
    command: Sequence[str],
    known: Replay,
    judged: Replay,
    *,
    most: int | None = None,
    target: float = float("inf"),
) -> Course:
    """Runs a fit until it ends, has made `most` steps, or its FLDD on `judged` is at least
    `target`. Raises `LensError` where the process fails."""
    points: list[Point] = []
    replayed: list[float] = []
    with closing(reports(name, command)) as lines:
        lines_left = track(lines, f"{name} at {judged.site}")
        first = last = next(lines_left)
        for last in lines_left:
            basis = torch.tensor(last["direction"], device=judged.base.device)[:, None]
            fldd = _fldd(judged, basis)
            points.append(Point(last["steps"], last["seconds"], last["loss"], fldd))
            replayed.append(_loss(known, basis))
            if len(points) == most or fldd >= target:
                break
    if not points:
        raise LensError(f"{name} ended without a step")
    errors = [abs(point.loss - loss) for point, loss in zip(points[1:], replayed[:-1], strict=True)]
    return Course(
        name=name,
        points=tuple(points),
        peak_rss_bytes=last["peak_rss_bytes"],
        load_seconds=first["load_seconds"],
        loss_error=None if name in (OURS, OUR_RECIPE) else max(errors, default=None),
        versions=first["versions"],
    )


def reports(name: str, command: Sequence[str]) -> Generator[dict]:
    """The lines of JSON that a process writes, which goes on when the next one is asked for and is
    told to stop when the iterator is closed. Raises `LensError`, with the last line of its errors,
    where it fails, or writes something else."""
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        assert process.stdin is not None and process.stdout is not None
        try:
            with suppress(BrokenPipeError):
                for line in process.stdout:
                    yield _object(name, line)
                    process.stdin.write("on\n")
                    process.stdin.flush()
        finally:
            with suppress(BrokenPipeError):
                process.stdin.close()
            process.wait()
        if process.returncode:
            errors.seek(0)
            lines = errors.read().strip().splitlines()
            raise LensError(f"{name} failed: {lines[-1] if lines else process.returncode}")


def _object(name: str, line: str) -> dict:
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise LensError(f"{name} wrote a line that is no report: {line.strip()[:80]}")
    return found


def _fldd(replay: Replay, basis: Tensor) -> float:
    clean = replay.clean.logit_diff.double()
    patched = replay.outcomes(SubspacePatch(basis)).logit_diff.double()
    return float(fldd_of((clean - patched).numpy(), clean.numpy()))


def _loss(replay: Replay, basis: Tensor) -> float:
    return float(replay.outcomes(SubspacePatch(basis)).logit_diff.double().mean())
