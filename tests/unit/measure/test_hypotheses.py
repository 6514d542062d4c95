"""Agreement with rival variables on a constructed case."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from helpers_oracle import random_pairs
from subspacelens.core.errors import TaskError
from subspacelens.engine.effect import Effect
from subspacelens.engine.outcomes import Outcomes
from subspacelens.measure.hypotheses import agreement
from subspacelens.tasks.pairset import PairSet

ANSWER, POSITION, NAME = 5, 6, 7
ASKED = [
    ({"position": (POSITION,), "name": (NAME,)}, POSITION),
    ({"position": (POSITION,), "name": (NAME,)}, POSITION),
    ({"position": (POSITION,), "name": (NAME,)}, NAME),
    ({"position": (ANSWER,), "name": (NAME,)}, ANSWER),
    ({"position": (ANSWER,), "name": (NAME,)}, NAME),
    ({"position": (POSITION,), "name": (POSITION,)}, POSITION),
    ({"position": (POSITION,)}, 9),
    ({}, POSITION),
]


def effect_of(asked, said) -> Effect:
    pairs = tuple(
        replace(pair, answer=ANSWER, target=POSITION, predictions=predictions)
        for pair, predictions in zip(random_pairs([(8, 3)] * len(asked)), asked, strict=True)
    )
    outcomes = Outcomes(torch.zeros(len(pairs)), torch.tensor(said))
    return Effect(PairSet("rivals", "test", pairs), outcomes, outcomes)


def test_agreement_counts_what_is_said_against_what_is_predicted():
    found = agreement(effect_of(*zip(*ASKED, strict=True)))
    assert list(found) == ["position", "name"]
    position, name = found["position"], found["name"]
    assert (position.pairs, position.deciding_pairs) == (7, 5)
    assert (name.pairs, name.deciding_pairs) == (6, 5)
    assert position.all.value == pytest.approx(4 / 7)
    assert position.deciding.value == pytest.approx(3 / 5)
    assert name.deciding.value == pytest.approx(2 / 5)
    assert position.cause.value == pytest.approx(3 / 5)
    assert position.isolate.value == pytest.approx(1 / 2)
    assert position.disentangled == pytest.approx(0.55)
    assert name.isolate.value is None and name.disentangled is None
    assert name.cause.value == pytest.approx(3 / 6)
    assert position.deciding.low < 3 / 5 < position.deciding.high


def test_agreement_needs_predictions_and_the_whole_vocabulary():
    with pytest.raises(TaskError, match="task rivals: no pair says what its variables predict"):
        agreement(effect_of([{}, {}], [5, 6]))
    with pytest.raises(ValueError, match="without the whole vocabulary"):
        agreement(effect_of([{"v": (5,)}, {}], [5, -1]))
