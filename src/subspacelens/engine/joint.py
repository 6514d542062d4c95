"""Patches at several places in one pass: other layers, other labels, many columns.

Each takes its source activation from the unpatched source prompt, and is computed against what
stands at its place in the patched pass, as plain hooks would do it: `h + patch.delta(h, source)`.
The replay begins at the lowest layer and the earliest column that is patched; what lies before is
the prefix.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..core.errors import SiteError, SubspaceError, TaskError
from ..core.places import Place, Span
from ..core.progress import track
from ..core.records import Estimate
from ..core.site import EXPERT, Site
from ..core.statistics import Units, mean, ratio
from ..model.hooks import check_ready, exclusive, first_tensor, muted, on_input, stopping_after
from ..model.lens import LensModel
from ..tasks.pairset import Pair, PairSet, Prompt
from .batches import padded, prompt_batches
from .buckets import place_of
from .capture import capture, check_finite, check_pairs
from .effect import Effect, fldd_of
from .fitting_prompts import check_fits
from .passes import prompt_key
from .patches import Add, Full, PairwisePatch, PairwiseZeroSetting, Patch
from .replay import Piece, Replay
from .suffix import Arguments

FIRST = "first patched column"
"""The label at which the replay begins."""

_LATE = ("mlp_act", "mlp_out", EXPERT)
"""Streams that a block computes from what stands between its attention and its MLP."""


@dataclass(frozen=True, eq=False)
class Move:
    """A patch at one place. Of each pair `columns` (n, c) are where, counted from the column at
    which the replay begins, `source` (n, c, dim) is what the source prompt has there, and `there`
    (n, c) says which of the c are meant: prompts may have fewer."""

    place: Place
    patch: Patch
    columns: Tensor = field(repr=False)
    there: Tensor = field(repr=False)
    source: Tensor = field(repr=False)

    def at(self, pairs: Tensor) -> Move:
        """Of the pairs at `pairs` (m,) alone, in that order."""
        on_device = pairs.to(self.source.device)
        return replace(
            self,
            patch=_of_pairs(self.patch, pairs),
            columns=self.columns[pairs],
            there=self.there[pairs],
            source=self.source[on_device],
        )

    def written(self, x: Tensor, weight: Tensor, part: slice | Tensor) -> Tensor:
        """`x` (rows, columns, width) with the patch in the dimensions `part`, `weight` (m, n) times
        it in the n pairs of each of m copies. Where another patch has sent a token past an expert,
        `x` is NaN and what is written there does nothing."""
        row, which = self.there.nonzero(as_tuple=True)
        m, n = weight.shape
        rows = (n * torch.arange(m)[:, None] + row).flatten()
        columns = self.columns[row, which].repeat(m)
        source = self.source[row.to(self.source.device), which.to(self.source.device)]
        every = x.reshape(m * n, -1, x.shape[-1])
        current = every[rows, columns][:, part]
        source = source.repeat(m, 1).to(current)
        current = torch.where(current.isnan(), source, current)
        change = _of_pairs(self.patch, row.repeat(m)).delta(current, source)
        share = weight.flatten()[rows.to(weight.device)].to(current)
        every = every.clone()
        at = (rows, columns, part)
        if isinstance(part, Tensor):
            at = (rows[:, None], columns[:, None], part)
        every[at] = current + share[:, None] * change
        return every.reshape(x.shape)


def _of_pairs(patch: Patch, pairs: Tensor) -> Patch:
    """The patch of some pairs (m,), where it has a sign of its own for each."""
    return patch.of(pairs) if isinstance(patch, Add) else patch


@dataclass(frozen=True, eq=False)
class JointEffect(Effect):
    """What patches at several places do together; `single` has what each does alone, by place.

    >>> effect = sl.patch(lens, task, {"L18.mlp_act@S2": a, "L20.resid_post@END": b})
    >>> effect.fldd.value, effect.single["L18.mlp_act@S2"].fldd.value, effect.interaction
    """

    single: Mapping[str, Effect] = field(default_factory=dict)

    @cached_property
    def beyond(self) -> np.ndarray:
        """The drop of each pair's logit difference beyond the sum of the single drops, float64
        (n,), in nats."""
        return self.drop - sum(effect.drop for effect in self.single.values())

    @cached_property
    def interaction(self) -> Estimate:
        """E(all) - Σ E(single) in nats, over the same units as the effects."""
        return mean(self.beyond, self.units)

    @cached_property
    def interaction_fldd(self) -> Estimate:
        """The same as a share of the clean logit difference, FLDD(all) - Σ FLDD(single)."""
        clean = self.clean.logit_diff.double().numpy()
        if np.isnan(fldd_of(self.beyond, clean)):
            return Estimate(value=None)
        return ratio(self.beyond, clean, self.units)


@dataclass(frozen=True, eq=False, kw_only=True)
class JointReplay(Replay):
    """A replay of which the "activation" is how much of each of k patches is there: `base` is 0 and
    `source` 1, (n, k), so that a change of 1 in column j of all rows is patch j alone, and `Full()`
    is all of them. All that a `Replay` answers is answered of these, gradients included.

    >>> replay = joint_replay(lens, task.test, [Place(site) for site in sites])
    >>> replay.together().interaction
    """

    moves: tuple[Move, ...]

    @cached_property
    def units(self) -> Units:
        """Pairs are one unit if they share the tokens that a place depends on, of base or source:
        those up to its last column; or a group."""
        return Units.joined(_keys(pair, self.moves) for pair in self.pairs)

    def subset(self, indices: Tensor | slice) -> JointReplay:
        chosen = torch.arange(len(self.pairs))[indices]
        some = super().subset(indices)
        return replace(some, moves=tuple(move.at(chosen) for move in self.moves))  # type: ignore[arg-type]

    def patching(self, patches: Sequence[Patch]) -> JointReplay:
        """The same with other patches, one a place. Raises `SubspaceError` for a patch that has a
        direction of its own for each pair."""
        for move, patch in zip(self.moves, patches, strict=True):
            if isinstance(patch, PairwisePatch | PairwiseZeroSetting):
                raise SubspaceError(
                    f"site {move.place}: patches that differ by pair cannot be joined with others"
                )
        moves = zip(self.moves, patches, strict=True)
        return replace(self, moves=tuple(replace(move, patch=patch) for move, patch in moves))

    def together(self) -> JointEffect:
        """All patches at once, and each alone, in one batched replay."""
        n, k = self.base.shape
        alone = torch.eye(k) if k > 1 else torch.empty(0, k)
        shares = torch.cat([torch.ones(1, k), alone])[:, None].expand(-1, n, -1).to(self.base)
        outcomes = self.delta_outcomes(shares)
        effects = [
            Effect(self.pairs, self.clean, outcomes[i], self, shares[i]) for i in range(len(shares))
        ]
        names = [str(move.place) for move in self.moves]
        single = dict(zip(names, effects[1:] or effects, strict=True))
        return JointEffect(self.pairs, self.clean, outcomes[0], self, shares[0], single)

    @property
    def _last_alone(self) -> bool:
        return all(move.place.site.layer < len(self.lens.map.blocks) - 1 for move in self.moves)

    def _entered(self, piece: Piece, entry: Tensor, flat: Tensor) -> Tensor:
        return self._changed(piece, entry, flat, self.entry[1] - 1, "resid_post")

    def _through(
        self, piece: Piece, layer: int, hidden: Tensor, arguments: Arguments, flat: Tensor
    ) -> Tensor:
        block, (args, kwargs) = self.lens.map.blocks[layer], arguments
        here = [move for move in self.moves if move.place.site.layer == layer]
        streams = tuple(dict.fromkeys(move.place.site.stream for move in here))
        early = tuple(stream for stream in streams if stream not in _LATE)
        hidden = self._changed(piece, hidden, flat, layer, "resid_pre")
        if "resid_mid" in streams:
            middle: list[Tensor] = []
            with self._hooked(piece, flat, layer, early), on_input(block.middle, middle.append):
                block.module(hidden, *args, **kwargs)
            between = middle[0].reshape(hidden.shape)
            hidden = self._changed(piece, between, flat, layer, "resid_mid")
            with self._hooked(piece, flat, layer, _LATE), muted(block.out_proj.module):
                hidden = first_tensor(block.module(hidden, *args, **kwargs))
        else:
            with self._hooked(piece, flat, layer, streams):
                hidden = first_tensor(block.module(hidden, *args, **kwargs))
        return self._changed(piece, hidden, flat, layer, "resid_post")

    def _moving(self, piece: Piece, flat: Tensor, layer: int) -> Iterator[tuple[Move, Tensor]]:
        """The patches of one block, for the pairs of a piece, each with its weights (m, n)."""
        rows = piece.pairs if piece.reading is None else piece.pairs[piece.reading.rows]
        for number, move in enumerate(self.moves):
            if move.place.site.layer == layer:
                yield move.at(rows), flat[:, number].unflatten(0, (-1, len(rows)))

    def _changed(
        self, piece: Piece, hidden: Tensor, flat: Tensor, layer: int, stream: str
    ) -> Tensor:
        """The residual stream with the patches of one of its places in it."""
        for move, weight in self._moving(piece, flat, layer):
            if move.place.site.stream == stream:
                hidden = move.written(hidden, weight, slice(None))
        return hidden

    @contextmanager
    def _hooked(
        self, piece: Piece, flat: Tensor, layer: int, streams: tuple[str, ...]
    ) -> Iterator[None]:
        """The patches inside a block, but those of its residual stream, as hooks."""
        model_map = self.lens.map
        with ExitStack() as stack:
            for move, weight in self._moving(piece, flat, layer):
                site = move.place.site
                if site.stream in streams and not site.stream.startswith("resid"):
                    where, module = place_of(model_map, site)
                    part = model_map.part(site)
                    change = partial(move.written, weight=weight, part=part)
                    stack.enter_context(where(module, change))
            yield


def joint_replay(
    lens: LensModel,
    pairs: PairSet,
    places: Iterable[Place],
    *,
    shifted: bool = False,
    memory: int | None = None,
    sources: bool = True,
) -> JointReplay:
    """What the whole components at several places, and then any patches of them (`patching`), do
    to `pairs` together. Runs every distinct prompt once. Without `sources` the base stands for its
    own source: for patches that do not read one.

    Raises `SiteError` for no place and for a site that the model lacks, `TaskError` for pairs that
    do not fit the model or a place: without its label, with it in other columns of base and source
    unless `shifted`, or, where many columns are patched, with more of them in one than the other.
    """
    places = tuple(dict.fromkeys(places))
    if not places:
        raise SiteError("no site to patch")
    check_ready(lens.model)
    check_fits(lens, pairs)
    for place in places:
        lens.map.block(place.site)
        if place.span is not Span.ALL:
            check_pairs(pairs, place.site, shifted=shifted or not sources)
        if sources:
            _check_counterparts(pairs, place)
    firsts = [min(_columns(pair.base, place)[0] for place in places) for pair in pairs]
    start = min(place.site.layer + (place.site.stream == "resid_post") for place in places)
    blocks = len(lens.map.blocks)
    entry = Site(start, "resid_pre", FIRST)
    if start == blocks:
        entry = Site(blocks - 1, "resid_post", FIRST)
    anchored = tuple(_anchored(pair, first) for pair, first in zip(pairs, firsts, strict=True))
    captured = capture(lens, replace(pairs, pairs=anchored), [entry], memory=memory)
    replay = captured.at(entry)
    base = torch.zeros(len(pairs), len(places), dtype=lens.dtype, device=lens.device)
    read = [pair.source if sources else pair.base for pair in pairs]
    return JointReplay(
        lens=lens,
        site=entry,
        pairs=pairs,
        base=base,
        source=torch.ones_like(base),
        clean=captured.clean,
        buckets=replay.buckets,
        memory=memory,
        moves=tuple(
            _move(place, pairs, firsts, source)
            for place, source in zip(places, _activations(lens, read, places), strict=True)
        ),
    )


def _columns(prompt: Prompt, place: Place) -> range:
    """The columns of a prompt that a place means."""
    end = len(prompt.ids)
    if place.span is Span.ALL:
        return range(end)
    first = prompt.columns[place.site.label]
    return range(first, end if place.span is Span.ONWARDS else first + 1)


def _check_counterparts(pairs: PairSet, place: Place) -> None:
    for number, pair in enumerate(pairs):
        ours, theirs = (len(_columns(prompt, place)) for prompt in (pair.base, pair.source))
        if ours != theirs:
            raise TaskError(
                f"site {place}: {pairs.where(number)}: the base has {ours} tokens there and the "
                f"source {theirs}, so that some have no counterpart; align the prompts, or name "
                "labels"
            )


def _anchored(pair: Pair, first: int) -> Pair:
    """The base prompt alone, with a label where the replay begins."""
    base = replace(pair.base, columns={**pair.base.columns, FIRST: first})
    return replace(pair, base=base, source=base)


def _keys(pair: Pair, moves: Sequence[Move]) -> tuple[Hashable, ...]:
    prompts = (pair.base, pair.source)
    lasts = (min(_columns(prompt, move.place)[-1] for move in moves) for prompt in prompts)
    keys = tuple(prompt.ids[: last + 1] for prompt, last in zip(prompts, lasts, strict=True))
    return (*keys, pair.group) if pair.group else keys


def _move(place: Place, pairs: PairSet, firsts: Sequence[int], source: Sequence[Tensor]) -> Move:
    check_finite(place.site, torch.cat(list(source)), "source activation of column")
    columns = [
        torch.tensor([column - first for column in _columns(pair.base, place)])
        for pair, first in zip(pairs, firsts, strict=True)
    ]
    there = [torch.ones(len(each), dtype=torch.bool) for each in columns]
    padded_columns, is_there, values = (
        pad_sequence(list(each), batch_first=True) for each in (columns, there, source)
    )
    return Move(place, Full(), padded_columns, is_there, values)


@torch.no_grad()
def _activations(
    lens: LensModel, prompts: Sequence[Prompt], places: Sequence[Place]
) -> list[list[Tensor]]:
    """Of every place what each prompt has there, (columns, dim). Passes end at the last column and
    the deepest block that a place needs."""
    model_map = lens.map
    distinct = {prompt_key(prompt): prompt for prompt in prompts}
    deepest = model_map.blocks[max(place.site.layer for place in places)].module
    kept: list[dict[Hashable, Tensor]] = [{} for _ in places]

    def needed(prompt: Prompt) -> int:
        return max(_columns(prompt, place)[-1] for place in places) + 1

    def keep(number: int, batch: Sequence[Prompt], columns: int, x: Tensor) -> None:
        place = places[number]
        every = x.reshape(len(batch), columns, x.shape[-1])
        for row, prompt in enumerate(batch):
            left = columns - needed(prompt)
            at = [left + column for column in _columns(prompt, place)]
            kept[number][prompt_key(prompt)] = every[row, at][:, model_map.part(place.site)].clone()

    with exclusive(lens.model):
        for batch in track(prompt_batches(distinct.values(), needed, model_map.pads), "sources"):
            ids, mask, positions = (
                x.to(lens.device) for x in padded([p.ids[: needed(p)] for p in batch])
            )
            arguments = dict(input_ids=ids, attention_mask=mask, use_cache=False)
            if model_map.accepts_positions:
                arguments["position_ids"] = positions
            with ExitStack() as stack:
                for number, place in enumerate(places):
                    where, module = place_of(model_map, place.site)
                    see = partial(keep, number, batch, ids.shape[1])
                    stack.enter_context(where(module, see))
                stack.enter_context(stopping_after(deepest))
                model_map.inner(**arguments)
    return [[of_place[prompt_key(prompt)] for prompt in prompts] for of_place in kept]
