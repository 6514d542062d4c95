"""What an effect is measured in, where it is not the logit difference.

A metric is a function of what the patched model predicts, and says whether it rises as the model
turns to the source's answer. FLDD, nats and interchange accuracy are of the answers' logit
difference whatever the metric.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..core.errors import LensError, TaskError
from ..core.records import Estimate
from ..tasks.pairset import PairSet
from .prefix import widened
from .reading import first_tokens

if TYPE_CHECKING:
    from .replay import Piece


@dataclass(frozen=True, eq=False)
class Prediction:
    """What the model predicts under m patches of the n pairs of `pairs`, where their answers part.

    `logits` (m, n, vocabulary), float32 or finer. `log_probs` (m, n, 2): log p(answers) and
    log p(targets) of the whole answers, in nats. `source` (n, vocabulary): log-probabilities after
    the source prompts, for a metric `of_source`.
    """

    piece: Piece
    read: Tensor

    @property
    def pairs(self) -> PairSet:
        return self.piece.replay.pairs.at(self.piece.pairs.tolist())

    @cached_property
    def logits(self) -> Tensor:
        return widened(self.piece.tail.logits(self.read[:, : len(self.piece.pairs)]))

    @cached_property
    def log_probs(self) -> Tensor:
        return widened(self.piece.sides(self.read)) - self.logits.logsumexp(-1, keepdim=True)

    @cached_property
    def source(self) -> Tensor:
        hidden = self.piece.replay.source_last
        if hidden is None:
            raise TaskError("the predictions of the source prompts are for metrics `of_source`")
        return widened(self.piece.tail.logits(hidden[self.piece.pairs])).log_softmax(-1)


@dataclass(frozen=True)
class Metric:
    """`of` gives (m, n) values of a `Prediction`, in `unit`, which rise as the model turns to the
    source's answer, or fall if not `rises`. `of_source` if it needs the source's prediction.

    >>> Metric("entropy", lambda p: -(p.logits.softmax(-1) * p.logits.log_softmax(-1)).sum(-1))
    """

    name: str
    of: Callable[[Prediction], Tensor]
    unit: str = ""
    rises: bool = True
    of_source: bool = False

    @property
    def sign(self) -> int:
        """What it is multiplied with so that it falls as the model turns to the source's answer,
        as the logit difference does."""
        return -1 if self.rises else 1


def values_of(function: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
    """What a user's function gives for logits (n, vocabulary), (n,). Raises `TaskError` where it
    fails or gives anything else."""
    try:
        values = torch.as_tensor(function(logits))
    except (RuntimeError, IndexError, ValueError, TypeError) as error:
        raise TaskError(
            f"the metric fails on logits of shape {tuple(logits.shape)}: {error} ({ADVICE})"
        ) from error
    if values.shape != logits.shape[:1]:
        raise TaskError(
            f"the metric gives {tuple(values.shape)} for logits of {len(logits)} rows, not one "
            f"number a row ({ADVICE})"
        )
    return values.detach().to(logits)


ADVICE = (
    "effect.metric gives all pairs in their order; elsewhere some come, in any order: a metric "
    "that must know them is a sl.Metric, whose function reads prediction.pairs"
)


def _by_row(function: Callable[[Tensor], Tensor]) -> Callable[[Prediction], Tensor]:
    def of(prediction: Prediction) -> Tensor:
        logits = prediction.logits.flatten(0, 1)
        values, turned = values_of(function, logits), logits[:2].flip(0)
        again = values_of(function, turned)
        if not torch.allclose(again, values[:2].flip(0), equal_nan=True):
            raise TaskError(f"the metric depends on where a pair stands ({ADVICE})")
        return values.view(prediction.logits.shape[:-1])

    return of


def _kl_to_source(prediction: Prediction) -> Tensor:
    source, patched = prediction.source, prediction.logits.log_softmax(-1)
    return (source.exp() * (source - patched)).nan_to_num(0).sum(-1)


def _target_rank(prediction: Prediction) -> Tensor:
    logits = prediction.logits
    first, answers = first_tokens(prediction.pairs.pairs)
    targets = first.masked_fill(answers, -1).to(logits.device).expand(*logits.shape[:2], -1)
    of_targets = logits.gather(-1, targets.clamp(min=0)).masked_fill(targets < 0, -torch.inf)
    return 1 + (logits > of_targets.amax(-1, keepdim=True)).sum(-1)


LOGIT_DIFF = "logit_diff"
NAMED = {
    metric.name: metric
    for metric in (
        Metric("target_logprob", lambda p: p.log_probs[..., 1], "nats"),
        Metric("target_prob", lambda p: p.log_probs[..., 1].exp()),
        Metric("kl_to_source", _kl_to_source, "nats", rises=False, of_source=True),
        Metric("target_rank", _target_rank, "ranks", rises=False),
    )
}
"""Beside the logit difference: log-probability and probability of the accepted targets together,
KL divergence of the prediction from that after the source prompt, and the rank of the target's
first token among the vocabulary, 1 for the likeliest."""

Chosen = str | Metric | Callable[[Tensor], Tensor] | None


def metric_of(chosen: Chosen) -> Metric | None:
    """A metric by name, itself, or from a function of logits (n, vocabulary) that gives (n,) values
    which rise as the model turns to the source's answer, whatever rows come; None for the logit
    difference. Raises `LensError` for an unknown name."""
    if chosen is None or chosen == LOGIT_DIFF:
        return None
    if isinstance(chosen, Metric):
        return chosen
    if isinstance(chosen, str):
        if chosen not in NAMED:
            raise LensError(
                f"unknown metric '{chosen}': one of {', '.join((LOGIT_DIFF, *NAMED))}, or in "
                "Python a function of logits"
            )
        return NAMED[chosen]
    name = getattr(chosen, "__name__", "metric").strip("<>")
    return Metric(name, _by_row(chosen))


@dataclass(frozen=True, eq=False)
class Measured:
    """A metric of each pair, without a patch and with it, float64 (n,), and the mean of the
    difference, patched less clean, with its 95 % interval."""

    name: str
    clean: np.ndarray
    patched: np.ndarray
    change: Estimate
