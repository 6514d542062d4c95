"""The illusion map: where in a model DAS must not be trusted.

At every MLP and label an illusion is built by hand (`construct.py`) and patched. Where it moves the
answer though the whole component does not, and though its connected part alone does not, an
optimiser that is free to choose a direction there will find such a one, whatever the model does.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, Literal

import psutil
import torch
from pydantic import Field
from torch import Tensor

from ..certify import require_streams
from ..core.errors import SiteError, TaskError
from ..core.files import write_atomically
from ..core.geometry import Split
from ..core.progress import track
from ..core.records import Estimate, ModelRecord, Record, read_record
from ..core.site import Site
from ..core.statistics import auroc, ratio
from ..engine.capture import Capture, capture, check_pairs
from ..measure.effects import Scorer
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
        return max(self.illusions.values(), key=lambda found: found.effect.value or 0.0)

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

    >>> illusions = survey(lens, task, ["END"])
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

    >>> illusions = survey(lens, task, ["S2", "END"])
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
    memory = memory or psutil.virtual_memory().available // 4
    found: list[SiteIllusions] = []
    clean, split = 0.0, None
    for train_of, test_of, site in _captured(lens, train, test, sites, shifted, memory):
        if split is None or found[-1].layer != site.layer:
            split = written_through(lens, site)
        found.append(_at(lens, train_of, test_of, site, *split, seed))
        clean = float(test_of.clean.logit_diff.double().mean())
    return IllusionMap(
        schema=SCHEMA,
        model=ModelRecord(
            id=lens.id, weights_sha256=lens.weights_sha256, dtype=str(lens.dtype).split(".")[-1]
        ),
        task=task.name,
        train_pairs=len(train),
        test_pairs=len(test),
        test_sha256=test.sha256,
        one_for_all=has_classes(train) and has_classes(test),
        clean_logit_diff=clean,
        layers=len(lens.map.blocks),
        labels=list(labels),
        sites=sorted(found, key=lambda site: labels.index(site.label)),
        seconds=time.perf_counter() - started,
    )


def _captured(
    lens: LensModel, train: PairSet, test: PairSet, sites: list[Site], shifted: bool, memory: int
) -> Iterator[tuple[Capture | None, Capture, Site]]:
    """Captures of training and test pairs for each site in turn, as many sites a pass as fit."""
    one_for_all = has_classes(train) and has_classes(test)
    parts = (train, test) if one_for_all else (test,)
    together = PairSet(test.name, "all", tuple(pair for part in parts for pair in part.pairs))
    groups = capture_groups(lens, together, sites, memory // 2)
    bar = iter(track(range(len(sites)), "illusion map"))
    for group in groups:
        both = [place for site in group for place in (site, _after(site))]
        whole = capture(lens, together, both, shifted=shifted, memory=memory)
        ends = torch.arange(len(together)).split([len(part) for part in parts])
        pieces = [whole.select(part, where) for part, where in zip(parts, ends, strict=True)]
        for site in group:
            next(bar)
            yield (pieces[0] if one_for_all else None), pieces[-1], site
    next(bar, None)


def _after(site: Site) -> Site:
    return Site(site.layer, "resid_post", site.label)


def _at(
    lens: LensModel, train: Capture | None, test: Capture, site: Site, weight: Tensor, split: Split,
    seed: int,
) -> SiteIllusions:  # fmt: skip
    feature = sensed(train, test, site)
    built = {
        f"{writing} of {name}": found
        for name, target in targets(lens, train, test, _after(site)).items()
        for writing, found in constructions(weight, split, feature, target).items()
    }
    change = test.difference(site)
    generator = torch.Generator().manual_seed(seed)
    noise = random_write(split, RANDOM_WRITES, generator)
    read = next(iter(built.values())).read
    patches = [change.cpu().double()]
    for found in built.values():
        patches += [along(found.direction, change), along(found.write, change)]
    patches += [along((read + write) / 2**0.5, change) for write in noise]
    deltas = torch.stack(patches).to(change)
    outcomes = test.at(site).delta_outcomes(deltas)
    scorer = Scorer.of(test)
    drops = scorer.clean - outcomes.logit_diff.double().numpy()

    def fldd(index: int) -> Estimate:
        return ratio(drops[index], scorer.clean, scorer.units)

    by_chance = drops[-RANDOM_WRITES:].sum(1) / scorer.clean.sum()
    return SiteIllusions(
        layer=site.layer,
        label=site.label,
        whole=fldd(0),
        illusions={
            name: _described(found, test, site, fldd(1 + 2 * i), fldd(2 + 2 * i), train)
            for i, (name, found) in enumerate(built.items())
        },
        random=Estimate(
            value=float(by_chance.mean()), low=float(by_chance.min()), high=float(by_chance.max())
        ),
        sensed=None if train is None else _separation(test, site, read),
    )


def _described(
    built: Construction, test: Capture, site: Site, effect: Estimate, connected: Estimate,
    train: Capture | None,
) -> Illusion:  # fmt: skip
    change = test.difference(site).cpu().double()
    written = (along(built.direction, change) * built.write).sum(-1).abs().mean()
    natural = (built.write * change).sum(-1).abs().mean()
    return Illusion(
        effect=effect,
        connected=connected,
        degrees=float(built.angle.median().rad2deg()),
        amplification=float(written / natural.clamp(min=1e-12)),
        carries=None if train is None else _separation(test, site, built.write),
    )


def _separation(captured: Capture, site: Site, direction: Tensor) -> float:
    """How well the projection tells the classes apart: AUROC, whichever way round."""
    x = torch.cat([captured.base[site], captured.source[site]]).cpu().double() @ direction[0]
    pairs = captured.pairs.pairs
    z = torch.tensor([p.z[0] for p in pairs if p.z] + [p.z[1] for p in pairs if p.z])
    found = auroc(x, z)
    return max(found, 1 - found)
