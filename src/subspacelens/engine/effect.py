"""What a patch does to the answers: the metrics of the library, each defined here alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import torch
from torch import Tensor

from ..core.records import EffectRecord, Estimate
from ..core.statistics import Units, mean, proportion, ratio
from ..tasks.answers import Tokens
from ..tasks.pairset import Pair, PairSet
from .likely import token_texts
from .metrics import LOGIT_DIFF, Chosen, Measured, metric_of, values_of
from .outcomes import Outcomes

if TYPE_CHECKING:
    from .replay import Replay

METRICS = ("nats", "fldd", "iia", "iia_pair")
TOP_TOKENS = 5


@dataclass(frozen=True, kw_only=True)
class Example:
    """One pair: its prompts, what is right for either, and the likeliest next tokens of the base
    prompt, without and with the patch, likeliest first.

    >>> example = captured.at(site).effect(patching.Full()).examples(5)[0]
    """

    base: str
    source: str
    answer: str
    target: str
    clean_logit_diff: float
    patched_logit_diff: float
    before: tuple[str, ...]
    after: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Effect:
    """What one patch does to the answers of `pairs`. Estimates carry 95 % intervals over base
    prompts.

    >>> effect = sl.patch(lens, task, "L18.mlp_act@S2", subspace)
    >>> effect.fldd.value, effect.fldd.low, effect.fldd.high
    """

    pairs: PairSet
    clean: Outcomes = field(repr=False)
    patched: Outcomes = field(repr=False)
    replay: Replay | None = field(default=None, repr=False)
    delta: Tensor | None = field(default=None, repr=False)

    @property
    def units(self) -> Units:
        """What intervals are over: that of the site, where it is known."""
        return self.pairs.units if self.replay is None else self.replay.units

    @cached_property
    def drop(self) -> np.ndarray:
        """Clean minus patched logit difference of each pair, float64 (n,), in nats."""
        return _numbers(self.clean.logit_diff) - _numbers(self.patched.logit_diff)

    @cached_property
    def moved(self) -> np.ndarray:
        """By how much each pair moves towards the source's answer in the metric of the replay,
        float64 (n,): `drop` where that is the logit difference."""
        return _numbers(self.clean.measured) - _numbers(self.patched.measured)

    @cached_property
    def change(self) -> Estimate:
        """Mean change of the metric of the replay, patched less clean, in its own unit; of the
        logit difference minus `nats`."""
        metric = None if self.replay is None else self.replay.metric
        return mean(self.moved, self.units).scaled(-1 if metric is None else -metric.sign)

    def metric(self, metric: Chosen) -> Measured:
        """The same patch in another metric: a name (`engine.metrics`), or a function of the logits
        (n, vocabulary) of all pairs in their order, where their answers part, that gives (n,)
        numbers. Replays the pairs.

        Raises `LensError` for an unknown name, `TaskError` for a function that fails, `ValueError`
        for an effect that was not made by a replay.

        >>> effect.metric("target_prob").change.value
        >>> effect.metric(lambda logits: logits[:, 11] - logits[:, 12]).patched
        """
        if self.replay is None or self.delta is None:
            raise ValueError("this effect was put together from several replays: no other metric")
        chosen = metric_of(metric)
        if callable(metric):
            deltas = (0 * self.delta, self.delta)
            both = [values_of(metric, self.replay.delta_logits(delta)) for delta in deltas]
        else:
            replay = self.replay.measured_by(chosen)
            sign = 1 if chosen is None else chosen.sign
            both = [sign * x for x in (replay.clean.measured, replay.measured(self.delta))]
        clean, patched = map(_numbers, both)
        name = LOGIT_DIFF if chosen is None else chosen.name
        return Measured(name, clean, patched, mean(patched - clean, self.units))

    @cached_property
    def nats(self) -> Estimate:
        """Mean drop of the logit difference, in nats."""
        return mean(self.drop, self.units)

    @cached_property
    def fldd(self) -> Estimate:
        """Fractional logit difference decrease, see `fldd_of`. 0: no effect; 1: the difference is
        gone; 2: it is reversed. None where there is no difference to lose."""
        return self.fldd_over(self.units)

    def fldd_over(self, units: Units) -> Estimate:
        """`fldd` with an interval over other units, such as templates."""
        clean = _numbers(self.clean.logit_diff)
        if np.isnan(fldd_of(self.drop, clean)):
            return Estimate(value=None)
        return ratio(self.drop, clean, units)

    @cached_property
    def iia(self) -> Estimate:
        """Interchange accuracy: share of pairs in which the model says the target (`hits`)."""
        return proportion(self.hits, self.units)

    @cached_property
    def iia_pair(self) -> Estimate:
        """Share of pairs in which the target is likelier than the answer."""
        return proportion(_numbers(self.patched.logit_diff) < 0, self.units)

    @property
    def record(self) -> EffectRecord:
        """All four, as they stand in records."""
        return EffectRecord(nats=self.nats, fldd=self.fldd, iia=self.iia, iia_pair=self.iia_pair)

    @cached_property
    def hits(self) -> np.ndarray:
        """Whether the target is the likeliest token over the whole vocabulary, bool (n,); of longer
        or several targets see `Outcomes.says`."""
        return self.patched.says("target", self.pairs).numpy()

    def frame(self) -> pl.DataFrame:
        """One row a pair, polars (`.to_pandas()` where pandas and pyarrow are installed): `pair`
        counted from 0, prompts, template, answer, target, logit differences in nats, and the
        likeliest token without and with the patch, null where it was not looked for."""
        tops = self.patched.top.tolist()
        return pl.DataFrame(
            {
                "pair": range(len(self.pairs)),
                "base": [pair.base.text for pair in self.pairs],
                "source": [pair.source.text for pair in self.pairs],
                "template": [pair.template for pair in self.pairs],
                "answer": [self._text(pair.accepted.answers[0]) for pair in self.pairs],
                "target": [self._text(pair.accepted.targets[0]) for pair in self.pairs],
                "clean_logit_diff": _numbers(self.clean.logit_diff),
                "patched_logit_diff": _numbers(self.patched.logit_diff),
                "clean_top": self._words(self.clean.top.tolist()),
                "patched_top": [
                    word if token >= 0 else None
                    for word, token in zip(self._words(tops), tops, strict=True)
                ],
            }
        )

    def examples(self, count: int = 5, tokens: int = TOP_TOKENS) -> list[Example]:
        """`count` pairs from the largest drop to the smallest, evenly spaced, with the `tokens`
        likeliest next tokens before and after; replays those pairs. Raises `ValueError` for an
        effect that was not made by a replay."""
        if self.replay is None or self.delta is None:
            raise ValueError("this effect was put together from several replays: no examples")
        order = np.argsort(-self.drop, kind="stable")
        places = np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)
        chosen = torch.from_numpy(order[places])
        some = self.replay.subset(chosen)
        delta = self.delta[chosen.to(self.delta.device)]
        before = self._likeliest(some.delta_logits(0 * delta), tokens)
        after = self._likeliest(some.delta_logits(delta), tokens)
        return [
            self._example(self.pairs[i], i, before[row], after[row])
            for row, i in enumerate(chosen.tolist())
        ]

    def _example(self, pair: Pair, index: int, before: Sequence, after: Sequence) -> Example:
        return Example(
            base=pair.base.text,
            source=pair.source.text,
            answer=self._text(pair.accepted.answers[0]),
            target=self._text(pair.accepted.targets[0]),
            clean_logit_diff=float(self.clean.logit_diff[index]),
            patched_logit_diff=float(self.patched.logit_diff[index]),
            before=tuple(before),
            after=tuple(after),
        )

    def _likeliest(self, logits: Tensor, tokens: int) -> list[list[str]]:
        return [self._words(row) for row in logits.topk(tokens, dim=-1).indices.tolist()]

    def _words(self, tokens: Sequence[int]) -> list[str]:
        return token_texts(tokens, None if self.replay is None else self.replay.lens.tokenizer)

    def _text(self, tokens: Tokens) -> str:
        tokenizer = None if self.replay is None else self.replay.lens.tokenizer
        if tokenizer is None:
            return " ".join(map(str, tokens))
        return str(tokenizer.decode(list(tokens)))


def fldd_of(drops: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """Fractional logit difference decrease (arXiv 2311.17030 §4), 1 - mean patched / mean clean
    logit difference: of `drops` (..., n) in nats from `clean` (n,). NaN where the model does not
    prefer the answer on average, so that there is no difference to lose."""
    mean = clean.mean()
    return drops.mean(axis=-1) / (mean if mean > 0 else np.nan)


def _numbers(values: Tensor) -> np.ndarray:
    return values.double().numpy()
