"""Captures on disk: what is read back is what was written, and nothing else is accepted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from helpers_models import tiny_model
from helpers_oracle import random_pairs
from subspacelens.core.errors import ModelError, ResultError, TaskError
from subspacelens.core.progress import showing_progress
from subspacelens.core.site import Site
from subspacelens.engine.capture import capture
from subspacelens.engine.replay import Replay
from subspacelens.engine.store import FORMAT, kept_capture, load_capture, save_capture
from subspacelens.model.lens import LensModel
from subspacelens.model.mapping import build_map

LENGTHS = [(9, 4), (12, 7), (9, 0), (9, 4)]
SITES = [Site(1, "mlp_act", "X"), Site(2, "resid_mid", "X"), Site(3, "resid_post", "END")]


def lens_of(seed: int = 0, dtype: torch.dtype = torch.float32) -> LensModel:
    model = tiny_model("llama", seed, dtype)
    return LensModel(model, None, f"llama {seed}", build_map(model))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def lens() -> LensModel:
    return lens_of()


@pytest.fixture
def saved(lens, tmp_path):
    pairs = random_pairs(LENGTHS)
    captured = capture(lens, pairs, SITES)
    path = tmp_path / "new folder" / "capture.safetensors"
    save_capture(captured, lens, path)
    return pairs, captured, path


def test_what_is_read_back_replays_the_same(lens, saved):
    pairs, captured, path = saved
    found = load_capture(path, lens, pairs)
    assert found.sites == captured.sites and found.pairs is pairs
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    for site in SITES:
        delta = captured.difference(site)
        assert torch.equal(found.difference(site), delta)
        ours, theirs = (Replay(lens, c, site).outcomes(delta) for c in (found, captured))
        assert torch.equal(ours.logit_diff, theirs.logit_diff)
        assert torch.equal(ours.top, theirs.top)
    assert torch.equal(found.clean.logit_diff, captured.clean.logit_diff)


def test_another_model_dtype_or_task_is_refused_by_name(lens, saved):
    pairs, _, path = saved
    with pytest.raises(ModelError, match=r"made with model llama 0 .*, not llama 1"):
        load_capture(path, lens_of(1), pairs)
    with pytest.raises(ModelError, match="made in float32, the model is in float64"):
        load_capture(path, lens_of(0, torch.float64), pairs)
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
    with pytest.raises(ResultError, match=r"is damaged: .*X\.0\.pairs"):
        load_capture(foreign, lens, pairs)


def test_the_same_pairs_and_sites_run_once(tmp_path):
    lens, pairs, passes = lens_of(), random_pairs(LENGTHS), []
    lens.map.blocks[0].module.register_forward_hook(lambda *_: passes.append(1))
    first = kept_capture(lens, pairs, SITES, tmp_path)
    ran = len(passes)
    again = kept_capture(lens, pairs, [*SITES, SITES[0]], tmp_path)
    assert len(passes) == ran > 0 and len(list(tmp_path.iterdir())) == 1
    assert torch.equal(again.base[SITES[1]], first.base[SITES[1]])
    kept_capture(lens, pairs[:2], SITES, tmp_path)
    kept_capture(lens, pairs, SITES[:1], tmp_path)
    assert len(passes) > ran and len(list(tmp_path.iterdir())) == 3
    shifted = random_pairs([(9, 4)], shift=1)
    with pytest.raises(TaskError, match="--shifted"):
        kept_capture(lens, shifted, SITES[:1], tmp_path)
    kept_capture(lens, shifted, SITES[:1], tmp_path, shifted=True)
    with pytest.raises(TaskError, match="--shifted"):
        kept_capture(lens, shifted, SITES[:1], tmp_path)


def test_split_work_is_said_once(lens, saved, capsys):
    _, captured, _ = saved
    replay = Replay(lens, captured, SITES[0], memory=1)
    replay.outcomes(captured.difference(SITES[0]))
    assert capsys.readouterr().err == ""
    with showing_progress():
        for _ in range(2):
            replay.outcomes(captured.difference(SITES[0]))
        Replay(lens, captured, SITES[0]).outcomes(captured.difference(SITES[0]))
    said = capsys.readouterr().err
    assert said.count("1 x 4 replays in 4 pieces, to stay under 0 MiB") == 1
    assert said.count("pieces") == 1
