"""Audits of longer answers, of other metrics, and of features with more than two values."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from helpers_models import tiny_lens
from helpers_oracle import random_pairs
from subspacelens.audit import audit
from subspacelens.audit.record import AuditRecord
from subspacelens.core.errors import TaskError
from subspacelens.core.site import Site
from subspacelens.engine.capture import capture
from subspacelens.engine.patches import SubspacePatch
from subspacelens.engine.task_capture import TaskCapture, capture_task
from subspacelens.fit import das
from subspacelens.fit.closed_form import two_classes
from subspacelens.fit.subspace import Subspace
from subspacelens.measure.nature import natural_change
from subspacelens.tasks.answers import Continuations
from subspacelens.tasks.pairset import PairSet, Task

SITE = Site(1, "resid_post", "X")
LONGER = Continuations(((10, 12),), ((11, 13), (14,)))


@pytest.fixture(scope="module")
def lens():
    return tiny_lens("llama", dtype=torch.float32)


@pytest.fixture(scope="module")
def task(lens) -> Task:
    """Three values of z; answer and target such that the model prefers the answer."""
    drawn = random_pairs([(9, 4)] * 60, 3)
    pairs = tuple(
        replace(p, answer=10, target=11, continuations=LONGER, z=("abc"[i % 3], "abc"[(i + 1) % 3]))
        for i, p in enumerate(drawn)
    )
    clean = capture(lens, PairSet("longer", "all", pairs), [SITE]).clean.logit_diff
    right = tuple(
        p if d > 0 else replace(p.exchanged(), z=p.z) for p, d in zip(pairs, clean, strict=True)
    )
    variables = [
        replace(p, predictions={"kept": (p.answer,), "turned": (p.target,)}) for p in right[30:]
    ]
    return Task("longer", PairSet("longer", "train", right[:30]),
                PairSet("longer", "test", tuple(variables)))  # fmt: skip


@pytest.fixture(scope="module")
def captures(lens, task) -> TaskCapture:
    return capture_task(lens, task, [SITE])


@pytest.fixture(scope="module")
def subspace(lens, captures) -> Subspace:
    return das(lens, captures.train, SITE, steps=4)


def test_das_lowers_the_difference_of_longer_answers(captures, subspace):
    replay = captures.train.at(SITE)
    patched = replay.outcomes(SubspacePatch(subspace.basis)).logit_diff.double().mean()
    assert float(patched) == pytest.approx(subspace.fit["last_loss"], abs=1e-3)
    assert float(patched) < float(replay.clean.logit_diff.mean()) - 0.1


def test_a_fast_audit_goes_through(lens, captures, subspace):
    record = audit(lens, captures, subspace, budget="fast").record
    assert record.clean.logit_diff.value > 0
    assert record.effects["subspace"].fldd.value > 0
    assert record.metric is None
    assert (
        record.tests["natural"].value is not None or "gradient" in record.tests["natural"].reading
    )
    assert any("z has 3 values" in text for text in record.notes)
    assert AuditRecord.model_validate_json(record.model_dump_json(by_alias=True)) == record
    kept, turned = record.hypotheses["kept"], record.hypotheses["turned"]
    assert kept.deciding_pairs == turned.deciding_pairs == 30
    assert turned.isolate.value is None and kept.cause.value is None
    assert any(text.startswith("variable turned: ") for text in record.notes)


def test_an_audit_in_another_metric_compares_its_changes(lens, captures, subspace):
    plain = audit(lens, captures, subspace, budget="fast").record
    record = audit(
        lens, captures, subspace, tests=["separation", "path", "hidden_pathway"],
        metric="target_prob",
    ).record  # fmt: skip
    nats = [each.effects["subspace"].nats.value for each in (record, plain)]
    assert nats[0] == pytest.approx(nats[1], rel=1e-4)
    assert record.metric.name == "target_prob"
    changes = record.metric.changes
    share = changes["full"].value / changes["subspace"].value
    assert record.tests["full_component"].value == pytest.approx(share, rel=1e-4)
    assert record.tests["full_component"].value != plain.tests["full_component"].value
    assert record.tests["separation"].value is None
    assert (
        "two values of z are needed, and these pairs have 3" in record.tests["separation"].reading
    )
    for name in ("path", "hidden_pathway"):
        assert record.tests[name].value is not None
    assert any("the tests compare changes of target_prob" in text for text in record.notes)


def test_what_needs_two_values_says_so_and_nature_takes_all(lens, captures):
    with pytest.raises(TaskError, match=r"z has 3 values \(a, b, c\), and this needs two"):
        two_classes(captures.train.pairs)
    train, test = captures.train.at(SITE), captures.test.at(SITE)
    change = natural_change(train, test).change(test.pairs)
    x = torch.cat([train.base, train.source]).double()
    z = [p.z[0] for p in train.pairs] + [p.z[1] for p in train.pairs]
    means = {v: x[[i for i, each in enumerate(z) if each == v]].mean(0) for v in "abc"}
    before, after = test.pairs[0].z
    torch.testing.assert_close(change[0], means[after] - means[before])
    unseen = replace(test.pairs[0], z=("a", "d"))
    assert natural_change(train, replace(test, pairs=PairSet("", "", (unseen,)))) is None
