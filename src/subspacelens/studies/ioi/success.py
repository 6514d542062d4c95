"""The success case: five kinds of evidence that the direction at the bottleneck is the feature."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import torch
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from ...audit.record import Scatter
from ...core.records import Estimate, Record
from ...core.site import Site
from ...core.statistics import Units, auroc_interval, proportion, ratio
from ...engine.activations import activations
from ...engine.capture import capture
from ...engine.patches import SubspacePatch
from ...engine.replay import Replay
from ...fit.subspace import Subspace
from ...measure.readers import attribute_readers, frozen
from ...model.lens import LensModel
from ...tasks import PairSet
from .circuit import Place
from .directions import Directions
from .heads import Watched, watch
from .table import Evaluation

HEADS = 8
WRITERS = 8


class HeadRow(Record):
    """One head at the last token, clean and patched, means over pairs: `score` and `attention` are
    IO minus S1, `pushes` is direct logit attribution in nats."""

    head: str
    score: tuple[float, float]
    attention: tuple[float, float]
    pushes: tuple[float, float]


class WriterRow(Record):
    """A component's share of vᵀΔ: what it adds to the residual stream, projected on v."""

    component: str
    share: float


class FrozenRow(Record):
    """Share of the effect that is left while readers keep what they read without the patch."""

    what: str
    left: Estimate


class Leak(Record):
    """Accuracy of logistic regression from the scalar vᵀh, on prompts that it was not fitted to;
    `chance`: of always saying what was most frequent where it was fitted."""

    what: str
    train: float
    test: Estimate
    chance: float


class Success(Record):
    """Evidence at one bottleneck. `cosines` are absolute; `random_cosine` is their mean between
    random directions."""

    site: str
    separation: Estimate
    projection: Scatter
    cosines: dict[str, float]
    random_cosine: float
    heads: list[HeadRow]
    writers: list[WriterRow]
    frozen: list[FrozenRow]
    leaks: list[Leak]


def success(
    lens: LensModel,
    evaluation: Evaluation,
    directions: Directions,
    *,
    limit: int,
    memory: int | None = None,
) -> Success:
    """All the evidence for v_resid at the bottleneck of a place. What needs activations alone uses
    every pair of `evaluation`, which must have kept the site's; the rest its first `limit`."""
    site, v_resid = directions.place.bottleneck, directions.residual["v_resid"]
    pairs = evaluation.pairs[:limit]
    replay = capture(lens, pairs, [site], memory=memory).at(site)
    basis = v_resid.basis
    delta = SubspacePatch(basis).delta(replay.base, replay.source)
    units = evaluation.pairs.units.of_prompts
    z = np.array([pair.z for pair in evaluation.pairs.pairs]).T.flatten()
    along = (torch.cat(evaluation.activations[site]).cpu() @ basis)[:, 0].double().numpy()
    return Success(
        site=str(site),
        separation=oriented(auroc_interval(along, z, units)),
        projection=Scatter(z0=along[z == 0].tolist(), z1=along[z == 1].tolist()),
        cosines={
            f"{a} · {b}": abs(float(x.basis[:, 0] @ y.basis[:, 0]))
            for (a, x), (b, y) in combinations(directions.residual.items(), 2)
        },
        random_cosine=float(np.sqrt(2 / (np.pi * len(basis)))),
        heads=_heads(
            watch(lens, pairs, site, 0 * delta),
            watch(lens, pairs, site, delta),
        ),
        writers=writers(lens, pairs, v_resid),
        frozen=_frozen_rows(replay, directions.place, delta),
        leaks=_leaks(evaluation.pairs, along, z),
    )


def oriented(auroc: Estimate) -> Estimate:
    """An AUROC above one half: the sign of a direction means nothing."""
    if auroc.value is None or auroc.value >= 0.5:
        return auroc

    def other(end: float | None) -> float | None:
        return None if end is None else 1 - end

    return Estimate(value=1 - auroc.value, low=other(auroc.high), high=other(auroc.low))


