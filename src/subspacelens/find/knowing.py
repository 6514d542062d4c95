"""Whether the model does the task at all: what it does not know lives nowhere in it."""

from __future__ import annotations

from dataclasses import dataclass

from ..audit.record import Clean
from ..core.format import percent, plain, with_interval
from ..core.records import Estimate
from ..core.site import Site
from ..core.statistics import mean, proportion
from ..engine.capture import capture
from ..model.lens import LensModel
from ..tasks.pairset import PairSet
from ..tasks.tokens import END


@dataclass(frozen=True)
class Knowing:
    """What the model answers: `preferred` is the share of pairs in which the answer is likelier
    than the target."""

    pairs: int
    clean: Clean
    preferred: Estimate

    @property
    def lacks(self) -> bool:
        """Whether it cannot be told from a model that does not do the task: the preference for the
        answer is not clearly above zero, or not clearly in more than half of the pairs."""
        return not (
            _clearly_above(self.clean.logit_diff, 0) and _clearly_above(self.preferred, 1 / 2)
        )

    @property
    def in_words(self) -> str:
        return (
            f"on {self.pairs} pairs it prefers the answer by "
            f"{with_interval(self.clean.logit_diff, plain)} nats, and the answer is likelier than "
            f"the target in {with_interval(self.preferred, percent)} of them, where chance has "
            "half"
        )


def knowing(lens: LensModel, pairs: PairSet, *, memory: int | None = None) -> Knowing:
    """From a pass over the base prompts."""
    site = Site(len(lens.map.blocks) - 1, "resid_post", END)
    clean, units = capture(lens, pairs, [site], memory=memory).clean, pairs.units
    right = clean.says("answer", pairs).numpy()
    return Knowing(
        len(pairs),
        Clean(logit_diff=mean(clean.logit_diff, units), top_answer=proportion(right, units)),
        proportion((clean.logit_diff > 0).numpy(), units),
    )


def _clearly_above(estimate: Estimate, least: float) -> bool:
    low = estimate.value if estimate.low is None else estimate.low
    return low is not None and low > least
