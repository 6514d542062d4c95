"""Replays only what a patch can change: later blocks, later columns, the last column's logits.

The Hugging Face blocks themselves run, one after the other, against the captured prefix, with the
masks and position codes that the model itself makes for such a suffix. `Replay` of no patch equals
the full forward pass; of a patch, the full pass with a plain hook at the same place, gradients
included.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from ..core.errors import TaskError
from ..core.machine import quarter_free
from ..core.progress import note
from ..core.site import Site
from ..core.statistics import Units
from ..model.hooks import (
    at_columns,
    check_ready,
    exclusive,
    first_tensor,
)
from ..model.lens import LensModel
from ..model.mapping.values import Tail
from ..model.mapping.ways import Way
from ..tasks.pairset import PairSet
from .buckets import Bucket, Entry, entry_of, place_of, selected
from .effect import Effect
from .fused import Fused, fused_parts
from .metrics import Metric, Prediction
from .outcomes import Outcomes, answers_of
from .patches import Patch
from .reading import Reading
from .recall import last_hidden
from .suffix import Arguments, Suffix, last_column


@dataclass(frozen=True, eq=False, kw_only=True)
class Replay:
    """One site of one capture, and all that patches there can change (see `Capture.at`).

    `base` and `source` (n, dim) are the site's activations, in the model's dtype, and `clean` what
    the model answers unpatched. `memory` is the budget in bytes for the activations of one piece of
    work, None for a quarter of what is free on the devices of the model, where least is. `metric`
    and `source_last`, the last hidden states of the source prompts, are there where effects are not
    measured by the logit difference (`measured_by`).

    >>> replay = capture.at("L18.mlp_act@S2")
    >>> replay.outcomes(patches.Full()).logit_diff  # nats, one a pair
    """

    lens: LensModel = field(repr=False)
    site: Site
    pairs: PairSet
    base: Tensor = field(repr=False)
    source: Tensor = field(repr=False)
    clean: Outcomes = field(repr=False)
    buckets: tuple[Bucket, ...] = field(repr=False)
    memory: int | None = None
    metric: Metric | None = None
    source_last: Tensor | None = field(default=None, repr=False)
    _asked: dict[tuple[int, int, int, int], tuple] = field(
        default_factory=dict, init=False, repr=False
    )

    @cached_property
    def units(self) -> Units:
        """What could have come out otherwise here (`PairSet.units_at`)."""
        return self.pairs.units_at(self.site.label)

    @cached_property
    def difference(self) -> Tensor:
        """Source minus base activation, Δ (n, dim)."""
        return self.source - self.base

    @cached_property
    def entry(self) -> Entry:
        """Where in the residual stream the patch enters."""
        return entry_of(self.lens.map, self.site)

    @cached_property
    def way(self) -> Way:
        """How the patch enters there."""
        return self.lens.map.block(self.site).entries[self.site.stream]

    @cached_property
    def writer(self) -> Tensor | None:
        """The matrix W (d_model, dim) by which the site writes to the residual stream, None where
        it is that stream or its write is not linear."""
        return self.lens.map.writer(self.site)

    @cached_property
    def answers(self) -> Tensor:
        """Token ids of answer and target, (n, 2)."""
        return answers_of(self.pairs)

    @cached_property
    def fused(self) -> Fused:
        return fused_parts(self.lens)

    @cached_property
    def budget(self) -> int:
        """Bytes for the activations of one piece of work."""
        return self.memory or quarter_free(self.lens.map.devices)

    def subset(self, indices: Tensor | slice) -> Replay:
        """The same for the pairs at `indices` (m,) or in a slice, in that order; one may come more
        than once. Raises `IndexError` for a pair that is not there."""
        indices = torch.arange(len(self.pairs))[indices]
        there = indices.to(self.base.device)
        return replace(
            self,
            pairs=self.pairs.at(indices.tolist()),
            base=self.base[there],
            source=self.source[there],
            clean=self.clean[indices],
            buckets=selected(self.buckets, indices),
            source_last=None if self.source_last is None else self.source_last[indices],
        )

    def measured_by(self, metric: Metric | None) -> Self:
        """The same with effects measured by `metric`, None for the logit difference."""
        if metric is None:
            clean = replace(self.clean, metric=None)
            return replace(self, metric=None, clean=clean, source_last=None)
        last = None
        if metric.of_source:
            last = last_hidden(self.lens, [pair.source for pair in self.pairs], "source prompts")
        other = replace(self, metric=metric, source_last=last)
        unpatched = other.delta_outcomes(torch.zeros_like(self.base), decided=True)
        return replace(other, clean=replace(self.clean, metric=unpatched.metric))

    def require_difference(self) -> Replay:
        """This one, where base and source differ. Raises `TaskError` where all activations are the
        same, as at a label before the prompts' first difference: no patch can do anything there."""
        if bool(self.difference.any()):
            return self
        first = min(
            next(
                (i for i, both in enumerate(zip(p.base.ids, p.source.ids, strict=False)) if
                 both[0] != both[1]),
                min(len(p.base.ids), len(p.source.ids)),
            )
            for p in self.pairs
        )  # fmt: skip
        column = max(pair.base.columns[self.site.label] for pair in self.pairs)
        raise TaskError(
            f"site {self.site}: base and source have the same activation there in all "
            f"{len(self.pairs)} pairs, so that no patch can change anything; the prompts first "
            f"differ in column {first}, the label is in column {column} or before: choose a later "
            "label or another site"
        )

    def effect(self, patch: Patch) -> Effect:
        """What a patch does to the answers, with intervals over base prompts.

        >>> replay.effect(patches.SubspacePatch(subspace.basis)).fldd.value
        """
        return self.effects({"": patch})[""]

    def effects(self, patches: Mapping[str, Patch], *, decided: bool = False) -> dict[str, Effect]:
        """The effect of each of several patches, in one batched replay (`delta_outcomes`)."""
        if not patches:
            return {}
        deltas = [patch.delta(self.base, self.source) for patch in patches.values()]
        outcomes = self.delta_outcomes(torch.stack(deltas), decided=decided)
        return {
            name: Effect(self.pairs, self.clean, outcomes[number], self, deltas[number])
            for number, name in enumerate(patches)
        }

    def outcomes(self, patch: Patch) -> Outcomes:
        """What the model answers under a patch, (n,)."""
        return self.delta_outcomes(patch.delta(self.base, self.source))

    def outcomes_of(
        self, patches: Mapping[str, Patch], *, decided: bool = False
    ) -> dict[str, Outcomes]:
        """What it answers under each of several patches, in one batched replay."""
        effects = self.effects(patches, decided=decided)
        return {name: effect.patched for name, effect in effects.items()}

    def delta_outcomes(self, delta: Tensor, *, decided: bool = False) -> Outcomes:
        """Outcomes of adding `delta` (m, n, dim) or (n, dim) to the base activations: m patches of
        all n pairs. Results are (m, n) or (n,), float32, without gradients.

        With `decided` the vocabulary is left alone where the answer stays likelier than the target,
        which is then not the likeliest token: `top` is -1 there.

        Raises `TaskError` for another number of pairs or another width.
        """
        stacked = self._stacked(delta)
        shape = stacked.shape[:2]
        outcomes = Outcomes(
            torch.full(shape, torch.nan),
            torch.full(shape, -1),
            None if self.metric is None else torch.full(shape, torch.nan),
        )
        with exclusive(self.lens.model), torch.no_grad():
            for piece in self.pieces(shape[0], gradients=False):
                here = piece.outcomes(piece.of(stacked), decided=decided)
                outcomes.logit_diff[piece.patches, piece.pairs] = here.logit_diff.cpu()
                outcomes.top[piece.patches, piece.pairs] = here.top.cpu()
                if outcomes.metric is not None and here.metric is not None:
                    outcomes.metric[piece.patches, piece.pairs] = here.metric.float().cpu()
        return outcomes[0] if delta.ndim == 2 else outcomes

    def measured(self, delta: Tensor) -> Tensor:
        """`Outcomes.measured` of `delta_outcomes` alone. Of the logit difference only two rows of
        the unembedding are used."""
        if self.metric is not None:
            return self.delta_outcomes(delta, decided=True).measured
        return self.logit_diffs(delta)

    def logit_diffs(self, delta: Tensor) -> Tensor:
        """The logit differences of `delta_outcomes` alone, in nats."""
        stacked = self._stacked(delta)
        logit_diff = torch.full(stacked.shape[:2], torch.nan)
        with exclusive(self.lens.model), torch.no_grad():
            for piece in self.pieces(len(stacked), gradients=False):
                logits = piece.answer_logits(piece.of(stacked)).float()
                logit_diff[piece.patches, piece.pairs] = (logits[..., 0] - logits[..., 1]).cpu()
        return logit_diff[0] if delta.ndim == 2 else logit_diff

    def _stacked(self, delta: Tensor) -> Tensor:
        stacked = delta if delta.ndim == 3 else delta[None]
        if stacked.ndim != 3 or stacked.shape[1:] != self.base.shape:
            raise TaskError(
                f"site {self.site}: a change of shape {tuple(delta.shape)} is not one of "
                f"{len(self.pairs)} pairs that are {self.base.shape[1]} wide"
            )
        return stacked

    def delta_logits(self, delta: Tensor) -> Tensor:
        """Logits of the whole vocabulary when `delta` (n, dim) is added, (n, vocabulary), float32
        on the CPU: for few pairs."""
        rows = torch.empty(len(self.pairs), self.lens.map.tail.head.weight.shape[0])
        with exclusive(self.lens.model), torch.no_grad():
            for piece in self.pieces(gradients=False):
                rows[piece.pairs] = piece.logits(piece.of(delta[None]))[0].float().cpu()
        return rows

    def gradients(self, delta: Tensor | None = None) -> Tensor:
        """∂(logit(answer) - logit(target))/∂h at the base activation, or where `delta` (n, dim) has
        been added to it, (n, dim), nats a unit."""
        slopes = torch.zeros_like(self.base)
        at = slopes.clone() if delta is None else delta.to(slopes)
        with exclusive(self.lens.model), torch.enable_grad():
            for piece in self.pieces():
                delta = piece.of(at[None]).detach().requires_grad_(True)
                (slope,) = torch.autograd.grad(piece.logit_diff(delta).sum(), delta)
                slopes[piece.pairs.to(slopes.device)] = slope[0]
        return slopes

    def pieces(self, patches: int = 1, *, gradients: bool = True) -> list[Piece]:
        """Splits `patches` x pairs into pieces under the memory budget, in a fixed order."""
        pieces = []
        for number, bucket in enumerate(self.buckets):
            count, begin = bucket.count, bucket.first_rows
            widest = int(begin.diff().max())
            fit = max(1, self.budget // (widest * self._bytes_per_row(bucket, gradients)))
            size = min(count, fit)
            together = max(1, fit // count) if size == count else 1
            for start in range(0, count, size):
                inside = begin[start : start + size + 1]
                rows = slice(int(inside[0]), int(inside[-1]))
                pairs = bucket.pairs[inside[:-1]]
                reading = self._reading(pairs)
                for first in range(0, patches, together):
                    which = slice(first, min(first + together, patches))
                    pieces.append(Piece(self, number, which, rows, pairs, reading))
        if len(pieces) > len(self.buckets):
            note(
                f"{self.site}: {patches} x {len(self.pairs)} replays in {len(pieces)} "
                f"pieces, to stay under {self.budget / 2**20:,.0f} MiB"
            )
        return pieces

    def _reading(self, pairs: Tensor) -> Reading | None:
        """How answers of several tokens, or several of them, are read of these pairs; None where
        there are none, so that two rows of the unembedding at the last column tell all."""
        if not self.pairs.continued:
            return None
        return Reading.to([self.pairs[i] for i in pairs.tolist()])

    def _bytes_per_row(self, bucket: Bucket, gradients: bool) -> int:
        """Upper estimate of what one replayed row needs: about 1.5 times what was measured."""
        model_map = self.lens.map
        block, length = model_map.blocks[-1], bucket.suffix + bucket.prefix
        if block.down_proj is None:
            inner = 4 * max(max(p.shape[-2:]) for p in block.module.parameters())
        else:
            inner = block.down_proj.weight.shape[1]
        column = 10 * model_map.d_model + 5 * inner + 4 * block.n_heads * length
        copied = 0 if self.fused.split else 4 * bucket.prefix * model_map.d_model
        layers = len(model_map.blocks) - self.entry[1] if gradients else 1
        size = torch.finfo(self.lens.dtype).bits // 8
        vocabulary = model_map.tail.head.weight.shape[0]
        unembedded = (size + 4 + 16 * (self.metric is not None)) * vocabulary
        if self.pairs.continued:
            longest = max(pair.accepted.longest for pair in self.pairs)
            unembedded *= 1 + (3 if gradients else 2) * (longest - 1)
        read = sum(x.nbytes // x.shape[0] for x, i in bucket.held if i >= self.entry[1])
        replayed = size * max(1, layers) * (bucket.suffix * column + copied)
        return replayed + unembedded + (read if bucket.stored else 0)

    def _hidden(self, piece: Piece, delta: Tensor) -> Tensor:
        """The last block's output at the last column, (m, n, d_model), or where the piece is read
        (`Reading`), (m, q, d_model), when `delta` (m, n, dim) is added to the base activations of
        the piece's pairs; differentiable in `delta`."""
        with exclusive(self.lens.model):
            check_ready(self.lens.model)
            return self._replayed(piece, delta)

    def _replayed(self, piece: Piece, delta: Tensor) -> Tensor:
        blocks, start = self.lens.map.blocks, self.entry[1]
        suffix = Suffix(self.lens, piece.bucket, piece.rows, len(delta), start, self.fused.split)
        entry = piece.bucket.entries[self.entry][piece.rows]
        entry = entry.expand(len(delta), *entry.shape).flatten(0, 1)
        reading = piece.reading
        if reading is not None:
            delta = delta[:, reading.rows.to(delta.device)]
        flat = delta.to(entry).flatten(0, 1)
        hidden = self._entered(piece, entry, flat)
        if start == len(blocks):
            return suffix.at_ends(hidden, reading)
        whole, others, last = self._arguments(piece, suffix)
        with self.fused.used():
            for layer, arguments in enumerate(whole, start):
                if layer == len(blocks) - 1 and others is not None:
                    hidden = last_column(blocks[layer].module, hidden, others, last)
                    break
                hidden = self._through(piece, layer, hidden, arguments, flat)
        return suffix.at_ends(hidden, reading)

    def _entered(self, piece: Piece, entry: Tensor, flat: Tensor) -> Tensor:
        """The residual stream where the replay begins, (rows, columns, d_model), with what of a
        change `flat` (rows, dim) is there already."""
        return self.way.entered(entry, flat, self.writer)

    def _through(
        self, piece: Piece, layer: int, hidden: Tensor, arguments: Arguments, flat: Tensor
    ) -> Tensor:
        """What leaves a block of what enters it, with what of the change comes in there."""
        args, kwargs = arguments
        with self._around(layer, flat):
            return first_tensor(self.lens.map.blocks[layer].module(hidden, *args, **kwargs))

    @property
    def _last_alone(self) -> bool:
        """Whether the last block may run for the last column alone."""
        return self.entry[1] < len(self.lens.map.blocks) - 1 or self.way.alone

    def _around(self, layer: int, flat: Tensor) -> AbstractContextManager[None]:
        """How a patch enters the first replayed block, where it is not in the block's input."""
        if layer > self.entry[1]:
            return nullcontext()
        return self.way.around(self.lens.map.blocks[layer], self._adding(flat))

    def _adding(self, flat: Tensor) -> AbstractContextManager[None]:
        """Adds (rows, dim) at the site's first suffix column, inside its block."""
        place, module = place_of(self.lens.map, self.site)
        first = torch.zeros(len(flat), dtype=torch.long)
        part = self.lens.map.part(self.site)
        return at_columns(place, module, first, lambda x: x + flat.to(x), part=part)

    def _arguments(self, piece: Piece, suffix: Suffix) -> tuple:
        """What the blocks are called with for all columns of a suffix; asked for once per shape of
        a piece. Of the last block only the last column's output is needed: for longer suffixes of
        one length there are also its arguments for the columns before the last, and for it alone.
        """
        key = (piece.number, suffix.patches, piece.rows.start, piece.rows.stop)
        if key not in self._asked:
            if piece.bucket.stored:
                self._asked.clear()
            final, columns, start = (
                len(self.lens.map.blocks) - 1,
                suffix.bucket.suffix,
                self.entry[1],
            )
            others = last = None
            one = piece.reading is None and suffix.bucket.even
            if columns > 1 and one and self._last_alone:
                (others,) = suffix.arguments(0, columns - 1, final)
                (last,) = suffix.arguments(columns - 1, columns, final)
            self._asked[key] = suffix.arguments(0, columns, start), others, last
        return self._asked[key]


@dataclass(frozen=True, eq=False)
class Piece:
    """Work that fits the memory budget: some patches of some pairs of one bucket of a replay.
    `patches` and `rows` are slices of the patches and of the bucket's rows, `pairs` (n,) positions
    in the pair set. There is a row for each pair, or one for each of its `Pair.reads`."""

    replay: Replay = field(repr=False)
    number: int
    patches: slice
    rows: slice
    pairs: Tensor
    reading: Reading | None = field(repr=False)

    @property
    def bucket(self) -> Bucket:
        return self.replay.buckets[self.number]

    @property
    def answers(self) -> Tensor:
        """Token ids of answer and target of the piece's pairs, (n, 2)."""
        return self.replay.answers[self.pairs]

    @property
    def count(self) -> int:
        """How many rows the model runs for each patch."""
        return self.rows.stop - self.rows.start

    @property
    def reads_patched(self) -> bool:
        """Whether a longer answer is read at the patched column itself, among others."""
        if self.reading is None:
            return False
        ends = self.bucket.ends[self.rows][self.reading.row]
        return bool((ends == self.reading.back).any())

    def of(self, delta: Tensor) -> Tensor:
        """The piece's part (m, n, dim) of a change of all patches and pairs."""
        return delta[self.patches][:, self.pairs.to(delta.device)]

    def logit_diff(self, delta: Tensor) -> Tensor:
        """logit(answer) - logit(target) in nats, or log p(answers) - log p(targets) where they are
        longer or several, (m, n), when `delta` (m, n, dim) is added to the base activations;
        differentiable in it. Of single tokens only two rows of the unembedding are used."""
        logits = self.answer_logits(delta)
        return logits[..., 0] - logits[..., 1]

    def measured(self, delta: Tensor) -> Tensor:
        """`Outcomes.measured` alone, (m, n)."""
        if self.replay.metric is None:
            return self.logit_diff(delta)
        return self.outcomes(delta, decided=True).measured

    def answer_logits(self, delta: Tensor) -> Tensor:
        """Logits of answer and target, (m, n, 2), in nats, or what stands for them
        (`Reading.scores`)."""
        return self.sides(self.replay._hidden(self, delta))

    @property
    def tail(self) -> Tail:
        return self.replay.lens.map.tail

    def sides(self, read: Tensor) -> Tensor:
        """The same from the hidden states that are read."""
        if self.reading is None:
            return self.tail.logits_of(read, self.answers)
        return self.reading.scores(self.tail, read)

    def log_probs(self, delta: Tensor) -> Tensor:
        """log p(answers) and log p(targets), (m, n, 2), in nats, float32 or finer."""
        return Prediction(self, self.replay._hidden(self, delta)).log_probs

    def outcomes(self, delta: Tensor, *, decided: bool = False) -> Outcomes:
        """What the model answers, (m, n) (see `Replay.delta_outcomes`)."""
        read, metric = self.replay._hidden(self, delta), self.replay.metric
        outcomes = self._outcomes(read, decided)
        if metric is None:
            return outcomes
        return replace(outcomes, metric=metric.sign * metric.of(Prediction(self, read)))

    def _outcomes(self, read: Tensor, decided: bool) -> Outcomes:
        tail = self.tail
        if not decided and self.reading is not None:
            return Outcomes.read(self.reading, tail, read)
        if not decided:
            logits = tail.logits(read).float()
            return Outcomes.of(logits, self.answers.to(logits.device))
        logits, hidden = self.sides(read).float(), read[:, : len(self.pairs)]
        logit_diff = logits[..., 0] - logits[..., 1]
        top = torch.full_like(logit_diff, -1, dtype=torch.long)
        turned = logit_diff <= 0
        top[turned] = tail.logits(hidden[turned.to(hidden.device)]).argmax(-1).to(top)
        return Outcomes(logit_diff, top)

    def logits(self, delta: Tensor) -> Tensor:
        """Logits of the whole vocabulary where the answers part, (m, n, vocabulary)."""
        return self.tail.logits(self.hidden(delta))

    def hidden(self, delta: Tensor) -> Tensor:
        """The last block's output where the answers part, (m, n, d_model)."""
        return self.replay._hidden(self, delta)[:, : len(self.pairs)]
