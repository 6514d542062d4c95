"""Our fit of one direction, in a process like those of its rivals:
`python -m subspacelens.bench.own_process NAME JOB`."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ..core.site import Site
from ..engine.buckets import place_of
from ..engine.capture import Capture, capture
from ..engine.replay import Piece, Replay
from ..fit.registry import named
from ..model.hooks import at_columns, on_output
from ..model.lens import LensModel
from ..model.loading import load_model
from ..tasks.pairset import Pair, PairSet, Prompt
from .peer_process import Reporter, main, warm

BUDGETS = (1, 2, 4, 8, None)
"""Steps that the fit may take, from the beginning each time; None is its default."""


class FullPasses(Replay):
    """A replay that is none: every patch runs all of the base prompt, with a plain hook."""

    def _hidden(self, piece: Piece, delta: Tensor) -> Tensor:
        place, module = place_of(self.lens.map, self.site)
        bases = [self.pairs[i].base for i in piece.pairs.tolist()] * len(delta)
        ids = torch.tensor([base.ids for base in bases], device=self.lens.device)
        columns = torch.tensor([base.columns[self.site.label] for base in bases])
        flat, ends = delta.flatten(0, 1), []
        part = self.lens.map.part(self.site)
        with (
            at_columns(place, module, columns, lambda x: x + flat.to(x), part=part),
            on_output(self.lens.map.blocks[-1].module, lambda x: ends.append(x[:, -1])),
        ):
            self.lens.map.inner(input_ids=ids, use_cache=False)
        return ends[0].unflatten(0, delta.shape[:2])


class HookedCapture(Capture):
    """A capture whose sites are patched by `FullPasses`."""

    def at(self, site: Site | str, lens: LensModel | None = None) -> Replay:
        return _parts_of(super().at(site, lens), FullPasses)


def _parts_of(value: Replay | Capture, kind: Callable[..., Any]) -> Any:
    own = (each.name for each in fields(value) if each.init)
    return kind(**{name: getattr(value, name) for name in own})


def by_ours(job: SimpleNamespace, reporter: Reporter, *, hooked: bool = False) -> None:
    """Capture and `das`, from the beginning for each of `BUDGETS`; a report is of a whole fit. The
    model is loaded anew for each, so that what the engine proves of a model once is counted."""
    for budget in BUDGETS:
        _fitted(job, reporter, budget, hooked)
        gc.collect()


def _fitted(job: SimpleNamespace, reporter: Reporter, budget: int | None, hooked: bool) -> None:
    site, das = Site.parse(job.site), named("das")
    pairs = _pairs(job, site)
    began = time.perf_counter()
    lens = load_model(job.model, device=job.device, dtype=job.dtype)
    warm(lens.map.inner, job)
    if budget == BUDGETS[0]:
        reporter.ready(time.perf_counter() - began, ("torch", "transformers"))
    reporter.start()
    captured = capture(lens, pairs, [site])
    if hooked:
        captured = _parts_of(captured, HookedCapture)
    found = das(lens, captured, site, **({} if budget is None else {"steps": budget}))
    reporter.step(found.fit["last_loss"], found.basis, round(found.fit["passes"]))


def _pairs(job: SimpleNamespace, site: Site) -> PairSet:
    def prompt(ids: list[int], column: int) -> Prompt:
        return Prompt("", tuple(ids), {site.label: column, "END": len(ids) - 1})

    rows = zip(
        job.base.tolist(), job.source.tolist(), job.columns.tolist(), job.answers.tolist(),
        strict=True,
    )  # fmt: skip
    pairs = (
        Pair(base=prompt(base, column), source=prompt(source, column), answer=answer, target=target)
        for base, source, column, (answer, target) in rows
    )
    return PairSet("bench", "train", tuple(pairs))


OWN = {"subspacelens": by_ours, "hooks, our recipe": partial(by_ours, hooked=True)}

if __name__ == "__main__":
    main(OWN[sys.argv[1]], sys.argv[2])
