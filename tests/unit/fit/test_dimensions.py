"""The number of dimensions is that of the feature, and a pair to choose on never fits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import subspacelens as sl
from helpers_knowing import knowing_lens, knowing_task
from subspacelens import Site, SubspaceError, TaskError
from subspacelens.audit.record import AuditRecord
from subspacelens.engine.capture import Capture, capture
from subspacelens.engine.patches import SubspacePatch
from subspacelens.fit import FITS, auto_dim, best_dim
from subspacelens.fit import dimensions as module
from subspacelens.fit.dimensions import divided
from subspacelens.report.document import told

SITE = Site.parse("L0.resid_post@END")


@pytest.fixture(scope="module")
def splits() -> tuple[Capture, Capture]:
    lens, task = knowing_lens(), knowing_task()
    return capture(lens, task.train, [SITE]), capture(lens, task.test, [SITE])


def test_the_smallest_that_does_nearly_as_much_as_the_best(splits):
    fit_on, choose_on = splits
    chosen = best_dim("das", fit_on, choose_on, SITE, (4, 1, 2))
    assert [each.dim for each in chosen.tries] == [1, 2, 4]
    best = max(each.fldd or 0.0 for each in chosen.tries)
    near = [each.dim for each in chosen.tries if (each.fldd or 0.0) >= best - module.WITHIN]
    assert chosen.subspace.dim == near[0]
    for each in chosen.tries:
        basis = FITS["das"](fit_on.lens, fit_on, SITE, dim=each.dim).basis
        assert each.fldd == choose_on.at(SITE).effect(SubspacePatch(basis)).fldd.value
    assert chosen.subspace.data_sha256 == fit_on.pairs.sha256
    assert chosen.subspace.fit["chosen_on"] == choose_on.pairs.sha256
    assert chosen.subspace.fit["tried"] == {str(each.dim): each.fldd for each in chosen.tries}


def test_what_is_near_enough_is_the_callers(splits):
    few = best_dim("pca", *splits, SITE, (1, 2, 4), within=10.0)
    assert few.subspace.dim == 1
    most = best_dim("pca", *splits, SITE, (1, 2, 4), within=0.0)
    assert (most.subspace.fit["tried"][str(most.subspace.dim)]) == max(
        each.fldd or 0.0 for each in most.tries
    )


def test_a_method_of_one_direction_has_one(splits):
    chosen = best_dim("mean-difference", *splits, SITE)
    assert chosen.subspace.dim == 1
    assert "finds one direction" in chosen.tries[1].why and chosen.tries[1].fldd is None


def test_what_was_chosen_is_audited(splits):
    """What was tried stands in the record of its audit, and on the page in one line."""
    lens, task = splits[0].lens, knowing_task()
    chosen = best_dim("pca", *splits, SITE, (1, 2)).subspace
    record = sl.audit(lens, sl.capture_task(lens, task, [SITE]), chosen, budget="fast").record
    assert record.subspace.fit["tried"] == chosen.fit["tried"]
    assert AuditRecord.model_validate_json(record.model_dump_json(by_alias=True)) == record
    assert f"tried (1 {chosen.fit['tried']['1']}, 2 " in told(record.subspace.fit)


def test_pairs_to_choose_on_are_none_to_fit_on(splits):
    train = splits[0]
    fit_on, choose_on = divided(train.pairs)
    assert sorted(fit_on + choose_on) == list(range(len(train.pairs)))
    assert len(choose_on) >= len(train.pairs) // 3
    prompts = [
        {prompt.ids for pair in train.pairs.at(part) for prompt in (pair.base, pair.source)}
        for part in (fit_on, choose_on)
    ]
    assert not prompts[0] & prompts[1]
    chosen = auto_dim("pca", train, SITE, (1, 2))
    parts = [train.subset(torch.tensor(part)) for part in (fit_on, choose_on)]
    assert torch.equal(chosen.subspace.basis, best_dim("pca", *parts, SITE, (1, 2)).subspace.basis)
    assert chosen.subspace.data_sha256 == parts[0].pairs.sha256
    assert chosen.subspace.fit["chosen_on"] == parts[1].pairs.sha256
    with pytest.raises(TaskError, match="8 are needed: give more pairs"):
        auto_dim("pca", train.subset(torch.arange(9)), SITE)


def test_refusals(splits):
    fit_on, choose_on = splits
    with pytest.raises(SubspaceError, match="a subspace of 99 dimensions does not fit"):
        best_dim("das", fit_on, choose_on, SITE, (99,))
    with pytest.raises(SubspaceError, match="no dimensions to try"):
        best_dim("das", fit_on, choose_on, SITE, ())
    clean = replace(choose_on.clean, logit_diff=torch.full((len(choose_on.pairs),), -1.0))
    with pytest.raises(SubspaceError, match="the model prefers their target"):
        best_dim("pca", fit_on, replace(choose_on, clean=clean), SITE)
