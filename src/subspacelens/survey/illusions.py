"""The illusion map: where in a model DAS must not be trusted.

At every MLP and label an illusion is built by hand (`construct.py`) and patched. Where it moves the
answer though the whole component does not, and though its connected part alone does not, an
optimiser that is free to choose a direction there will find such a one, whatever the model does.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ..certify import require_streams
from ..core.errors import SiteError, TaskError
from ..core.files import write_atomically
from ..core.machine import quarter_free
from ..core.progress import bar
from ..core.records import Estimate, ModelRecord, Record, read_record
from ..core.site import Site
from ..core.statistics import auroc
from ..engine.capture import capture, check_pairs
from ..engine.effect import Effect
from ..engine.replay import Replay
from ..fit.closed_form import by_class
from ..measure.groups import capture_groups
from ..model.lens import LensModel
from ..tasks.pairset import PairSet, Task
from .construct import (
    Construction,
    along,
    constructions,
    has_classes,
    random_write,
    sensed,
    targets,
    written_through,
)

SCHEMA: Final = "subspacelens.illusions/1"
RANDOM_WRITES = 3
WORKS = 0.15
SHARE = 1 / 3


class Illusion(Record):
    """One construction. `effect`: FLDD of its patch; `connected`: of the patch along its connected
    part d alone. `degrees`: θ (of the median pair). `amplification`: mean change along d that the
    patch writes, over the mean change along d between natural base and source. `carries`: how well
    d alone tells the classes apart in natural activations (AUROC, 0.5 to 1), None without classes.
    """

    effect: Estimate
    connected: Estimate
    degrees: float
    amplification: float
    carries: float | None


class SiteIllusions(Record):
    """One MLP at one label. `illusions["transpose of gradient"]`: by writing and target (see
    `construct.py`). `whole`: FLDD of patching the whole activation. `random`: FLDD with the
    same reading and random writings of the row space, mean and range. `sensed`: AUROC of n."""

    layer: int
    label: str
    whole: Estimate
    illusions: dict[str, Illusion]
    random: Estimate
    sensed: float | None

    @property
    def best(self) -> Illusion:
        """The construction with the largest effect."""
        return max(self.illusions.values(), key=lambda built: built.effect.value or 0.0)

    @property
    def works(self) -> bool:
        """The best illusion does at least `WORKS`, the whole component and the connected part alone
        each less than a third of that in size."""
        effect = self.best.effect.value or 0.0
        others = (self.whole.value, self.best.connected.value)
        return effect >= WORKS and all(abs(o or 0.0) < SHARE * effect for o in others)


class IllusionMap(Record):
    """Schema `subspacelens.illusions/1`. `one_for_all`: one direction a site, built on
    `train_pairs` others; else each pair has a direction of its own, built on itself.

    >>> illusions = sl.survey(lens, task, ["END"])
    >>> [(site.layer, site.best.effect.value) for site in illusions.sites]
    """

    schema_: Literal["subspacelens.illusions/1"] = Field(SCHEMA, alias="schema")
    model: ModelRecord
    task: str
    train_pairs: int
    test_pairs: int
    test_sha256: str
    one_for_all: bool
    clean_logit_diff: float
    layers: int
    labels: list[str]
    sites: list[SiteIllusions]
    seconds: float

    def at(self, layer: int, label: str) -> SiteIllusions:
        """One site. Raises `SiteError` if it is not in the map."""
        for site in self.sites:
            if (site.layer, site.label) == (layer, label):
                return site
        raise SiteError(f"L{layer}.mlp_act@{label} is not in this map of {', '.join(self.labels)}")

    def working(self, label: str) -> list[int]:
        """Layers at which a constructed illusion works."""
        return [site.layer for site in self.sites if site.label == label and site.works]

    def save(self, path: Path) -> None:
        """Writes JSON, whole or not at all."""
        write_atomically(path, self.model_dump_json(indent=1, by_alias=True).encode())

    @classmethod
    def load(cls, path: Path | str) -> IllusionMap:
        """Reads what `save` wrote; raises `ResultError` for anything else."""
        return read_record(cls, path, f"{SCHEMA} record")


def illusion_map(
    lens: LensModel,
    task: Task,
    labels: Iterable[str],
    *,
    layers: Iterable[int] | None = None,
    pairs: int = 64,
    shifted: bool = False,
    memory: int | None = None,
    seed: int = 0,
) -> IllusionMap:
    """Builds and patches an illusion at every layer's MLP and label, without training.

    With the feature's class in every pair, directions are built on the first `pairs` training pairs
    and patched in the first `pairs` test pairs; else each test pair has its own. `memory` is the
    budget in bytes of captures and replays. Raises `SiteError` where the model has no MLP
    activations, `TaskError` for a label that the pairs lack.

    >>> illusions = sl.survey(lens, task, ["S2", "END"])
    >>> illusions.working("S2")  # layers
    >>> illusions.at(18, "S2").best.effect  # FLDD
    """
    started = time.perf_counter()
    labels = tuple(dict.fromkeys(labels))
    if not labels:
        raise TaskError(f"no label to map: task {task.name} has {', '.join(task.test.labels)}")
    chosen = range(len(lens.map.blocks)) if layers is None else tuple(layers)
    sites = [Site(layer, "mlp_act", label) for layer in chosen for label in labels]
    train, test = task.train[:pairs], task.test[:pairs]
    for site in sites:
        check_pairs(test, site, shifted=shifted)
        if lens.map.writer(site) is None:
            raise SiteError(f"site {site} writes through a norm, so its kernel is not W's")
    require_streams(lens, sites)
    memory = memory or quarter_free(lens.map.devices)
    one_for_all = has_classes(train) and has_classes(test)
    first = train.pairs if one_for_all else ()
    together = PairSet(test.name, "all", (*first, *test.pairs))
    built: list[SiteIllusions] = []
    clean = 0.0
    with bar("illusion map", len(sites)) as show:
        for group in capture_groups(lens, together, sites, memory // 2):
            both = [place for site in group for place in (site, _after(site))]
            whole = capture(lens, together, both, shifted=shifted, memory=memory)
            on_test = whole.select(test, torch.arange(len(first), len(together)))
            clean = float(on_test.clean.logit_diff.double().mean())
            built_on = whole.select(train, torch.arange(len(first))) if one_for_all else on_test
            for site in group:
                case = _Case(site, built_on.at(site), built_on.at(_after(site)), on_test.at(site))
                built.append(_at(case, one_for_all, seed))
                show(len(built), "illusion map")
    return IllusionMap(
        schema=SCHEMA,
        model=ModelRecord(
            id=lens.id, weights_sha256=lens.weights_sha256, dtype=str(lens.dtype).split(".")[-1]
        ),
        task=task.name,
        train_pairs=len(train),
        test_pairs=len(test),
        test_sha256=test.sha256,
        one_for_all=one_for_all,
        clean_logit_diff=clean,
        layers=len(lens.map.blocks),
        labels=list(labels),
        sites=sorted(built, key=lambda site: labels.index(site.label)),
        seconds=time.perf_counter() - started,
    )


def _after(site: Site) -> Site:
    return Site(site.layer, "resid_post", site.label)


@dataclass(frozen=True)
class _Case:
    """One MLP site: what illusions are built on, there and behind the layer, and what they are
    patched in."""

    site: Site
    train: Replay
    train_after: Replay
    test: Replay


def _at(case: _Case, one_for_all: bool, seed: int) -> SiteIllusions:
    weight, split = written_through(case.test.lens, case.site)
    feature = sensed(case.train, one_for_all=one_for_all)
    built = {
        f"{writing} of {name}": construction
        for name, target in targets(case.train_after, one_for_all=one_for_all).items()
        for writing, construction in constructions(weight, split, feature, target).items()
    }
    change = case.test.difference
    generator = torch.Generator().manual_seed(seed)
    noise = random_write(split, RANDOM_WRITES, generator)
    read = next(iter(built.values())).read
    patches = [change.cpu().double()]
    for construction in built.values():
        patches += [along(construction.direction, change), along(construction.write, change)]
    patches += [along((read + write) / 2**0.5, change) for write in noise]
    outcomes = case.test.delta_outcomes(torch.stack(patches).to(change), decided=True)
    effects = [
        Effect(case.test.pairs, case.test.clean, outcomes[number]).fldd
        for number in range(len(patches))
    ]
    return SiteIllusions(
        layer=case.site.layer,
        label=case.site.label,
        whole=effects[0],
        illusions={
            name: _described(each, case.test, effects[1 + 2 * i], effects[2 + 2 * i], one_for_all)
            for i, (name, each) in enumerate(built.items())
        },
        random=_range(effects[-RANDOM_WRITES:]),
        sensed=_separation(case.test, read) if one_for_all else None,
    )


def _range(estimates: Sequence[Estimate]) -> Estimate:
    """Mean, smallest and largest value; None of them where one is missing."""
    values = [each.value for each in estimates if each.value is not None]
    if len(values) < len(estimates):
        return Estimate(value=None)
    return Estimate(value=float(np.mean(values)), low=min(values), high=max(values))


def _described(
    built: Construction, test: Replay, effect: Estimate, connected: Estimate, one_for_all: bool
) -> Illusion:
    change = test.difference.cpu().double()
    written = (along(built.direction, change) * built.write).sum(-1).abs().mean()
    natural = (built.write * change).sum(-1).abs().mean()
    return Illusion(
        effect=effect,
        connected=connected,
        degrees=float(built.angle.median().rad2deg()),
        amplification=float(written / natural.clamp(min=1e-12)),
        carries=_separation(test, built.write) if one_for_all else None,
    )


def _separation(replay: Replay, direction: Tensor) -> float:
    """How well the projection tells the classes apart: AUROC, whichever way round."""
    x, z = by_class(replay)
    area = auroc(x.cpu().double() @ direction[0], z)
    return max(area, 1 - area)
