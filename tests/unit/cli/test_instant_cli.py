"""`survey --instant`, and the instant map beside that of `map`."""

from __future__ import annotations

import pytest

from subspacelens.measure.maps import InstantMap, PatchingMap


def test_survey_instant_writes_a_page_and_json(run, tiny_folder, tmp_path):
    code, out, _ = run(
        "survey", "--instant", "--model", tiny_folder, "--pairs", 8, "--refine", 2, "--label", "S2",
        "--stream", "mlp_act", "--stream", "head_z", "--dim", 2, "--out", tmp_path,
    )  # fmt: skip
    assert code == 0 and "predicted: whole" in out
    assert {p.name for p in tmp_path.iterdir()} == {"instant.json", "instant.svg", "instant.html"}
    found = InstantMap.load(tmp_path / "instant.json")
    assert (found.streams, found.labels, found.dim) == (("mlp_act", "head_z"), ("S2",), 2)
    assert len(found.refined) == 2 and found.pairs == 8


def test_map_shows_it_beside(run, tiny_folder, tmp_path):
    code, _, _ = run("map", "--model", tiny_folder, "--pairs", 8, "--out", tmp_path)
    assert code == 0
    seen, promised = (
        kind.load(tmp_path / f"{name}.json")
        for kind, name in ((PatchingMap, "map"), (InstantMap, "instant"))
    )
    assert {e.site for e in seen.sites()} == {s.site for s in promised.sites()}
    assert "of it illusion" in (tmp_path / "map.html").read_text()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--refine", "3"], "--stream, --refine and --dim go with --instant"),
        (["--stream", "mlp_act"], "--stream, --refine and --dim go with --instant"),
        (["--instant", "--das"], "give one of them"),
        (["--instant", "--stream", "mlp"], "unknown stream 'mlp'"),
        (["--instant", "--label", "S9"], "no label 'S9'"),
    ],
)
def test_what_does_not_go_together_is_refused(run, tiny_folder, tmp_path, more, message):
    code, _, err = run("survey", "--model", tiny_folder, "--out", tmp_path, *more)
    assert code == 2 and message in err and "\n" not in err.strip()
