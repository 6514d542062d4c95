"""A record belongs to the model, the libraries and the text that it was computed with."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
from torch import nn

from subspacelens.core.errors import ModelError
from subspacelens.sweep import FitSpec, Grid, TaskSpec, cells_of, facts_of, plan
from subspacelens.sweep.cell import Worker


@pytest.fixture(scope="module")
def grid(place):
    return Grid(
        models=(str(place / "model"),),
        tasks=(TaskSpec(name=str(place / "pairs.jsonl")),),
        sites=("L1.mlp_act@END",),
        fits=(FitSpec("random"),),
        kind="fit",
        pairs=4,
    )


def cell_of(grid, facts=None):
    (cell,) = cells_of(grid, [facts or facts_of(grid.models[0], grid)])
    return cell


def changed(grid, tmp_path, **settings):
    """The grid on a copy of its model with other settings, which no weight shows."""
    copy = tmp_path / "copy"
    shutil.copytree(grid.models[0], copy)
    config = json.loads((copy / "config.json").read_text())
    for name, value in settings.items():
        inner = config["rope_parameters"] if name == "rope_theta" else config
        assert inner[name] != value
        inner[name] = value
    (copy / "config.json").write_text(json.dumps(config))
    return grid.model_copy(update={"models": (str(copy),)})


@pytest.mark.parametrize("settings", [{"rope_theta": 500.0}, {"rms_norm_eps": 1e-2}])
def test_other_settings_of_the_same_weights_are_another_model(grid, tmp_path, settings):
    cell, other = cell_of(grid), changed(grid, tmp_path, **settings)
    assert cell_of(other).key != cell.key
    with pytest.raises(ModelError, match=r"the plan of L1.mlp_act@END was made .*config"):
        Worker("cpu").run(replace(cell, model=other.models[0]), [cell.site])


def test_the_folder_of_a_model_is_not_part_of_it(grid, tmp_path):
    copy = shutil.copytree(grid.models[0], tmp_path / "moved")
    assert cell_of(grid.model_copy(update={"models": (str(copy),)})).key == cell_of(grid).key


@pytest.mark.parametrize(("part", "value"), [("versions", "torch 9"), ("device", "cuda")])
def test_other_versions_and_devices_have_records_of_their_own(grid, part, value):
    facts = facts_of(grid.models[0], grid)
    there = replace(facts, identity=replace(facts.identity, **{part: value}))
    assert cell_of(grid, there).key != cell_of(grid, facts).key
    with pytest.raises(ModelError, match=value):
        Worker("cpu").run(cell_of(grid, there), [cell_of(grid, there).site])


def test_the_device_of_the_workers_counts_not_that_of_the_planner(grid):
    assert facts_of(grid.models[0], grid, "cuda").identity.device == "cuda"


def test_other_libraries_have_records_of_their_own(grid):
    facts = facts_of(grid.models[0], grid)
    there = cell_of(grid, replace(facts, libraries=facts.libraries | {"numpy": "9.9"}))
    assert there.key != cell_of(grid, facts).key
    with pytest.raises(ModelError, match=r"planned with numpy 9\.9, .* this worker has numpy [^9]"):
        Worker("cpu").run(there, [there.site])


def test_audits_depend_on_the_text_that_comes_with_python_and_fits_do_not(grid, monkeypatch):
    facts, audits = facts_of(grid.models[0], grid), grid.model_copy(update={"kind": "audit"})
    before = cell_of(grid, facts).key, cell_of(audits, facts).key
    monkeypatch.setattr(plan, "reference_sha256", lambda: "another Python's")
    assert cell_of(grid, facts).key == before[0] and cell_of(audits, facts).key != before[1]


def test_a_hook_on_every_module_is_refused(grid):
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        with pytest.raises(ModelError, match="remove the hooks before a sweep"):
            facts_of(grid.models[0], grid)
    finally:
        handle.remove()
    assert cell_of(grid)
