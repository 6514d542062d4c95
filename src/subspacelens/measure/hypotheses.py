"""Which variable does a patch carry? What it makes the model say, against what each predicts.

A pair can say what should be answered if what is patched carries one variable alone
(`Pair.predictions`). Where two variables predict different answers, the pair decides between them.
Cause and isolate scores are those of RAVEL (Huang et al. 2024, arXiv 2402.17700): a subspace of a
variable turns the answers that depend on it, and leaves the others as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..core.errors import TaskError
from ..core.records import Estimate, Record
from ..core.statistics import Units, proportion
from ..engine.effect import Effect
from ..engine.reading import first_tokens
from ..tasks.answers import Tokens


class Agreement(Record):
    """How often the patched model says what one variable predicts, of the `pairs` with a
    prediction: of all of them (`all`), of the `deciding_pairs` on which another variable predicts
    another answer (`deciding`), of those on which it predicts something else than the base's answer
    (`cause`), and of those on which it predicts the base's answer (`isolate`). An answer counts by
    its first token, where the pair's answers part.

    >>> found = sl.agreement(effect)["name"]
    >>> found.deciding.value, found.deciding_pairs, found.disentangled
    """

    pairs: int
    deciding_pairs: int
    all: Estimate
    deciding: Estimate
    cause: Estimate
    isolate: Estimate

    @property
    def disentangled(self) -> float | None:
        """RAVEL's score, the mean of cause and isolate; None where one of them has no pairs."""
        if self.cause.value is None or self.isolate.value is None:
            return None
        return (self.cause.value + self.isolate.value) / 2


def agreement(effect: Effect) -> dict[str, Agreement]:
    """For each variable of the pairs how far the effect of a patch is what it predicts, with 95 %
    intervals.

    Raises `TaskError` where no pair has predictions, `ValueError` for an effect of which the most
    likely tokens are not all known.

    >>> effect = sl.patch(lens, pairs, "L17.resid_post@S2", subspace)
    >>> sl.agreement(effect)["position"].deciding
    """
    pairs, said = effect.pairs.pairs, effect.patched.top.tolist()
    if min(said) < 0:
        raise ValueError("this effect was made without the whole vocabulary: use sl.patch")
    names = dict.fromkeys(name for pair in pairs for name in pair.predictions)
    if not names:
        raise TaskError(f"task {effect.pairs.name}: no pair says what its variables predict")
    first, is_answer = first_tokens(pairs)
    answers = [set(row[mask].tolist()) for row, mask in zip(first, is_answer, strict=True)]
    return {name: _agreement(effect, name, said, answers) for name in names}


def _agreement(
    effect: Effect, name: str, said: Sequence[int], answers: Sequence[set[int]]
) -> Agreement:
    pairs = effect.pairs.pairs
    own: list[Tokens | None] = [pair.predictions.get(name) for pair in pairs]
    right = np.array([top in (mine or ()) for top, mine in zip(said, own, strict=True)])
    known = np.array([mine is not None for mine in own])
    stays = np.array(
        [bool(theirs.intersection(mine or ())) for theirs, mine in zip(answers, own, strict=True)]
    )
    opposed = np.array(
        [
            any(set(mine or ()).isdisjoint(theirs) for theirs in pair.predictions.values())
            for mine, pair in zip(own, pairs, strict=True)
        ]
    )

    def share(where: np.ndarray) -> Estimate:
        rows = np.flatnonzero(where & known)
        if len(rows) == 0:
            return Estimate(value=None)
        return proportion(right[rows], Units.of(effect.units.of_pair[rows].tolist()))

    return Agreement(
        pairs=int(known.sum()),
        deciding_pairs=int((known & opposed).sum()),
        all=share(known),
        deciding=share(opposed),
        cause=share(~stays),
        isolate=share(stays),
    )
