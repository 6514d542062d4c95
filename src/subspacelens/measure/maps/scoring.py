"""The instant map: what a first-order theory says of every site, from one pass.

One forward and one backward pass give Δ and the gradient g at every layer, stream and head. To
first order they say what the patch of the whole component does, what the best subspace there does,
which is what distributed alignment search looks for, and how much of the latter is illusion. Where
the answer does not react in proportion, a refined site takes the gradient's mean along the path
from base to source instead.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

import torch
from torch import Tensor

from ...certify import require_streams
from ...core.errors import SiteError, TaskError
from ...core.first_order import first_order
from ...core.illusion_share import illusion_share
from ...core.machine import quarter_free
from ...core.progress import track
from ...core.records import ModelRecord
from ...core.site import PROJECTED, STREAMS, Site
from ...engine.capture import capture, check_pairs
from ...engine.gradient_pass import Slopes, gradient_pass
from ...engine.replay import Replay
from ...model.lens import LensModel
from ...tasks.pairset import PairSet, Prompt
from ...tasks.tokens import END
from ..groups import capture_groups
from .instant import InstantMap, StreamScores
from .making import heads_of, sites_of

DEFAULT_PAIRS = 64
SIMPSON = {0.0: 1 / 6, 0.5: 4 / 6, 1.0: 1 / 6}
"""Points of the path from base to source, and their weights."""


def instant_map(
    lens: LensModel,
    pairs: PairSet,
    streams: Iterable[str] | None = None,
    labels: Iterable[str] | None = None,
    *,
    dim: int = 1,
    refine: int | Iterable[Site | str] = 0,
    shifted: bool = False,
    memory: int | None = None,
    limit: int | None = DEFAULT_PAIRS,
) -> InstantMap:
    """What the whole component does, what DAS would find, and how much of that is illusion, at
    every layer of `streams` at `labels`, of the single heads for `head_z`: from one forward and one
    backward pass over the first `limit` pairs (None: all of them).

    By default all streams that the model has but queries, keys and values, and the labels that
    `differing` names. `dim` is the number of dimensions that DAS may use. `refine` names sites, or
    says how many of the strongest, at which the gradient is averaged along the path from base to
    source, by replay. `memory` is the budget in bytes of either, by default a quarter of what is
    free. `shifted` allows a label in different columns of base and source. Each stream must pass
    its certificate at a middle layer.

    Raises `SiteError` for a stream that no layer has or that fails a proof, `TaskError` for a label
    that the pairs lack.

    >>> found = instant_map(lens, task.test, ["resid_post", "mlp_act"], ["S2", "END"], refine=20)
    >>> found.best(3), found.at("L18.mlp_act@S2").illusion
    """
    started = time.perf_counter()
    if limit is not None and limit < 1:
        raise TaskError(f"limit={limit}: a map needs at least one pair")
    if dim < 1:
        raise SiteError(f"dim={dim}: a subspace has at least one dimension")
    pairs = pairs[:limit]
    streams = tuple(dict.fromkeys(available(lens) if streams is None else streams))
    labels = tuple(dict.fromkeys(differing(pairs, shifted=shifted) if labels is None else labels))
    sites = sites_of(lens, pairs, streams, labels)
    for label in labels:
        check_pairs(pairs, Site(0, streams[0], label), shifted=shifted)
    require_streams(lens, [site for site in sites if site.label == labels[0]])
    memory = memory or quarter_free(lens.map.devices)
    effects = {
        (label, stream): StreamScores.empty(len(lens.map.blocks), heads_of(lens, stream))
        for label, stream in product(labels, streams)
    }
    groups = _groups(lens, len(pairs), sites, memory)
    passed = partial(gradient_pass, lens, pairs, shifted=shifted, memory=memory)
    slopes = passed(groups[0])
    clean, scored = slopes.clean, _scores(slopes, dim)
    for group in groups[1:]:
        scored |= _scores(passed(group), dim)
    chosen = _to_refine(scored, refine)
    for site, replay in _replays(lens, pairs, chosen, shifted, memory):
        scored[site] = Score.of(replay.difference, along_path(replay), dim)
    difference = clean.logit_diff.double().mean().item()
    for site, score in scored.items():
        score.put(effects[site.label, site.stream], site, difference)
    return InstantMap(
        model=ModelRecord(
            id=lens.id,
            weights_sha256=lens.weights_sha256,
            dtype=str(lens.dtype).removeprefix("torch."),
        ),
        task=pairs.name,
        split=pairs.split,
        pairs=len(pairs),
        pairs_sha256=pairs.sha256,
        shifted=shifted,
        clean_logit_diff=difference,
        clean_top_answer=clean.says("answer", pairs).double().mean().item(),
        labels=labels,
        streams=streams,
        layers=len(lens.map.blocks),
        effects=effects,
        dim=dim,
        refined=tuple(map(str, chosen)),
        passes=len(groups),
        seconds=time.perf_counter() - started,
    )


def refined(
    lens: LensModel,
    pairs: PairSet,
    found: InstantMap,
    sites: Iterable[Site | str],
    *,
    shifted: bool = False,
    memory: int | None = None,
) -> InstantMap:
    """An instant map of `pairs`, with the gradient averaged along the path at these of its sites,
    too. Raises `SiteError` for one that is not in it, `TaskError` for other pairs than its own.

    >>> found = refined(lens, pairs, found, found.best(8))
    """
    pairs = pairs[: found.pairs]
    if pairs.sha256 != found.pairs_sha256:
        raise TaskError(f"the map is of other pairs than these {len(pairs)} of {pairs.name}")
    chosen = tuple(dict.fromkeys(map(Site.of, sites)))
    for site in chosen:
        found.at(site)
    effects = {
        key: type(own)(**{name: values.copy() for name, values in own.arrays.items()})
        for key, own in found.effects.items()
    }
    memory = memory or quarter_free(lens.map.devices)
    for site, replay in _replays(lens, pairs, chosen, shifted, memory):
        score = Score.of(replay.difference, along_path(replay), found.dim)
        score.put(effects[site.label, site.stream], site, found.clean_logit_diff)
    names = dict.fromkeys((*found.refined, *map(str, chosen)))
    return replace(found, effects=effects, refined=tuple(names))


def available(lens: LensModel) -> tuple[str, ...]:
    """The streams that some layer has, in the order of `STREAMS`, but queries, keys and values."""
    streams = [stream for stream in STREAMS if stream not in PROJECTED]
    return tuple(s for s in streams if any(s not in block.missing for block in lens.map.blocks))


def differing(pairs: PairSet, *, shifted: bool = False) -> tuple[str, ...]:
    """The labels at or behind the first column in which some base and source differ: before it
    their activations are the same. Those that stand in another column of a base than of its source
    only with `shifted`, but for `END`."""

    def until(prompt: Prompt, label: str) -> tuple[int, ...]:
        return prompt.ids[: prompt.columns[label] + 1]

    def wanted(label: str) -> bool:
        prompts = [(pair.base, pair.source) for pair in pairs]
        aligned = all(base.columns[label] == source.columns[label] for base, source in prompts)
        differ = any(until(base, label) != until(source, label) for base, source in prompts)
        return differ and (aligned or shifted or label == END)

    return tuple(label for label in pairs.labels if wanted(label))


def parts(lens: LensModel, site: Site) -> list[Site]:
    """The site, or each of its heads."""
    if site.stream != "head_z" or site.head is not None:
        return [site]
    return [replace(site, head=head) for head in range(lens.map.block(site).n_heads)]


@torch.no_grad()
def along_path(replay: Replay) -> Tensor:
    """The gradient's mean along the straight path from base to source activation, (n, dim), by
    Simpson's rule over three replays. With it the whole component's first-order effect is its
    effect, but for the error of that rule: the integral of the slope along a path is the change."""
    total = torch.zeros_like(replay.base)
    for share, weight in SIMPSON.items():
        total += weight * replay.gradients(share * replay.difference)
    return total


@dataclass(frozen=True)
class Score:
    """The theory's numbers of one site, effects in nats (see `SiteScore`)."""

    whole: float
    das: float
    cosine: float
    illusion: float

    @classmethod
    def of(cls, difference: Tensor, gradients: Tensor, dim: int) -> Score:
        """From Δ and gradients, (n, width) each."""
        found = first_order(difference, gradients)
        k = min(dim, difference.shape[1])
        share = illusion_share(difference, gradients, found.basis(k))
        return cls(found.whole, found.effect(k), found.cosine, share)

    def put(self, cells: StreamScores, site: Site, difference: float) -> None:
        """Writes the numbers to the site's place in those of its stream and label; `difference` is
        the clean logit difference, of which effects are shares where it is positive."""
        here = site.layer, site.head or 0
        cells.whole[here], cells.das[here] = self.whole, self.das
        cells.cosine[here], cells.illusion[here] = self.cosine, self.illusion
        if difference > 0:
            cells.whole_fldd[here] = self.whole / difference
            cells.das_fldd[here] = self.das / difference


