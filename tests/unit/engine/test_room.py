"""What a capture keeps is known before the model runs, refused where it has no room, and replayed
from the disk where it has none in memory."""

from __future__ import annotations

import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from helpers_models import lens_of, tiny_lens, tiny_model
from helpers_oracle import random_pairs
from subspacelens.core import machine
from subspacelens.core.errors import ResultError, TaskError
from subspacelens.core.progress import showing_progress
from subspacelens.core.site import Site
from subspacelens.core.stored import StoredRows
from subspacelens.engine import plan as planning
from subspacelens.engine.capture import Capture, capture, planned
from subspacelens.engine.passes import Passes
from subspacelens.engine.patches import Full
from subspacelens.engine.store import kept_capture, save_capture
from subspacelens.engine.task_capture import capture_task
from subspacelens.fit import das
from subspacelens.tasks.pairset import Task

LENGTHS = [(9, 4), (12, 7), (9, 0), (9, 4), (20, 4)]
SITES = [Site(1, "mlp_act", "X"), Site(2, "resid_mid", "X"), Site(3, "resid_post", "END")]


def kept(captured: Capture) -> int:
    """Bytes of all tensors of a capture but the clean outcomes and the lists of pairs."""
    buckets = (bucket for parts in captured.buckets.values() for bucket in parts)
    large = sum(x.nbytes for bucket in buckets for x, _ in bucket.held)
    return large + sum(2 * captured.base[site].nbytes for site in captured.sites)


