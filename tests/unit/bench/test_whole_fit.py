"""Whole fits to equal loss: who reached it and when, and the processes that they run in."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helpers_models import tiny_lens
from helpers_oracle import random_pairs
from helpers_tokenizer import ioi_tokenizer
from subspacelens.bench import environments, fits_rows, peer_pythons
from subspacelens.bench.environments import PACKAGES
from subspacelens.bench.peers import first_direction
from subspacelens.bench.shadow import shadow
from subspacelens.bench.whole_fit import Course, Point, job_of, reports, whole_fits
from subspacelens.core.errors import LensError, TaskError
from subspacelens.core.site import Site
from subspacelens.engine.capture import capture
from subspacelens.engine.patches import SubspacePatch
from subspacelens.model.lens import LensModel
from subspacelens.tasks.pairset import PairSet

SITE = Site(2, "mlp_act", "X")


def course(*points: tuple[float, float, float]) -> Course:
    return Course(
        name="hooks",
        points=tuple(Point(steps, *point) for steps, point in enumerate(points, 1)),
        peak_rss_bytes=1,
        load_seconds=0.0,
        loss_error=None,
        versions={},
    )


HOOKS = course((2.0, 3.0, 0.1), (3.0, 2.0, 0.6), (4.0, 1.0, 0.5), (5.0, 0.5, 0.9))


def test_the_first_point_that_reaches_the_effect_counts() -> None:
    there = HOOKS.reaching(0.6)
    assert there is not None and (there.steps, there.seconds) == (2, 3.0)
    assert HOOKS.reaching(0.91) is None


def test_steps_that_were_not_made_are_taken_at_ones_own_pace() -> None:
    slow = course((20.0, 3.001, 0.1), (30.0, 1.999, 0.6))
    there = slow.continued(HOOKS.points, 0.9)
    assert there is not None and (there.steps, there.seconds) == (4, 60.0)


def test_other_losses_are_not_continued() -> None:
    assert course((20.0, 3.0, 0.1), (30.0, 2.1, 0.6)).continued(HOOKS.points, 0.9) is None
    assert course((20.0, 3.0, 0.1)).continued(HOOKS.points, 0.95) is None


def process(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_a_process_goes_on_only_when_it_is_asked_to(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    code = (
        "import sys\n"
        "for n in range(9):\n"
        f"    print('{{\"n\": %d}}' % n, flush=True); heard = sys.stdin.readline()\n"
        f"    print(repr(heard), file=open({str(seen)!r}, 'a'))\n"
        "    if heard != 'on\\n': break\n"
    )
    with closing(reports("rival", process(code))) as lines:
        assert [next(lines), next(lines)] == [{"n": 0}, {"n": 1}]
    assert seen.read_text().split() == [r"'on\n'", "''"]


@pytest.mark.parametrize(
    "code, reason",
    [
        ("raise SystemExit('no such hook')", "rival failed: no such hook"),
        ("print('nnsight is not detected')", "no report: nnsight is not detected"),
        ("print([1])", r"no report: \[1\]"),
    ],
)
def test_what_went_wrong_in_a_process_is_said(code: str, reason: str) -> None:
    with pytest.raises(LensError, match=reason):
        list(reports("rival", process(code)))


def test_peers_are_checked_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUBSPACELENS_CACHE", str(tmp_path))
    with pytest.raises(LensError, match="unknown peer 'nnsight': one of transformer-lens, pyvene"):
        peer_pythons({"nnsight": Path(sys.executable)})
    with pytest.raises(LensError, match="no Python at"):
        peer_pythons({"pyvene": tmp_path / "python"})
    given = peer_pythons({"pyvene": Path(sys.executable)})
    assert given["pyvene"] == Path(sys.executable)


def test_an_index_that_cannot_be_reached_is_named_and_nothing_half_made_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(command: list[str], **_) -> subprocess.CompletedProcess:
        failed = "pip" in command
        return subprocess.CompletedProcess(command, failed, "", "ERROR: no route\n" * failed)

    monkeypatch.setenv("SUBSPACELENS_CACHE", str(tmp_path))
    monkeypatch.setattr(environments.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(environments.subprocess, "run", offline)
    with pytest.raises(LensError, match=r"cannot install transformer-lens.*: ERROR: no route"):
        peer_pythons({}, install=True)
    assert peer_pythons({}) == {}


def tiny() -> tuple[LensModel, PairSet]:
    lens = replace(tiny_lens("llama", dtype=torch.float32), tokenizer=ioi_tokenizer())
    pairs = random_pairs([(9, 5)] * 6)
    right = capture(lens, pairs, [SITE]).clean.logit_diff > 0
    return lens, PairSet(
        pairs.name,
        pairs.split,
        tuple(
            pair if preferred else replace(pair, answer=pair.target, target=pair.answer)
            for pair, preferred in zip(pairs, right, strict=True)
        ),
    )


def test_the_shadow_starts_where_the_others_do_and_goes_down(tmp_path: Path) -> None:
    lens, pairs = tiny()
    replay = capture(lens, pairs, [SITE]).at(SITE)
    job = tmp_path / "job.json"
    job.write_text(json.dumps(job_of(lens, pairs, SITE, tmp_path, 4)))
    losses, directions = zip(*shadow(replay, job), strict=True)
    start = SubspacePatch(first_direction(lens.map.dim(SITE)))
    assert losses[0] == pytest.approx(float(replay.outcomes(start).logit_diff.mean()), abs=1e-5)
    assert losses[3] < losses[0]
    assert all(float(each.norm()) == pytest.approx(1, abs=1e-5) for each in directions)


def test_a_model_that_prefers_no_answer_is_refused() -> None:
    lens, pairs = tiny()
    with pytest.raises(TaskError, match="does not prefer the answers"):
        whole_fits(lens, pairs, pairs.exchanged(), [SITE], {})


@pytest.fixture(scope="module")
def found() -> dict:
    lens, pairs = tiny()
    result = whole_fits(lens, pairs, pairs, [SITE], peer_pythons({}), steps=3, whole=True)
    return result[str(SITE)]


@pytest.mark.long
def test_hooks_in_another_process_train_on_what_the_replay_trains_on(found: dict) -> None:
    hooks = found["fits"]["hooks"]
    assert len(hooks["curve"]) == 3 and hooks["loss_error"] < 1e-4
    losses = [loss for _, _, loss, _ in hooks["curve"]]
    assert losses == sorted(losses, reverse=True)


@pytest.mark.long
def test_our_recipe_gives_the_same_by_replay_and_by_hooks(found: dict) -> None:
    ours, hooked = (found["fits"][name] for name in ("subspacelens", "hooks, our recipe"))
    for (*_, loss, fldd), (*_, their_loss, their_fldd) in zip(
        ours["curve"], hooked["curve"], strict=True
    ):
        assert loss == pytest.approx(their_loss, abs=1e-3)
        assert fldd == pytest.approx(their_fldd, abs=1e-3)


@pytest.mark.long
@pytest.mark.parametrize("name", PACKAGES)
def test_a_rival_trains_on_the_same_or_is_reported_as_missing(found: dict, name: str) -> None:
    fit = found["fits"][name]
    if name not in peer_pythons({}):
        assert (fit["run"], fit["why"], fit["seconds"]) == ("not run", "not installed", None)
        pytest.skip(f"{name} is not installed")
    assert fit["loss_error"] < 1e-3


@pytest.mark.long
def test_the_table_has_a_row_a_fit_and_plain_hooks_first(found: dict) -> None:
    rows = fits_rows({"fits": {str(SITE): found}})
    assert [row[1] for row in rows] == [
        "hooks", "hooks, our recipe", "transformer-lens", "pyvene", "subspacelens",
    ]  # fmt: skip
