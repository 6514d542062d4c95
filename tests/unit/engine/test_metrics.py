"""Metrics against direct formulas on plain full passes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers_models import tiny_lens
from helpers_oracle import hooked_logits, random_pairs
from subspacelens.core.errors import LensError, TaskError
from subspacelens.core.site import Site
from subspacelens.core.statistics import mean
from subspacelens.engine.capture import capture
from subspacelens.engine.effect import Effect
from subspacelens.engine.metrics import NAMED, Metric, metric_of
from subspacelens.engine.patches import Full
from subspacelens.measure.patch import patch
from subspacelens.tasks.answers import Continuations
from subspacelens.tasks.pairset import PairSet

LENGTHS = [(9, 4), (12, 7), (9, 0), (11, 6), (8, 7), (9, 4)]
SITE = Site(1, "resid_post", "X")


@pytest.fixture(scope="module")
def lens():
    return tiny_lens("llama")


@pytest.fixture(scope="module")
def pairs() -> PairSet:
    first, *others = random_pairs(LENGTHS)
    accepted = Continuations(((first.answer,), (4,)), ((first.target,), (5,)))
    return PairSet("metrics", "test", (replace(first, continuations=accepted), *others))


@pytest.fixture(scope="module")
def effect(lens, pairs) -> Effect:
    return capture(lens, pairs, [SITE]).at(SITE).effect(Full())


@pytest.fixture(scope="module")
def plain(lens, pairs, effect) -> tuple[torch.Tensor, ...]:
    """Log-probabilities (n, vocabulary) of base, patched base and source."""

    def logs(ids, column, change):
        with torch.no_grad():
            return hooked_logits(lens, ids, SITE, column, lambda h: h + change).log_softmax(-1)

    rows = [
        (
            logs(p.base.ids, p.base.columns["X"], 0),
            logs(p.base.ids, p.base.columns["X"], effect.delta[i]),
            logs(p.source.ids, p.source.columns["X"], 0),
        )
        for i, p in enumerate(pairs)
    ]
    return tuple(torch.stack(each).double() for each in zip(*rows, strict=True))


def directly(name: str, logs, source, pairs) -> np.ndarray:
    targets = [[token for (token,) in pair.accepted.targets] for pair in pairs]
    found = []
    for row, after, tokens in zip(logs, source, targets, strict=True):
        best = max(float(row[token]) for token in tokens)
        probability = sum(float(row[token].exp()) for token in tokens)
        found.append(
            {
                "target_logprob": np.log(probability),
                "target_prob": probability,
                "kl_to_source": float((after.exp() * (after - row)).sum()),
                "target_rank": 1 + int((row > best).sum()),
            }[name]
        )
    return np.array(found, dtype=float)


@pytest.mark.parametrize("name", NAMED)
def test_named_metrics_are_their_formulas(effect, pairs, plain, name):
    clean, patched, source = plain
    measured = effect.metric(name)
    before, after = (directly(name, x, source, pairs) for x in (clean, patched))
    assert measured.name == name
    np.testing.assert_allclose(measured.clean, before, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(measured.patched, after, rtol=1e-5, atol=1e-6)
    expected = mean(after - before, effect.units)
    assert measured.change.value == pytest.approx(expected.value, rel=1e-4, abs=1e-6)
    assert measured.change.low == pytest.approx(expected.low, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", NAMED)
def test_an_effect_in_a_metric_moves_towards_the_source_when_it_should(lens, effect, pairs, name):
    other = patch(lens, pairs, SITE, metric=name)
    assert np.array_equal(other.drop, effect.drop) and other.fldd == effect.fldd
    measured = effect.metric(name)
    sign = 1 if NAMED[name].rises else -1
    np.testing.assert_allclose(other.moved, sign * (measured.patched - measured.clean), atol=1e-5)
    assert other.change.value == pytest.approx(measured.change.value, rel=1e-4, abs=1e-5)
    some = other.replay.subset(torch.tensor([3, 1]))
    np.testing.assert_allclose(some.effect(Full()).moved, other.moved[[3, 1]], atol=1e-5)


def test_the_logit_difference_is_the_default(effect):
    assert effect.change.value == -effect.nats.value
    measured = effect.metric("logit_diff")
    np.testing.assert_allclose(measured.clean - measured.patched, effect.drop, atol=1e-5)
    assert np.array_equal(effect.moved, effect.drop)


def test_a_function_of_logits_gets_all_pairs_in_their_order(effect, pairs):
    rows = torch.arange(len(pairs))
    tokens = torch.tensor([pair.target for pair in pairs])
    measured = effect.metric(lambda logits: logits[rows, tokens])
    expected = effect.replay.delta_logits(effect.delta)[rows, tokens]
    np.testing.assert_allclose(measured.patched, expected.double().numpy())


def test_elsewhere_a_function_may_not_depend_on_where_a_pair_stands(lens, effect, pairs):
    found = patch(lens, pairs, SITE, metric=lambda logits: logits[:, 7] - logits[:, 8])
    difference = effect.replay.delta_logits(effect.delta) - effect.replay.delta_logits(
        0 * effect.delta
    )
    np.testing.assert_allclose(found.moved, (difference[:, 7] - difference[:, 8]), atol=1e-5)
    with pytest.raises(TaskError, match="depends on where a pair stands"):
        patch(lens, pairs, SITE, metric=lambda logits: logits[:, 7] * torch.arange(len(logits)))
    with pytest.raises(TaskError, match="the metric fails on logits of shape"):
        patch(lens, pairs, SITE, metric=lambda logits: logits[torch.arange(99), 0])
    with pytest.raises(TaskError, match="not one number a row"):
        effect.metric(lambda logits: logits.mean())
    with pytest.raises(LensError, match="unknown metric 'accuracy': one of logit_diff, target_log"):
        effect.metric("accuracy")


def test_a_metric_of_ones_own_knows_its_pairs(effect):
    def of(prediction):
        targets = torch.tensor([pair.target for pair in prediction.pairs])
        return prediction.logits.gather(-1, targets.expand(len(prediction.logits), -1)[..., None])[
            ..., 0
        ]

    own = Metric("target's logit", of)
    assert metric_of(own) is own and own.sign == -1
    measured = effect.metric(own)
    targets = torch.tensor([pair.target for pair in effect.pairs])
    expected = effect.replay.delta_logits(effect.delta).gather(1, targets[:, None])[:, 0]
    np.testing.assert_allclose(measured.patched, expected.double().numpy(), atol=1e-5)