def forbid_passes(monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("the model ran")

    monkeypatch.setattr(Passes, "_run", never)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text", "qwen3_moe", "bloom"])
def test_the_plan_counts_every_byte(family):
    lens, pairs = tiny_lens(family), random_pairs(LENGTHS)
    sites = [site for site in SITES if site.stream not in lens.map.blocks[site.layer].missing]
    plan = planned(lens, pairs, sites)
    captured = capture(lens, pairs, sites)
    assert plan.nbytes == {torch.device("cpu"): kept(captured)}
    for label, parts in plan.buckets.items():
        for like, bucket in zip(parts, captured.buckets[label], strict=True):
            for (x, _), (y, _) in zip(like.held, bucket.held, strict=True):
                assert (x.shape, x.dtype) == (y.shape, y.dtype)


def test_prefixes_are_as_many_bytes_as_one_counts_by_hand():
    """Blocks 2 and 3, keys and values, 2 heads of width 8, 8 bytes a number."""
    lens = tiny_lens("llama")
    plan = planned(lens, random_pairs([(12, 7)] * 3), [Site(1, "resid_post", "X")])
    prefix, stream, activations = 3 * 2 * 2 * 2 * 8 * 7 * 8, 3 * 5 * 32 * 8, 2 * 3 * 32 * 8
    assert plan.nbytes == {torch.device("cpu"): prefix + stream + activations}


def test_what_has_no_room_is_refused_before_the_model_runs(monkeypatch, tmp_path):
    lens, pairs = tiny_lens("llama"), random_pairs(LENGTHS)
    (size,) = planned(lens, pairs, SITES).nbytes.values()
    for free, enough in ((2 * size, True), (2 * size - 2, False)):
        monkeypatch.setattr(planning, "free_memory", lambda device, free=free: free)
        assert planned(lens, pairs, SITES).fits() == enough
        if enough:
            capture(lens, pairs, SITES)
    forbid_passes(monkeypatch)
    with pytest.raises(TaskError, match=r"5 pairs at L1.mlp_act@X, .* on cpu, .*--captures DIR"):
        capture(lens, pairs, SITES)
    usage = SimpleNamespace(free=size - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    with pytest.raises(ResultError, match=r"^the capture of 5 pairs .* are free in .*new: take"):
        kept_capture(lens, pairs, SITES, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def outcomes(captured: Capture, site: Site) -> list[torch.Tensor]:
    """Of a full patch, of many patches at once, and gradients, all pairs and some."""
    found = []
    for replay in (captured.at(site), captured.at(site).subset(torch.tensor([4, 0, 3, 0]))):
        full = replay.outcomes(Full())
        many = replay.delta_outcomes(torch.stack([replay.difference, -replay.difference]))
        found += [full.logit_diff, full.top, many.logit_diff, replay.gradients()]
    return found


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "bloom"])
def test_replays_from_the_disk_are_those_from_memory(family, tmp_path):
    lens, pairs = tiny_lens(family), random_pairs(LENGTHS)
    sites = [site for site in SITES if site.stream not in lens.map.blocks[site.layer].missing]
    (size,) = planned(lens, pairs, sites).nbytes.values()
    there = kept_capture(lens, pairs, sites, tmp_path / "a", memory=size)
    stored = kept_capture(lens, pairs, sites, tmp_path / "b", memory=size - 1)
    again = kept_capture(lens, pairs, sites, tmp_path / "a", memory=size - 1)
    assert [
        any(bucket.stored for parts in c.buckets.values() for bucket in parts)
        for c in (there, stored, again)
    ] == [False, True, True]
    files = [next((tmp_path / name).iterdir()).read_bytes() for name in "ab"]
    assert files[0] == files[1]
    for site in sites:
        for ours, theirs, later in zip(
            *(outcomes(c, site) for c in (stored, there, again)), strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
            assert torch.equal(later, ours)


def test_from_the_disk_only_one_piece_is_in_memory(tmp_path):
    lens, pairs = tiny_lens("llama"), random_pairs([(12, 7)] * 6)
    site = SITES[1]
    captured = kept_capture(lens, pairs, [site], tmp_path, memory=1)
    replay, read = captured.at(site), []
    assert len(replay.pieces()) == 6
    of_file = StoredRows.__getitem__

    def counted(self, rows):
        found = of_file(self, rows)
        read.append((rows, found.nbytes))
        return found

    with pytest.MonkeyPatch.context() as patching:
        patching.setattr(StoredRows, "__getitem__", counted)
        replay.outcomes(Full())
    row = sum(x.nbytes // 6 for x, _ in replay.buckets[0].held)
    assert sum(size for _, size in read) == 6 * row
    assert len(replay._asked) == 1
    whole = replace(replay, memory=2**30)
    assert len(whole.pieces()) == 1
    torch.testing.assert_close(
        whole.outcomes(Full()).logit_diff, replay.outcomes(Full()).logit_diff
    )


def test_a_budget_from_the_disk_counts_what_is_read(tmp_path):
    lens, pairs = tiny_lens("llama"), random_pairs([(60, 55)] * 6)
    site = SITES[1]
    stored = kept_capture(lens, pairs, [site], tmp_path, memory=1).at(site)
    there = capture(lens, pairs, [site]).at(site)
    bucket = stored.buckets[0]
    more = stored._bytes_per_row(bucket, False) - there._bytes_per_row(there.buckets[0], False)
    assert more == sum(x.nbytes for x, _ in bucket.held) // 6


def test_fits_and_splits_of_a_task_on_the_disk(tmp_path):
    lens = lens_of(tiny_model("llama", dtype=torch.float32))
    train, test = random_pairs(LENGTHS * 2, seed=1), random_pairs(LENGTHS, seed=2)
    task, site = Task("random", train, test, None), SITES[0]
    there = capture_task(lens, task, [site])
    stored = capture_task(lens, task, [site], keep=tmp_path, memory=1)
    assert all(bucket.stored for bucket in stored.train.buckets["X"])
    close = dict(rtol=1e-4, atol=1e-5)
    for name in ("train", "test", "reversed"):
        ours, theirs = (getattr(c, name).at(site).outcomes(Full()) for c in (stored, there))
        torch.testing.assert_close(ours.logit_diff, theirs.logit_diff, **close)
    ours, theirs = (das(lens, c.train, site).basis for c in (stored, there))
    assert float((ours * theirs).sum().abs()) > 0.999


def test_a_capture_on_the_disk_is_saved_and_said(tmp_path, capsys, monkeypatch):
    lens, pairs = tiny_lens("llama"), random_pairs(LENGTHS)
    monkeypatch.setattr(planning, "free_memory", lambda device: 2)
    with showing_progress():
        captured = kept_capture(lens, pairs, SITES, tmp_path)
    said = capsys.readouterr().err.replace("\n", "")
    assert "the capture of 5 pairs at L1.mlp_act@X" in said and "replayed from there" in said
    (made,) = tmp_path.iterdir()
    save_capture(captured, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == made.read_bytes()
    made.write_bytes(made.read_bytes()[: made.stat().st_size // 2])
    with pytest.raises(ResultError, match="changed while in use"):
        captured.at(SITES[0]).outcomes(Full())


def test_a_run_that_fails_leaves_no_file(tmp_path, monkeypatch):
    lens, pairs = tiny_lens("llama"), random_pairs(LENGTHS)
    forbid_passes(monkeypatch)
    with pytest.raises(AssertionError, match="the model ran"):
        kept_capture(lens, pairs, SITES, tmp_path, memory=1)
    assert list(tmp_path.iterdir()) == []


def test_outcomes_of_a_base_with_several_answers():
    """Pairs that share a base prompt are answered each by its own tokens."""
    lens, pairs = tiny_lens("llama"), random_pairs([(9, 4)] * 3)
    shared = tuple(replace(pair, base=pairs[0].base) for pair in pairs)
    together = replace(pairs, pairs=shared)
    clean = capture(lens, together, SITES).clean
    logits = lens.model(torch.tensor([pairs[0].base.ids])).logits[0, -1]
    expected = torch.stack([logits[p.answer] - logits[p.target] for p in shared])
    torch.testing.assert_close(clean.logit_diff.double(), expected, rtol=1e-5, atol=1e-5)
    assert clean.top.tolist() == [int(logits.argmax())] * 3


def test_a_budget_is_of_the_device_with_least(monkeypatch):
    free = {"cpu": 4000, "cuda": 800, "meta": 10_000}
    monkeypatch.setattr(machine, "free_memory", lambda device: free[device.type])
    devices = [torch.device(name) for name in ("cpu", "cuda", "meta")]
    assert machine.quarter_free(devices) == 200
    assert machine.quarter_free(devices[:1]) == 1000


def test_free_memory_of_cuda_is_that_of_the_device(monkeypatch):
    device = torch.device("cuda", 1)
    asked = []

    def known(number):
        def answer(where):
            asked.append(where)
            return number

        return answer

    monkeypatch.setattr(torch.cuda, "mem_get_info", known((500, 1000)))
    monkeypatch.setattr(torch.cuda, "memory_reserved", known(70))
    monkeypatch.setattr(torch.cuda, "memory_allocated", known(20))
    assert machine.free_memory(device) == 550
    assert asked == [device] * 3


def test_a_replays_budget_is_of_the_models_devices(monkeypatch):
    lens = tiny_lens("llama")
    captured = capture(lens, random_pairs(LENGTHS), SITES)
    monkeypatch.setattr(machine, "free_memory", lambda device: 4 * (device.type == "cpu"))
    assert captured.at(SITES[0]).budget == 1
    assert replace(captured, memory=7).at(SITES[0]).budget == 7