def _heads(clean: Watched, patched: Watched) -> list[HeadRow]:
    """The heads whose push changes most, in either direction."""

    def means(name: str) -> np.ndarray:
        both = (getattr(watched, name).mean(0).flatten() for watched in (clean, patched))
        return np.stack([x.numpy() for x in both], axis=1)

    score, attention, pushes = map(means, ("score", "attention", "attribution"))
    order = np.argsort(-np.abs(pushes[:, 0] - pushes[:, 1]))[:HEADS]
    heads = clean.heads()
    return [
        HeadRow(
            head="L{}.{}".format(*heads[i]),
            score=tuple(score[i]),
            attention=tuple(attention[i]),
            pushes=tuple(pushes[i]),
        )
        for i in order
    ]


def writers(lens: LensModel, pairs: PairSet, v: Subspace) -> list[WriterRow]:
    """The components at the same token that add most to vᵀΔ, heads one by one: the regression of
    their part on the whole, so that the shares of all components add up to 1."""
    site, direction = v.site, v.basis[:, 0].double()
    streams = [
        (Site(layer, stream, site.label), layer)
        for layer in range(site.layer + 1)
        for stream in ("mlp_out", "head_z")
        if stream in lens.map.blocks[layer].entries
    ]
    sites = [site, *(where for where, _ in streams)]
    bases, sources = (
        activations(lens, [getattr(pair, role) for pair in pairs], sites)
        for role in ("base", "source")
    )
    differences = {where: (sources[where] - bases[where]).cpu().double() for where in sites}
    whole = differences[site] @ direction
    parts: dict[str, Tensor] = {}
    for where, layer in streams:
        moved = differences[where]
        if where.stream == "mlp_out":
            parts[str(where)] = moved @ direction
            continue
        block = lens.map.blocks[layer]
        read = direction @ block.out_proj.weight.cpu().double()
        for head, part in enumerate((moved * read).unflatten(1, (block.n_heads, -1)).sum(-1).T):
            parts[f"L{layer}.head {head}"] = part
    rows = [
        WriterRow(component=name, share=float((part * whole).sum() / (whole * whole).sum()))
        for name, part in parts.items()
    ]
    return sorted(rows, key=lambda row: -abs(row.share))[:WRITERS]


def _frozen_rows(replay: Replay, place: Place, delta: Tensor) -> list[FrozenRow]:
    shares = attribute_readers(replay, delta)
    attention = tuple(share for share in shares if share.reader.attention)
    mlps = tuple(share for share in shares if not share.reader.attention)
    clean = replay.clean.logit_diff
    whole = clean - replay.logit_diffs(delta)
    groups = {
        f"the {len(place.readers)} readers ({', '.join(r.name for r in place.readers)})": (
            place.readers
        ),
        "all that attention reads at this token": attention,
        "all that MLPs read at this token": mlps,
    }
    return [
        FrozenRow(
            what=what,
            left=ratio(clean - frozen(replay, delta, held).logit_diff, whole, replay.pairs.units),
        )
        for what, held in groups.items()
    ]


def _leaks(pairs: PairSet, along: np.ndarray, z: np.ndarray) -> list[Leak]:
    """The names and, for comparison, the position, from the scalar; a pair's two prompts are on the
    same side of the split."""
    scalar = ((along - along.mean()) / (along.std() or 1.0))[:, None]
    train = np.tile(np.arange(len(pairs)) % 2 == 0, 2)
    names = {
        "IO": np.tile([pair.answer for pair in pairs.pairs], 2),
        "S": np.tile([pair.target for pair in pairs.pairs], 2),
        "position": z,
    }
    units = Units(np.tile(np.arange(len(pairs)), 2)[~train] // 2)
    leaks = []
    for what, labels in names.items():
        model = LogisticRegression(max_iter=1000).fit(scalar[train], labels[train])
        blind = DummyClassifier(strategy="most_frequent").fit(scalar[train], labels[train])
        hits = model.predict(scalar[~train]) == labels[~train]
        leaks.append(
            Leak(
                what=what,
                train=float(model.score(scalar[train], labels[train])),
                test=proportion(hits, units),
                chance=float(blind.score(scalar[~train], labels[~train])),
            )
        )
    return leaks
