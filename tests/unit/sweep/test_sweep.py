"""Sweeps: patterns, grids, the store, the schedule, and equal bits whoever computes."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from subspacelens import (
    Site,
    SiteError,
    Subspace,
    SubspaceError,
    TaskError,
    capture_task,
    load_audit,
    load_model,
    patch,
)  # fmt: skip
from subspacelens.bench.tiny import tiny_model
from subspacelens.core.errors import ResultError
from subspacelens.sweep import (
    FitSpec,
    Grid,
    Store,
    TaskSpec,
    cells_of,
    facts_of,
    read_grid,
    results,
    run_sweep,
)
from subspacelens.sweep.cell import Outcome, Worker
from subspacelens.sweep.cluster import RayPool
from subspacelens.sweep.pattern import Shape, expand
from subspacelens.sweep.plan import code_sha256, task_of
from subspacelens.sweep.run import look
from subspacelens.sweep.schedule import Schedule
from subspacelens.sweep.store import _sealed

HEADS = {"head_z": 2, "attn_q": 2, "attn_k": 1, "attn_v": 1}
SHAPE = Shape(({}, {"mlp_act": "no MLP here"}, {}), (HEADS, HEADS, HEADS))
LABELS = ("S2", "END")


@pytest.fixture(scope="module")
def grid(place):
    return Grid(
        models=(str(place / "model"),),
        tasks=(TaskSpec(name=str(place / "pairs.jsonl")),),
        sites=("L1-2.mlp_act@END", "L0.resid_post@NOUN"),
        fits=(FitSpec("random"), FitSpec("das", steps=3)),
        seeds=(0, 1),
        kind="fit",
        pairs=12,
        memory="64MB",
    )


@pytest.fixture(scope="module")
def models(grid):
    return [facts_of(spec, grid) for spec in grid.models]


@pytest.fixture(scope="module")
def serial(grid, models, tmp_path_factory):
    out = tmp_path_factory.mktemp("serial")
    tally = run_sweep(grid, out, backend="serial", models=models)
    assert (tally.cells, tally.found, tally.done, tally.failed) == (12, 0, 12, 0)
    return out


def contents(out):
    store = Store(out, create=False)
    return {key: store.load(key)["content_sha256"] for key in store.done_keys()}


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("L*.resid_post@END", ["L0.resid_post@END", "L1.resid_post@END", "L2.resid_post@END"]),
        ("L*.mlp_act@END", ["L0.mlp_act@END", "L2.mlp_act@END"]),
        ("L0-1,2.attn_out@S2", ["L0.attn_out@S2", "L1.attn_out@S2", "L2.attn_out@S2"]),
        ("L1.head_z.*@S2", ["L1.head_z.0@S2", "L1.head_z.1@S2"]),
        ("L1.attn_k.*@S2", ["L1.attn_k.0@S2"]),
        ("L1.head_z@*", ["L1.head_z@S2", "L1.head_z@END"]),
        ("L2.mlp_out@END", ["L2.mlp_out@END"]),
    ],
)
def test_a_pattern_names_sites(pattern, expected):
    assert [str(site) for site in expand(pattern, SHAPE, LABELS)] == expected


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("L*.mlp_act", "form"),
        ("L*.mlp@END", "unknown stream 'mlp'"),
        ("L*.mlp_act.1@END", "head numbers"),
        ("L3.mlp_out@END", "layers 0 to 2"),
        ("L1.head_z.2@END", "heads 0 to 1"),
        ("L1.attn_v.1@END", "heads 0 to 0"),
        ("L1.mlp_act@END", "no MLP here"),
        ("L*.mlp_act@S9", "no label 'S9'"),
        ("L2-1.mlp_act@END", "layers 0 to 2"),
    ],
)
def test_a_pattern_that_fits_nothing_is_refused(pattern, says):
    with pytest.raises(SiteError, match=says):
        expand(pattern, SHAPE, LABELS)


def test_a_grid_is_read_from_toml_and_finds_its_files_beside_it(place):
    path = place / "grid.toml"
    path.write_text(
        'models = ["model", "smollm2"]\ntasks = ["ioi", {name = "pairs.jsonl"}]\n'
        'sites = ["L*.mlp_act@END"]\nfits = ["pca", {method = "das", steps = 9}]\n'
    )
    grid = read_grid(path)
    assert grid.models == (str(place / "model"), "smollm2")
    assert [task.name for task in grid.tasks] == ["ioi", str(place / "pairs.jsonl")]
    assert grid.fits == (FitSpec("pca"), FitSpec("das", steps=9))
    assert grid.kind == "audit" and grid.dims == (1,)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("sites = []", "sites"),
        ('sites = ["L0.mlp_act@END"]\ntaks = ["ioi"]', "taks: there is no such field"),
        ('sites = ["L*.mlp@END"]', "unknown stream"),
        (
            'sites = ["L0.mlp_act@END"]\nfits = ["dash"]',
            "fits.0: unknown fit 'dash': one of closed-form, das, ",
        ),
        ('sites = ["L0.mlp_act@END"]\nfits = [{method = "pca", steps = 3}]', "pca takes no steps"),
        ('sites = ["L0.mlp_act@END"]\nfits = [{steps = 3}]', "unknown fit ''"),
        ('sites = ["L0.mlp_act@END"]\nfits = [{method = "das", lr = inf}]', "das: lr=inf"),
        ('sites = ["L0.mlp_act@END"]\nfits = [{method = "das", steps = 2.0}]', "das: steps=2.0"),
        ('sites = ["L0.mlp_act@END"]\nfits = [{method = "das", seed = 2}]', "das takes no seed"),
        ('sites = ["L0.mlp_act@END"]\nseeds = [18446744073709551616]', "seeds.0: Input"),
        ('sites = ["L0.mlp_act@END"]\nseeds = [-1]', "seeds.0: Input"),
        ('sites = ["L0.mlp_act@END"]\ntask_seed = 9223372036854775808', "task_seed: Input"),
        ('sites = ["L0.mlp_act@END"]\nseed = [1]', "seed: there is no such field"),
        ('sites = ["L0.mlp_act@END"]\nmemory = "much"', "not a size"),
        ('sites = "', "not TOML"),
        ("sites = " + "[" * 20_000, "not TOML"),
        ("sites = [" + "9" * 5000 + "]", "not TOML"),
        ('sites = ["L0.mlp_act@END"]\nthreads = 100000', "threads: Input should be less than"),
        (f'sites = ["L0.mlp_act@END"]\ndims = [{10**30}]', "dims.0: Input should be less than"),
        (f'sites = ["L0.mlp_act@END"]\ntries = {10**30}', "tries: Input should be less than"),
        ('sites = ["L0.mlp_act@END"]\ntimeout = 0', "timeout: Input should be greater than"),
        (f'sites = ["L0-{"9" * 5000}.mlp_act@END"]', "not of the form"),
        ('sites = "L0.mlp_act@END"', r"sites: give a list: \['L0.mlp_act@END'\]"),
        ('sites = ["L0.mlp_act@END"]\nfits = 5', "fits: give a list"),
    ],
)
def test_a_grid_that_is_wrong_is_refused_in_one_line(tmp_path, line, says):
    path = tmp_path / "grid.toml"
    path.write_text(f'models = ["m"]\ntasks = ["ioi"]\n{line}\n')
    with pytest.raises(TaskError, match=says) as error:
        read_grid(path)
    assert "\n" not in str(error.value) or "TOML" in says


@pytest.mark.parametrize(
    ("task", "kind", "says"),
    [
        ('"facts"', "audit", 'use kind = "pair"'),
        ('{name = "facts", test = "more.jsonl"}', "pair", "leave test out"),
    ],
)
def test_facts_are_for_single_pairs(tmp_path, task, kind, says):
    path = tmp_path / "grid.toml"
    path.write_text(
        f'models = ["m"]\ntasks = [{task}]\nsites = ["L0.mlp_act@subject"]\nkind = "{kind}"\n'
    )
    with pytest.raises(TaskError, match=says):
        read_grid(path)


def test_a_cluster_has_room_for_workers_that_fit_on_one_node():
    def room(threads: int, gpus: int, *nodes: dict) -> int:
        pool = object.__new__(RayPool)
        pool._threads, pool._gpus = threads, gpus
        listed = [{"Alive": True, "Resources": has} for has in nodes]
        dead = {"Alive": False, "Resources": {"CPU": 64.0}}
        pool._ray = type("Ray", (), {"nodes": staticmethod(lambda: [*listed, dead])})
        return pool._room()

    assert room(1, 0, {"CPU": 2.0}, {"CPU": 3.0}) == 5
    assert room(4, 0, {"CPU": 2.0}, {"CPU": 2.0}) == 0
    assert room(2, 1, {"CPU": 8.0, "GPU": 1.0}, {"CPU": 8.0}) == 1


def test_cells_are_every_combination_known_by_what_their_numbers_depend_on(grid, models):
    cells = cells_of(grid, models)
    assert len(cells) == 3 * 2 * 2 and len({cell.key for cell in cells}) == 12
    assert cells_of(grid, models) == cells
    other = cells_of(grid.model_copy(update={"memory": "65MB"}), models)
    assert not {cell.key for cell in other} & {cell.key for cell in cells}
    assert all(cell.inputs["code"] == code_sha256() for cell in cells)
    threads = cells_of(grid.model_copy(update={"threads": 2}), models)
    assert not {cell.key for cell in threads} & {cell.key for cell in cells}
    twice = grid.model_copy(update={"sites": (*grid.sites, "L1.mlp_act@END")})
    assert len(cells_of(twice, models)) == 12


def test_captures_are_shared_within_a_label_and_every_worker_has_some(grid, models):
    cells = cells_of(grid, models)
    schedule = Schedule.of(cells, workers=1, tries=3)
    job = schedule.next("w")
    assert job is not None and {str(s) for s in job.sites} == {"L1.mlp_act@END"}
    wide = grid.model_copy(update={"sites": ("L*.mlp_act@END", "L*.mlp_out@END")})
    schedule = Schedule.of(cells_of(wide, models), workers=2, tries=3)
    assert [len({j.cell.site for j in group}) for group in schedule.waiting] == [2, 2, 2, 2]
    assert sum(len(group) for group in schedule.waiting) == 8 * 4


def test_a_failing_cell_comes_back_alone_and_fails_for_good_after_n_tries(grid, models):
    cells = cells_of(grid, models)
    schedule = Schedule.of(cells, workers=1, tries=2)
    first = schedule.next("w")
    assert schedule.failed("w") == (first, False)
    seen = [job.cell.key for job in iter(lambda: _next_done(schedule), None)]
    assert seen.count(first.cell.key) == 1 and set(seen) == {cell.key for cell in cells}
    assert schedule.idle


def _next_done(schedule):
    job = schedule.next("w")
    return job and schedule.done("w")


def test_what_a_dead_worker_had_waits_again(grid, models):
    schedule = Schedule.of(cells_of(grid, models), workers=1, tries=1)
    group = len(schedule.waiting[0])
    job = schedule.next("w")
    assert schedule.lost("w") == (job, True)
    assert len(schedule.waiting[0]) == group - 1
    assert schedule.lost("idle") is None


def test_processes_give_the_bits_of_the_serial_run(grid, models, serial, tmp_path):
    tally = run_sweep(grid, tmp_path, workers=2, models=models)
    assert (tally.done, tally.failed) == (12, 0)
    assert contents(tmp_path) == contents(serial)


def test_a_cell_alone_gives_the_bits_it_gives_among_others(grid, models, serial):
    wide = grid.model_copy(update={"sites": ("L*.mlp_act@END",), "seeds": (1,)})
    cells = [c for c in cells_of(wide, models) if c.site.layer in (1, 2)]
    sites = [Site(layer, "mlp_act", "END") for layer in range(4)]
    alone, together = Worker("cpu"), Worker("cpu")
    expected = contents(serial)
    for cell in cells:
        assert together.run(cell, sites).content_sha256 == expected[cell.key]
        assert alone.run(cell, [cell.site]).content_sha256 == expected[cell.key]


def test_a_second_run_computes_nothing(grid, models, serial):
    before = {path: path.stat().st_mtime_ns for path in serial.rglob("record.json")}
    tally = run_sweep(grid, serial, backend="serial", models=models)
    assert (tally.found, tally.done) == (12, 0)
    assert {path: path.stat().st_mtime_ns for path in serial.rglob("record.json")} == before


def test_a_record_is_what_audit_would_have_written(grid, models, tmp_path):
    one = grid.model_copy(update={"kind": "audit", "sites": ("L1.mlp_act@END",), "seeds": (0,)})
    run_sweep(one, tmp_path, backend="serial", models=models)
    table = results(tmp_path)
    assert table["verdict"].to_list() and table["site"].to_list() == ["L1.mlp_act@END"] * 2
    folder = Store(tmp_path).path(table["key"][0])
    record = load_audit(folder / "audit.json")
    assert record.effects["subspace"].fldd.value == table["subspace_fldd"][0]
    assert Subspace.load(folder / "subspace.safetensors", load_model(one.models[0])).dim == 1


def test_a_damaged_record_is_set_aside_and_redone(grid, models, tmp_path):
    run_sweep(grid, tmp_path, backend="serial", models=models)
    expected, store = contents(tmp_path), Store(tmp_path)
    first, second, third, *_ = expected
    file = store.path(first) / "subspace.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    record = store.path(second) / "record.json"
    record.write_text(record.read_text().replace('"seed": ', '"seed": 1'))
    (store.path(third) / "record.json").write_bytes(b"{")
    cells = cells_of(grid, models)
    assert {cell.key for cell in look(store, cells)[1]} == {first, second, third}
    tally = run_sweep(grid, tmp_path, backend="serial", models=models)
    assert (tally.found, tally.done) == (9, 3) and contents(tmp_path) == expected
    assert len(list((tmp_path / "damaged").iterdir())) == 3


@pytest.mark.parametrize(
    "change",
    [
        lambda record: [],
        lambda record: 3,
        lambda record: record | {"files": []},
        lambda record: record | {"files": {"subspace.safetensors": 3}},
        lambda record: record | {"cell": None},
        lambda record: record | {"summary": {"subspace_fldd": [1.0]}},
        lambda record: record | {"status": "half done"},
        lambda record: record | {"key": 3},
    ],
)
def test_a_record_of_another_form_is_not_one(grid, models, tmp_path, change):
    """Though its checksum is right."""
    cell, store = cells_of(grid, models)[0], Store(tmp_path)
    store.write(cell, Outcome(cell.key, {}, {"a": 1.0}, "one", 0.1, {}))
    path = store.path(cell.key) / "record.json"
    record = json.loads(path.read_text())
    del record["checksum"]
    assert store.load(cell.key) == record and len(results(tmp_path)) == 1
    other = change(record)
    path.write_bytes(_sealed(other) if isinstance(other, dict) else json.dumps(other).encode())
    assert store.load(cell.key) is None and len(results(tmp_path)) == 0
    assert not store.has(cell.key)


def test_a_record_that_is_nested_too_deeply_or_no_file_is_not_one(grid, models, tmp_path):
    cell, store = cells_of(grid, models)[0], Store(tmp_path)
    store.write(cell, Outcome(cell.key, {}, {"a": 1.0}, "one", 0.1, {}))
    path = store.path(cell.key) / "record.json"
    path.write_text("[" * 100_000)
    assert store.load(cell.key) is None
    if hasattr(os, "mkfifo"):
        path.unlink()
        os.mkfifo(path)
        assert store.load(cell.key) is None


def test_records_that_do_not_fit_into_one_table_are_said_to(grid, models, tmp_path):
    store = Store(tmp_path)
    for cell, value in zip(cells_of(grid, models), (1, 10**60), strict=False):
        store.write(cell, Outcome(cell.key, {}, {"a": value}, "one", 0.1, {}))
    with pytest.raises(ResultError, match="do not fit into one table"):
        results(tmp_path)


def test_the_index_is_made_from_the_records_and_made_again(serial):
    index = serial / "index.parquet"
    table = pl.read_parquet(index)
    assert len(table) == 12 and set(table["key"]) == set(contents(serial))
    index.write_bytes(b"not parquet")
    assert results(serial).equals(table)
    index.unlink()
    assert results(serial).equals(table)


def test_results_can_be_filtered_by_a_condition(serial):
    assert set(results(serial, "layer >= 1 and fit = 'random'")["site"]) == {
        "L1.mlp_act@END",
        "L2.mlp_act@END",
    }
    with pytest.raises(ResultError, match="depth"):
        results(serial, "depth > 3")
    with pytest.raises(ResultError, match="where"):
        results(serial, "layer >")
    with pytest.raises(ResultError, match="a condition of 209,996 characters, 2,000 at most"):
        results(serial, " or ".join(["a=1"] * 30_000))
    with pytest.raises(ResultError, match="holds no sweep"):
        results(serial / "records")


def test_a_cell_that_always_fails_is_recorded_and_the_sweep_goes_on(grid, models, tmp_path):
    poisoned = grid.model_copy(
        update={"sites": ("L1.mlp_act@END",), "seeds": (0,), "dims": (1, 99), "tries": 2}
    )
    tally = run_sweep(poisoned, tmp_path, backend="serial", models=models)
    assert (tally.cells, tally.done, tally.failed) == (4, 2, 2)
    table = results(tmp_path, "status = 'failed'")
    assert table["dim"].to_list() == [99, 99]
    assert all("56 wide" in error for error in table["error"])
    failure = Store(tmp_path).failure(table["key"][0])
    assert failure is not None and failure["tries"] == 2
    again = run_sweep(poisoned, tmp_path, backend="serial", models=models)
    assert (again.found, again.done, again.failed) == (2, 0, 2)
    assert run_sweep(poisoned, tmp_path, backend="serial", models=models, retry=True).failed == 2


def test_the_first_to_write_a_record_wins(grid, models, tmp_path):
    cell = cells_of(grid, models)[0]
    outcome = Outcome(cell.key, {"subspace.safetensors": b"1"}, {"a": 1.0}, "one", 0.1, {})
    ours, theirs = Store(tmp_path), Store(tmp_path)
    ours.write(cell, outcome)
    theirs.write(cell, replace(outcome, content_sha256="two"))
    assert contents(tmp_path) == {cell.key: "one"}
    assert not list(ours.building.iterdir())


def test_another_model_under_the_planned_name_is_refused(grid, models, place, tmp_path):
    cell = cells_of(grid, models)[0]
    other = str(tiny_model(tmp_path / "other", seed=1))
    with pytest.raises(Exception, match=r"plan of L1.mlp_act@END was made with.*its weights"):
        Worker("cpu").run(replace(cell, model=other), [cell.site])


def test_the_record_says_what_was_asked(grid, models, serial):
    cell = cells_of(grid, models)[0]
    record = json.loads((Store(serial).path(cell.key) / "record.json").read_text())
    assert record["inputs"] == json.loads(json.dumps(cell.inputs))
    assert record["cell"]["site"] == str(cell.site) and record["schema"] == "subspacelens.cell/1"


def test_a_file_is_a_fit_known_by_its_bytes(grid, models, tmp_path):
    lens, file, other = load_model(grid.models[0]), tmp_path / "a.npy", tmp_path / "b.npy"
    width = lens.map.dim(Site.parse("L1.mlp_act@END"))
    np.save(file, np.eye(width)[3:5])

    def swept(path, **options) -> Grid:
        fits = (FitSpec("given", file=str(path), **options),)
        return grid.model_copy(
            update={"fits": fits, "sites": ("L1-2.mlp_act@END",), "seeds": (0,), "dims": (1,)}
        )

    out = tmp_path / "out"
    tally = run_sweep(swept(file, row=1), out, backend="serial", models=models)
    assert (tally.cells, tally.done) == (2, 2)
    table = results(out)
    captures = capture_task(lens, task_of(lens, grid.tasks[0], 12, 0), table["site"].to_list())
    for site, measured in zip(table["site"], table["subspace_nats"], strict=True):
        effect = patch(lens, captures, site, torch.eye(width)[:, 4])
        assert measured == pytest.approx(effect.nats.value, abs=1e-5)
    other.write_bytes(file.read_bytes())
    keys = {cell.key for cell in cells_of(swept(file, row=1), models)}
    assert keys == {cell.key for cell in cells_of(swept(other, row=1), models)}
    assert not keys & {cell.key for cell in cells_of(swept(file, row=0), models)}
    (cell, _) = cells_of(swept(other, row=1), models)
    np.save(other, np.eye(width)[6:8])
    assert not keys & {cell.key for cell in cells_of(swept(other, row=1), models)}
    with pytest.raises(SubspaceError, match="another one than when the sweep was planned"):
        Worker().run(cell, [cell.site])
    tally = run_sweep(swept(file), tmp_path / "two", backend="serial", models=models)
    assert (tally.done, tally.failed) == (0, 2)  # It holds two dimensions, and one was asked for.
    with pytest.raises(SubspaceError, match="nowhere"):
        cells_of(swept("nowhere.npy"), models)
    for options in ({}, {"file": 3}, {"file": "a", "rows": 2}, {"file": "a", "row": "2"}):
        with pytest.raises(ValueError, match=r"given takes file = "):
            FitSpec("given", **options)
    grid_file = tmp_path / "grid.toml"
    grid_file.write_text(
        'models = ["m"]\ntasks = ["ioi"]\nsites = ["L1.mlp_act@END"]\n'
        'fits = [{method = "given", file = "a.npy", row = 1}]\n'
    )
    assert read_grid(grid_file).fits == (FitSpec("given", file=str(file), row=1),)


def test_a_pair_is_a_cell_with_a_direction_of_its_own(grid, models, tmp_path):
    raw = grid.model_dump(exclude_none=True, exclude={"fits", "kind", "dims", "seeds"})
    pairs = Grid(**raw | {"kind": "pair", "sites": ("L1.mlp_act@END",), "pairs": 3})
    facts = [facts_of(spec, pairs) for spec in pairs.models]
    tally = run_sweep(pairs, tmp_path, backend="serial", models=facts)
    assert (tally.cells, tally.done) == (3, 3)
    table = results(tmp_path)
    assert table["pair"].to_list() == [0, 1, 2] and table["fit"].to_list() == ["per-pair"] * 3
    assert (table["subspace_logit_diff"] <= table["no_op_logit_diff"]).all()
    with pytest.raises(ValueError, match="does not go with"):
        Grid(**raw | {"kind": "pair", "fits": ("das",)})
