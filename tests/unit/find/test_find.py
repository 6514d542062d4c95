"""From pairs to a subspace: what is known to be there is found, and nothing else is presented."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import subspacelens as sl
from helpers_knowing import knowing_lens, knowing_task
from helpers_models import tiny_lens
from helpers_tokenizer import ioi_tokenizer
from subspacelens.core.errors import LensError, SubspaceError, TaskError
from subspacelens.find import run as search
from subspacelens.find.record import FOUND, load_find
from subspacelens.tasks.pairset import PairSet, Task


@pytest.fixture(scope="module")
def lens():
    return knowing_lens()


@pytest.fixture(scope="module")
def task():
    return knowing_task(train=72, test=48)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("find")


@pytest.fixture(scope="module")
def found(lens, task, folder):
    return sl.find(lens, task, budget="fast", directory=folder, command="a command")


def test_it_finds_where_the_answer_comes_from(lens, found):
    """The two tokens differ along one direction from the embedding on, and no other token."""
    best = found.record.found[0]
    assert best.site == "L0.resid_post@END" and best.dim == 1 and best.label in FOUND
    rows = lens.model.get_input_embeddings().weight
    direction = torch.nn.functional.normalize((rows[4] - rows[3]).float(), dim=0)
    assert float((found.subspace.basis.T @ direction).square()) > 0.5
    assert found.record.answer.startswith("The feature lives at L0.resid_post@END (k = 1, ")


def test_only_the_label_at_which_prompts_differ_is_searched(found):
    assert found.record.patched.labels == ["END"]


def test_what_is_found_is_what_an_audit_calls_faithful(found, folder):
    for place in found.record.places:
        audit = sl.load_audit(folder / place.folder / "audit.json")
        assert audit.site == place.site and audit.task.test_sha256 == found.record.task.test_sha256
        assert (place in found.record.found) == (place.label in FOUND)
        if place.label in FOUND:
            assert audit.verdict.label == place.label and place.q <= 0.05


def test_pairs_to_judge_on_are_fresh(found, task):
    told = found.record.task
    assert told.fit_pairs + told.choice_pairs <= len(task.train)
    assert told.test_sha256 == task.test.sha256
    hashes = {told.fit_sha256, told.choice_sha256, told.test_sha256}
    assert len(hashes) == 3
    assert {s.data_sha256 for s in found.subspaces.values()} == {told.fit_sha256}


def test_traps_are_fitted_by_plain_das_and_candidates_are_not(found):
    for place in found.record.places:
        plain = place.fit["method"] == "das" and not place.tried
        assert plain == (place.role == "trap")
        if place.role == "trap":
            assert place.seen.whole < place.seen.das / 3


def test_writers_add_up_to_what_is_there(found):
    best = found.record.found[0]
    names = {writer.name: writer for writer in best.writers}
    assert names["embedding"].effect > 0.3
    assert sum(writer.linear for writer in best.writers) == pytest.approx(1, abs=0.02)
    assert best.readers


def test_the_folder_has_all_of_it_ready_to_use(lens, task, found, folder):
    assert load_find(folder / "find.json") == found.record
    ready = sl.load_subspace(folder, lens)
    assert ready.site == found.subspace.site
    assert torch.equal(ready.subspace.basis, found.subspace.basis)
    effect = ready.patch(task)
    audit = found.audits[str(ready.site)].record
    assert effect.fldd.value == pytest.approx(audit.effect("subspace").fldd.value, abs=0.1)
    with pytest.raises(SubspaceError, match="was made with model"):
        sl.load_subspace(folder / "subspace.safetensors", tiny_lens("llama", dtype=torch.float32))


def test_what_was_done_is_not_done_again(lens, task, found, folder, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("computed again")

    for name in ("patching_map", "instant_map", "refined", "sources"):
        monkeypatch.setattr(search, name, never)
    monkeypatch.setattr("subspacelens.find.cell.outcome_of", never)
    again = sl.find(lens, task, budget="fast", directory=folder, command="a command")
    same = {"found", "fooled", "undetermined", "answer", "largest", "predicted"}
    assert again.record.model_dump(include=same) == found.record.model_dump(include=same)
    with pytest.raises(AssertionError):
        sl.find(lens, task, budget="fast", directory=folder, labels=["END"], streams=["mlp_act"])


@pytest.mark.long
def test_two_processes_find_what_one_does(lens, task, tmp_path):
    lens.model.save_pretrained(tmp_path / "model")
    ioi_tokenizer().save_pretrained(tmp_path / "model")
    saved = sl.load_model(str(tmp_path / "model"), device="cpu")
    one, two = (
        sl.find(saved, task, budget="fast", directory=tmp_path / str(workers), workers=workers)
        for workers in (1, 2)
    )
    assert two.record.outcome == "found" and not two.record.failed
    for ours, theirs in zip(one.record.places, two.record.places, strict=True):
        assert (ours.site, ours.dim, ours.label) == (theirs.site, theirs.dim, theirs.label)
        assert ours.effect.fldd.value == pytest.approx(theirs.effect.fldd.value, abs=1e-3)
        assert torch.allclose(
            one.subspaces[ours.site].basis, two.subspaces[ours.site].basis, atol=1e-3
        )


def test_a_site_that_fails_leaves_the_others(lens, task, tmp_path, monkeypatch):
    whole = search.Worker.run

    def failing(self, cell, sites):
        if cell.site.stream == "resid_post":
            raise SubspaceError("nothing to be had")
        return whole(self, cell, sites)

    monkeypatch.setattr(search.Worker, "run", failing)
    record = sl.find(lens, task, budget="fast", directory=tmp_path).record
    assert record.failed and all("resid_post" in site for site in record.failed)
    assert set(record.failed.values()) == {"nothing to be had"}


def test_a_model_that_does_not_do_the_task_is_not_searched(task, tmp_path, monkeypatch):
    monkeypatch.setattr(search, "patching_map", None)
    ignorant = tiny_lens("llama", seed=3)
    found = sl.find(ignorant, task, budget="fast", directory=tmp_path)
    assert found.record.outcome == "lacking" and found.subspace is None
    assert found.record.answer.startswith("The model does not do this task: on ")
    assert load_find(tmp_path / "find.json") == found.record
    assert not (tmp_path / "subspace.safetensors").exists()


def test_where_nothing_does_enough_that_is_said(lens, task):
    """The site is before the token that differs has been read."""
    record = sl.find(lens, task, budget="fast", streams=["attn_out"], labels=["X"]).record
    assert record.outcome == "nowhere" and not record.found
    assert record.answer.startswith("No site of one column carries it alone")


def test_pairs_that_cannot_be_divided_are_refused(lens, task):
    few = Task("few", task.train[:9], task.test)
    with pytest.raises(TaskError, match="8 are needed"):
        sl.find(lens, few, budget="fast")
    same = tuple(replace(pair, base=task.train[0].base) for pair in task.train)
    with pytest.raises(TaskError, match="cannot be divided"):
        sl.find(lens, Task("same", PairSet("same", "train", same), task.test), budget="fast")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": "full"}, "unknown budget 'full': one of fast, standard"),
        ({"dim": 0}, "dim=0: a number of dimensions, or auto"),
        ({"fit": "dass"}, "unknown fit 'dass'"),
        ({"streams": ["mlp"]}, "unknown stream 'mlp'"),
        ({"labels": ["S9"]}, "no label 'S9'"),
    ],
)
def test_bad_options_are_refused(lens, task, options, message):
    with pytest.raises(LensError, match=message):
        sl.find(lens, task, **{"budget": "fast"} | options)
