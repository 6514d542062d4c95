"""The bench of the instant map, on a model so small that a site takes milliseconds."""

from __future__ import annotations

import json

import numpy as np
import pytest

from subspacelens import load_model, pairs_task
from subspacelens.bench import bench_instant, calibration_figure, instant_table
from subspacelens.bench import instant as module
from subspacelens.bench.instant import points, spread, summary
from subspacelens.bench.tiny import tiny_model, tiny_pairs
from subspacelens.core.kept import kept

SITES, PAIRS = 16, 12


@pytest.fixture(scope="module")
def lens(tmp_path_factory):
    return load_model(tiny_model(tmp_path_factory.mktemp("bench") / "model"), device="cpu")


@pytest.fixture(scope="module")
def task(lens, tmp_path_factory):
    return pairs_task(lens.tokenizer, tiny_pairs(tmp_path_factory.mktemp("pairs") / "pairs.jsonl"))


@pytest.fixture(scope="module")
def done(lens, task, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return bench_instant(lens, [task], folder, sites=SITES, pairs=PAIRS), folder


def test_sites_are_spread_over_layers_streams_and_labels(lens):
    sites = spread(lens, ("NOUN", "END"), 28, seed=0)
    assert [site.layer for site in sites] == sorted(site.layer for site in sites)
    assert {sum(s.layer == layer for s in sites) for layer in range(4)} == {7}
    assert len({(s.stream, s.label) for s in sites}) == 14
    assert sites == spread(lens, ("NOUN", "END"), 28, seed=0)
    assert sites != spread(lens, ("NOUN", "END"), 28, seed=1)


def test_every_site_has_what_was_predicted_and_what_was_seen(done):
    result, folder = done
    assert len(result["rows"]) >= SITES - 4
    for row in result["rows"]:
        for mode in ("first", "refined"):
            assert row[mode]["das"] > 0
        assert row["seen"].keys() == {"whole", "das", "natural", "closed", "illusion"}
    assert len(list(folder.rglob("*.json"))) == len(result["rows"])


def test_what_is_done_is_not_done_again(lens, task, done, monkeypatch):
    result, folder = done
    monkeypatch.setattr(module, "capture", lambda *a, **k: pytest.fail("captured again"))
    again = bench_instant(lens, [task], folder, sites=SITES, pairs=PAIRS)
    assert sorted(json.dumps(r) for r in again["rows"]) == sorted(
        json.dumps(r) for r in result["rows"]
    )


def test_a_row_of_other_pairs_or_a_damaged_one_is_made_anew(done, tmp_path):
    _, folder = done
    path = next(iter(sorted(folder.rglob("*.json"))))
    origin = json.loads(path.read_text())["origin"]
    assert kept(path, origin) is not None
    assert kept(path, origin | {"train": "other"}) is None
    (tmp_path / "half.json").write_text(path.read_text()[:-20])
    assert kept(tmp_path / "half.json", origin) is None


def made(predicted, seen, clean=2.0):
    return [
        dict(
            task="a", site=f"L{i}.mlp_act@END", scale=clean, clean=clean,
            first=dict(whole=p, das=p, illusion=0.5), refined=dict(whole=s, das=s, illusion=None),
            seen=dict(whole=s, das=s, illusion=0.5),
        )
        for i, (p, s) in enumerate(zip(predicted, seen, strict=True))
    ]  # fmt: skip


def test_the_summary_says_how_right_it_was():
    rows = made([1.0, 2.0, 3.0, 4.0], [2.0, 4.0, 6.0, 20.0])
    found = {(r["task"], r["mode"], r["quantity"]): r for r in summary(rows)}
    first, refined = found["a", "first", "das"], found["all", "refined", "das"]
    assert first["spearman"] == refined["spearman"] == pytest.approx(1)
    assert refined["error"] == 0 and refined["slope"] == pytest.approx(1)
    assert first["worst"][0] == {"site": "a L3.mlp_act@END", "predicted": 2.0, "seen": 10.0}
    assert found["a", "refined", "illusion"]["sites"] == 0
    _, predicted, seen = points(rows, "first", "whole")
    np.testing.assert_allclose(seen / predicted, [2, 2, 2, 5])
    assert not len(points(made([1.0], [1.0], clean=-1.0), "first", "das")[0])


def test_the_table_and_the_picture_show_all(done):
    result, _ = done
    table = instant_table(result)
    assert table.count("\n") == 2 + len(result["summary"])
    figure = calibration_figure(result)
    assert len(figure.data) == 6 * 2


def test_the_command_writes_all_of_it(run, tiny_folder, tmp_path):
    code, out, err = run(
        "bench", "instant", "--model", tiny_folder, "--task", "ioi", "--quick", "--out", tmp_path
    )
    assert code == 0, err
    assert "| ioi | whole component | first order |" in out
    assert {p.name for p in tmp_path.iterdir()} == {
        "ioi", "bench-instant.json", "instant.md", "calibration.html"
    }  # fmt: skip
