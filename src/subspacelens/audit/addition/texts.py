"""An addition to texts of two lists, without answers: what can be said of it there.

z is the list. What is natural along the vector, and how large a dose is, needs no answers. What it
does is how much closer the next-token distribution p comes to that of the other list: the drop of
KL(q || p), q the mean prediction after training texts of that list. What nature would have done of
it cannot be told that way, so that nothing is faithful and nothing illusory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ...certify import require
from ...core.geometry import haar
from ...core.records import EffectRecord, Estimate
from ...core.site import Site
from ...core.statistics import mean
from ...engine.replay import Replay
from ...engine.task_capture import TaskCapture
from ...fit.closed_form import by_class
from ...measure.effects import RANDOM_PAIRS
from ...model.lens import LensModel, unchanged
from ..evidence.case import test_of
from ..judging import FAST_DRAWS, setting_at
from ..record import Clean, Test, Verdict
from .case import Addition
from .curve import PAIRS, curve
from .judging import checked
from .rule import ASSUMPTIONS, beyond_nature
from .run import AdditionAudit, recorded
from .tests import natural_range, separation

NOTHING = Estimate(value=None)


@dataclass(frozen=True, eq=False)
class _Predictions:
    """The mean next-token distribution q after training texts of either list, z = 0 and z = 1,
    float64 (2, vocabulary)."""

    of_list: Tensor = field(repr=False)

    @classmethod
    def of(cls, replay: Replay) -> _Predictions:
        z = by_class(replay)[1][: len(replay.pairs)]
        predicted = replay.delta_logits(torch.zeros_like(replay.base)).double().softmax(-1)
        return cls(torch.stack([predicted[z == value].mean(dim=0) for value in (0, 1)]))

    def distance(self, replay: Replay, delta: Tensor) -> np.ndarray:
        """KL(q || p) in nats of each pair, (n,), q of the list that its source is of."""
        towards = torch.tensor([pair.z[1] for pair in replay.pairs if pair.z])
        q = self.of_list[towards]
        predicted = replay.delta_logits(delta.to(replay.base)).double().log_softmax(-1)
        return (torch.xlogy(q, q) - q * predicted).sum(-1).numpy()


def audit_texts(
    lens: LensModel,
    captures: TaskCapture,
    site: Site | str,
    vector: Tensor,
    *,
    alpha: float = 1.0,
    seed: int = 0,
    given: Mapping[str, str | int | float | bool | None] | None = None,
    command: str = "",
) -> AdditionAudit:
    """What adding `alpha` times `vector` does to texts of two lists (`tasks.texts.texts_task`).

    The verdict is *undetermined*: without answers it cannot be told whether nature acts through
    what is written. What can be told: `separation`, `natural_range`, `towards` (how much closer the
    prediction comes to that of the other list, in nats of KL divergence), `chance` (whether random
    vectors that write as much do so too), and the dose curve. Raises as
    `audit_addition` does.

    >>> task, site = sl.texts_task(lens.tokenizer, "love.jsonl"), "L9.resid_post@END"
    >>> captures = sl.capture_task(lens, task, [site], shifted=True)
    >>> result = sl.audit_texts(lens, captures, site, vector, alpha=4)
    >>> result.record.tests["towards"], result.record.curve.leaves
    """
    started, site = time.monotonic(), Site.of(site)
    with unchanged(lens):
        require(lens, site)
        setting, *_ = setting_at(captures, site, lens)
        case = Addition(
            setting=setting,
            vector=checked(vector, site, lens.map.dim(site)),
            alpha=alpha,
            draws=FAST_DRAWS,
            seed=seed,
        )
        predictions = _Predictions.of(case.setting.fitted)

        def drops(replay: Replay, deltas: Tensor) -> np.ndarray:
            before = predictions.distance(replay, torch.zeros_like(replay.base))
            return np.stack([before - predictions.distance(replay, each) for each in deltas])

        some = case.replay.subset(slice(PAIRS))
        before = predictions.distance(some, torch.zeros_like(some.base))
        (own,) = drops(some, case.delta[None, :PAIRS])
        doses = curve(case, drops)
        tests = {
            "towards": _towards(mean(own, some.units), float(before.mean())),
            "chance": _chance(case, drops, own),
            "natural_range": natural_range(case),
            "separation": separation(case),
        }
        return recorded(
            case,
            started,
            clean=Clean(logit_diff=NOTHING, top_answer=NOTHING),
            effects={},
            no_op=EffectRecord.absent(),
            tests=tests,
            verdict=_verdict(case, tests, doses.leaves),
            curve=doses,
            notes=["the effect is the drop, in nats, of KL(q || p), q the mean prediction after "
                   "texts of the other list"],
            given=given,
            command=command,
        )  # fmt: skip


def _towards(estimate: Estimate, before: float) -> Test:
    after = before - (estimate.value or 0.0)
    return test_of(
        estimate,
        f"the prediction comes from {before:.2f} to {after:.2f} nats (KL divergence) of that after "
        "texts of the other list",
        0.0,
    )


def _chance(case: Addition, drops: Callable[[Replay, Tensor], np.ndarray], own: np.ndarray) -> Test:
    generator = torch.Generator().manual_seed(case.seed)
    some, sign = case.replay.subset(slice(RANDOM_PAIRS)), case.sign[:RANDOM_PAIRS, None]
    vectors = case.matched(haar(len(case.vector), 1, case.draws, generator)[..., 0])
    random = drops(some, sign * vectors[:, None, :]).mean(axis=1)
    above = int((random >= own[:RANDOM_PAIRS].mean()).sum())
    p = (1 + above) / (1 + len(random))
    return test_of(
        Estimate(value=p),
        f"{above} of {len(random)} random vectors that write as much bring it as close "
        f"(p = {p:.2g})",
    )


def _verdict(case: Addition, tests: Mapping[str, Test], leaves: float | None) -> Verdict:
    inside = tests["natural_range"]
    reasons = [
        "the texts have no answers: how much of the effect nature would have made cannot be told",
        *([beyond_nature(case.alpha, leaves, inside)] if (inside.high or 1) < 1 / 2 else []),
        *(test.reading for test in tests.values()),
    ]
    return Verdict(
        label="undetermined", code="void", score=1 / 2, reasons=reasons,
        assumptions=[*ASSUMPTIONS[1:]],
        objection="Pairs with an answer and a target could settle it.",
    )  # fmt: skip