def _scores(slopes: Slopes, dim: int) -> dict[Site, Score]:
    """Of every site, and of every head of a whole `head_z`."""
    found: dict[Site, Score] = {}
    for site in track(slopes.sites, "instant map"):
        difference, gradients = slopes.difference(site), slopes.gradients[site]
        for one in parts(slopes.lens, site):
            part = slopes.lens.map.head_slice(one)
            found[one] = Score.of(difference[:, part], gradients[:, part], dim)
    return found


def _to_refine(
    scored: Mapping[Site, Score], refine: int | Iterable[Site | str]
) -> tuple[Site, ...]:
    """Sites by name, or so many of the strongest."""
    if isinstance(refine, int):
        return tuple(sorted(scored, key=lambda site: -scored[site].das)[:refine])
    chosen = tuple(dict.fromkeys(map(Site.of, refine)))
    for site in chosen:
        if site not in scored:
            raise SiteError(f"site {site} cannot be refined: it is not in this map")
    return chosen


def _groups(lens: LensModel, pairs: int, sites: list[Site], memory: int) -> list[list[Site]]:
    """Sites whose activations and gradients fit the budget together, in order."""
    size = 4 * pairs * torch.finfo(lens.dtype).bits // 8
    groups: list[list[Site]] = []
    used = memory
    for site in sites:
        own = size * lens.map.dim(site)
        if groups and used + own <= memory:
            groups[-1].append(site)
            used += own
        else:
            groups.append([site])
            used = own
    return groups


def _replays(
    lens: LensModel, pairs: PairSet, sites: tuple[Site, ...], shifted: bool, memory: int
) -> Iterator[tuple[Site, Replay]]:
    def groups() -> Iterator[tuple[Site, Replay]]:
        for group in capture_groups(lens, pairs, sorted(sites, key=lambda s: s.label), memory):
            captured = capture(lens, pairs, group, shifted=shifted, memory=memory)
            for site in group:
                yield site, captured.at(site)

    return track(groups(), "refined", len(sites)) if sites else iter(())
