"""DAS, or another fit, at every MLP of a model: where it finds an effect, and how often that is an
illusion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from ..audit.record import Scatter, VerdictName, load_audit
from ..audit.run import AUDIT_FILE, SUBSPACE_FILE
from ..audit.verdict import SMALLEST_FLDD
from ..certify import centred
from ..core.geometry import Split
from ..core.records import Estimate, Record
from ..core.statistics import Units, auroc, proportion
from ..engine.capture import capture
from ..engine.replay import Replay
from ..fit.subspace import Subspace
from ..model.lens import LensModel
from ..sweep.grid import FitSpec, Grid, TaskSpec
from ..sweep.plan import cells_of, facts_of
from ..sweep.run import Backend, run_sweep
from ..sweep.store import Store
from ..tasks.pairset import Task


class DasSite(Record):
    """The audit of what a `fit` found at one MLP. `cos_null`, `cos_row`: mean absolute cosine of
    the difference Δ with the disconnected and the connected part of the direction. `sees_null`,
    `sees_row`: how well either part alone tells the classes apart (AUROC)."""

    fit: str = "das"
    layer: int
    label: str
    verdict: str
    score: float
    effect: Estimate
    whole: Estimate
    connected: Estimate
    cos_null: float | None
    cos_row: float | None
    sees_null: float | None
    sees_row: float | None

    @property
    def has_effect(self) -> bool:
        """The interval of the effect excludes 0 and it is at least `SMALLEST_FLDD`."""
        return (self.effect.low or 0.0) > 0 and (self.effect.value or 0.0) >= SMALLEST_FLDD


class Share(Record):
    """`count` of `total`, with a 95 % interval over layers: sites of one layer, at several labels,
    share its MLP and are no draws of their own."""

    count: int
    total: int
    estimate: Estimate

    @classmethod
    def of(cls, hits: Mapping[tuple[int, str], bool]) -> Share:
        """`hits`: by layer and label whether a site is one."""
        if not hits:
            return cls(count=0, total=0, estimate=Estimate(value=None))
        values = np.array(list(hits.values()))
        estimate = proportion(values, Units.of(layer for layer, _ in hits))
        return cls(count=int(values.sum()), total=len(values), estimate=estimate)


def shares(sites: Sequence[DasSite]) -> dict[str, Share]:
    """Of all sites those where the fit finds an effect; of these, those of each verdict."""
    effective = [site for site in sites if site.has_effect]
    by_name = {"effect": Share.of({(s.layer, s.label): s.has_effect for s in sites})}
    for verdict in get_args(VerdictName):
        hits = {(site.layer, site.label): site.verdict == verdict for site in effective}
        by_name[verdict] = Share.of(hits)
    return by_name


def das_grid(
    model: str,
    task: TaskSpec,
    labels: Sequence[str],
    *,
    pairs: int,
    steps: int,
    fits: Sequence[str] = ("das",),
    seed: int = 0,
    **settings: Any,
) -> Grid:
    """An audit of one direction of each of the `fits` at every MLP and label; `steps` are those of
    `das`, `settings` those of `Grid`."""
    return Grid(
        models=(model,),
        tasks=(task,),
        sites=tuple(f"L*.mlp_act@{label}" for label in labels),
        fits=tuple(FitSpec(f, steps=steps) if f == "das" else FitSpec(f) for f in fits),
        seeds=(seed,),
        pairs=pairs,
        **settings,
    )


def das_sites(
    lens: LensModel,
    task: Task,
    grid: Grid,
    directory: Path,
    *,
    backend: Backend = "local",
    workers: int | None = None,
) -> tuple[list[DasSite], int]:
    """Runs the grid, or what is missing of it, into the store `directory`, and reads the records of
    its own cells, whatever else the store holds, by fit; with the number of cells that failed.

    >>> grid = das_grid("smollm2", TaskSpec(name="ioi"), ["S2", "END"], pairs=64, steps=80)
    >>> sites, failed = das_sites(lens, task, grid, Path("runs/das"))
    >>> shares(sites)["illusory"].count
    """
    models = [facts_of(spec, grid) for spec in grid.models]
    tally = run_sweep(grid, directory, backend=backend, workers=workers, models=models)
    store = Store(directory, create=False)
    cells = [cell for cell in cells_of(grid, models) if store.has(cell.key)]
    if not cells:
        return [], tally.failed
    where = dict.fromkeys(cell.site for cell in cells)
    captured = capture(lens, task.test[: grid.pairs], where, shifted=grid.shifted)
    sites = []
    for cell in sorted(cells, key=lambda cell: grid.fits.index(cell.fit)):
        site, folder = cell.site, store.path(cell.key)
        record = load_audit(folder / AUDIT_FILE)
        basis = Subspace.load(folder / SUBSPACE_FILE, lens, site).basis.double()
        cosines = _cosines(captured.at(site), basis)
        fldd = {name: record.effects[name].fldd for name in ("subspace", "full", "row")}
        sites.append(
            DasSite(
                fit=cell.fit.method, layer=site.layer, label=site.label,
                verdict=record.verdict.label, score=record.verdict.score,
                effect=fldd["subspace"], whole=fldd["full"],
                connected=fldd["row"], cos_null=cosines[0], cos_row=cosines[1],
                sees_null=_sees(record.figures.null_projection),
                sees_row=_sees(record.figures.row_projection),
            )
        )  # fmt: skip
    return sites, tally.failed


def _cosines(replay: Replay, basis: torch.Tensor) -> tuple[float | None, ...]:
    if replay.writer is None:
        return None, None
    split = Split.of(replay.writer, centred=centred(replay.lens))
    change = replay.difference.cpu().double()
    return tuple(
        float(torch.cosine_similarity(change, part[:, 0][None], dim=1).abs().mean())
        for part in (split.null(basis), split.row(basis))
    )


def _sees(scatter: Scatter | None) -> float | None:
    if scatter is None or not scatter.z0 or not scatter.z1:
        return None
    z = [0] * len(scatter.z0) + [1] * len(scatter.z1)
    area = auroc(torch.tensor(scatter.z0 + scatter.z1), torch.tensor(z))
    return max(area, 1 - area)
