"""Captures on disk: what is read back is what was written, and nothing else is accepted."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from helpers_models import lens_of, tiny_model
from helpers_oracle import random_pairs
from subspacelens.core.errors import ModelError, ResultError, TaskError
from subspacelens.core.progress import showing_progress
from subspacelens.core.site import Site
from subspacelens.core.tensorfile import TensorFile
from subspacelens.edit import RankOneEdit, edited
from subspacelens.engine import store
from subspacelens.engine.capture import capture, filled
from subspacelens.engine.store import FORMAT, kept_capture, load_capture, save_capture
from subspacelens.model.hooks import on_output
from subspacelens.model.lens import LensModel

LENGTHS = [(9, 4), (12, 7), (9, 0), (9, 4)]
SITES = [Site(1, "mlp_act", "X"), Site(2, "resid_mid", "X"), Site(3, "resid_post", "END")]


def llama(seed: int = 0, dtype: torch.dtype = torch.float32) -> LensModel:
    return lens_of(tiny_model("llama", seed, dtype), f"llama {seed}")


@pytest.fixture(scope="module")
def lens() -> LensModel:
    return llama()


@pytest.fixture
def saved(lens, tmp_path):
    pairs = random_pairs(LENGTHS)
    captured = capture(lens, pairs, SITES)
    path = tmp_path / "new folder" / "capture.safetensors"
    save_capture(captured, path)
    return pairs, captured, path


def test_what_is_read_back_replays_the_same(lens, saved):
    pairs, captured, path = saved
    found = load_capture(path, lens, pairs)
    assert found.sites == captured.sites and found.pairs is pairs
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    for site in SITES:
        delta = captured.difference(site)
        assert torch.equal(found.difference(site), delta)
        ours, theirs = (c.at(site).delta_outcomes(delta) for c in (found, captured))
        assert torch.equal(ours.logit_diff, theirs.logit_diff)
        assert torch.equal(ours.top, theirs.top)
    assert torch.equal(found.clean.logit_diff, captured.clean.logit_diff)


def test_another_model_dtype_or_task_is_refused_by_name(lens, saved):
    pairs, _, path = saved
    with pytest.raises(ModelError, match=r"made with model llama 0, not with llama 1 .*weights"):
        load_capture(path, llama(1), pairs)
    with pytest.raises(ModelError, match=r"dtype \(float32, not float64\)"):
        load_capture(path, llama(0, torch.float64), pairs)
    other = replace(pairs, split="train", pairs=pairs.pairs[:3])
    with pytest.raises(TaskError, match=r"random, test: 4 pairs .* random, train: 3 pairs"):
        load_capture(path, lens, other)


def test_damaged_and_foreign_files_are_refused(lens, saved, tmp_path):
    pairs, _, path = saved
    with pytest.raises(ResultError, match="cannot be read"):
        load_capture(tmp_path / "none.safetensors", lens, pairs)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ResultError, match="cannot be read"):
        load_capture(cut, lens, pairs)
    foreign = tmp_path / "foreign.safetensors"
    save_file({"x": torch.zeros(1)}, foreign)
    with pytest.raises(ResultError, match=f"no '{FORMAT}' mark"):
        load_capture(foreign, lens, pairs)
    tensors = load_file(path)
    del tensors["X.0.pairs"]
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file(tensors, foreign, metadata=metadata)
    with pytest.raises(ResultError, match="is damaged"):
        load_capture(foreign, lens, pairs)
    TensorFile(
        format=FORMAT,
        made_with=lens.identity,
        tensors=tensors,
        facts=json.loads(metadata["subspacelens"])["facts"],
    ).save(foreign)
    with pytest.raises(ResultError, match=r"is damaged: .*X\.0\.pairs"):
        load_capture(foreign, lens, pairs)


@pytest.fixture
def runs(monkeypatch):
    """How many pairs each capture that was not read from a file had."""
    ran: list[int] = []

    def counted(plan, *args):
        ran.append(len(plan.pairs))
        return filled(plan, *args)

    monkeypatch.setattr(store, "filled", counted)
    return ran


def test_the_same_pairs_and_sites_run_once(lens, runs, tmp_path):
    pairs = random_pairs(LENGTHS)
    first = kept_capture(lens, pairs, SITES, tmp_path)
    again = kept_capture(llama(), pairs, [*SITES, SITES[0]], tmp_path)
    assert runs == [4] and len(list(tmp_path.iterdir())) == 1
    assert torch.equal(again.base[SITES[1]], first.base[SITES[1]])
    kept_capture(lens, pairs[:2], SITES, tmp_path)
    kept_capture(lens, pairs, SITES[:1], tmp_path)
    assert runs == [4, 2, 4] and len(list(tmp_path.iterdir())) == 3
    shifted = random_pairs([(9, 4)], shift=1)
    with pytest.raises(TaskError, match="--shifted"):
        kept_capture(lens, shifted, SITES[:1], tmp_path)
    kept_capture(lens, shifted, SITES[:1], tmp_path, shifted=True)
    with pytest.raises(TaskError, match="--shifted"):
        kept_capture(lens, shifted, SITES[:1], tmp_path)


@contextmanager
def edit(lens):
    layer = Site(0, "mlp_act", "X")
    edit = RankOneEdit(0, torch.ones(lens.map.d_model), torch.ones(lens.map.dim(layer)))
    with edited(lens, edit):
        yield


@contextmanager
def weight_by_data(lens):
    weight = lens.map.blocks[0].down_proj.module.weight
    before = weight.detach().clone()
    weight.data[:, 1] *= -1
    yield
    weight.data.copy_(before)


@contextmanager
def live_eps(lens):
    norm = lens.model.model.layers[0].input_layernorm
    before, norm.variance_epsilon = norm.variance_epsilon, 0.5
    yield
    norm.variance_epsilon = before


@contextmanager
def buffer(lens):
    frequencies = lens.model.model.rotary_emb.inv_freq
    before = frequencies.clone()
    frequencies.data.mul_(3)
    yield
    frequencies.data.copy_(before)


@contextmanager
def steering(lens):
    with on_output(lens.map.blocks[0].module, lambda x: x + 3):
        yield


@pytest.mark.parametrize("changed", [edit, weight_by_data, live_eps, buffer, steering])
def test_what_another_model_gave_is_never_served(lens, tmp_path, changed):
    pairs, site = random_pairs(LENGTHS), Site(2, "resid_post", "X")
    clean = capture(lens, pairs, [site]).base[site]
    with changed(lens):
        other = kept_capture(lens, pairs, [site], tmp_path).base[site]
        assert not torch.equal(other, clean)
    assert torch.equal(kept_capture(lens, pairs, [site], tmp_path).base[site], clean)
    with changed(lens):
        assert torch.equal(kept_capture(lens, pairs, [site], tmp_path).base[site], other)
    whose = {x: TensorFile.load(x, FORMAT, "a capture").made_with for x in tmp_path.iterdir()}
    assert all(made.lasting for made in whose.values())
    for path, made in whose.items():
        if made == lens.identity:
            load_capture(path, lens, pairs)
            with changed(lens), pytest.raises(ModelError, match="made with model"):
                load_capture(path, lens, pairs)


def test_a_capture_saved_later_is_still_whose_it_was(lens, tmp_path):
    pairs, path = random_pairs(LENGTHS), tmp_path / "capture.safetensors"
    with edit(lens):
        captured = capture(lens, pairs, SITES[:1])
    save_capture(captured, path)
    with pytest.raises(ModelError, match="its weights"):
        load_capture(path, lens, pairs)
    with edit(lens):
        assert torch.equal(load_capture(path, lens, pairs).base[SITES[0]], captured.base[SITES[0]])


def test_another_rope_theta_is_another_model(runs, tmp_path):
    pairs = random_pairs(LENGTHS)
    for theta in (10_000.0, 50.0):
        config = tiny_model("llama", 0, torch.float32).config
        config.rope_parameters["rope_theta"] = theta
        model = type(tiny_model("llama", 0, torch.float32))(config).eval()
        model.load_state_dict(tiny_model("llama", 0, torch.float32).state_dict())
        lens = lens_of(model)
        kept_capture(lens, pairs, SITES, tmp_path)
    assert runs == [4, 4]


def test_every_damaged_byte_is_noticed(lens, tmp_path):
    pairs, path = random_pairs([(9, 4)]), tmp_path / "capture.safetensors"
    save_capture(capture(lens, pairs, SITES[:1]), path)
    whole = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    places = torch.randint(0, len(whole), (150,), generator=generator).tolist()
    for place in [*range(0, 400, 7), *places, len(whole) - 1]:
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        with pytest.raises((ResultError, ModelError)):
            load_capture(path, lens, pairs)
    path.write_bytes(whole)
    load_capture(path, lens, pairs)


def test_split_work_is_said_once(lens, saved, capsys):
    _, captured, _ = saved
    replay = replace(captured.at(SITES[0]), memory=1)
    replay.delta_outcomes(captured.difference(SITES[0]))
    assert capsys.readouterr().err == ""
    with showing_progress():
        for _ in range(2):
            replay.delta_outcomes(captured.difference(SITES[0]))
        captured.at(SITES[0]).delta_outcomes(captured.difference(SITES[0]))
    said = capsys.readouterr().err
    assert said.count("1 x 4 replays in 4 pieces, to stay under 0 MiB") == 1
    assert said.count("pieces") == 1
