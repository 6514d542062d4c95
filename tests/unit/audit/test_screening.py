"""Many directions at one site: p-values that are uniform by chance, verdicts as an audit gives."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import false_discovery_control, kstest

import subspacelens as sl
from helpers_models import tiny_lens
from helpers_oracle import random_pairs
from subspacelens.audit import judge, screening
from subspacelens.audit.record import Test as Evidence
from subspacelens.audit.screening import pooled
from subspacelens.report import write_screen
from subspacelens.report.screen_page import summary

SITE, LAST = "L2.mlp_act@X", "L2.mlp_act@END"


@pytest.fixture(scope="module")
def lens():
    return tiny_lens("llama", dtype=torch.float32)


@pytest.fixture(scope="module")
def captures(lens):
    """Pairs whose answer is what the model prefers of two random tokens."""

    def split(name: str, seed: int) -> sl.PairSet:
        drawn = random_pairs([(9, 4)] * 40, seed)
        clean = sl.capture(lens, drawn, [SITE]).clean.logit_diff
        pairs = [
            replace(p, z=(i % 2, 1 - i % 2))
            if d > 0
            else replace(p, answer=p.target, target=p.answer, z=(i % 2, 1 - i % 2))
            for i, (p, d) in enumerate(zip(drawn, clean.tolist(), strict=True))
        ]
        return sl.PairSet("preferred", name, tuple(pairs))

    task = sl.Task("preferred", split("train", 1), split("test", 2))
    return sl.capture_task(lens, task, [SITE, LAST])


@pytest.fixture(scope="module")
def directions(lens, captures) -> torch.Tensor:
    """Eleven that were drawn, none, and one fitted to the very pairs that it is judged on."""
    found = sl.das(lens, captures.test, SITE)
    random = torch.randn(11, 56, generator=torch.Generator().manual_seed(0))
    return torch.cat([random, torch.zeros(1, 56), found.basis.T])


@pytest.fixture(scope="module")
def screen(lens, captures, directions):
    return sl.screen(
        lens, captures, SITE, directions, rows=range(100, 113), origin={"file": "x.npy"}
    )


def test_p_values_are_uniform_by_chance_whatever_the_scale():
    random = np.random.default_rng(0)
    scale = np.exp(random.normal(0, 3, 1000))
    draws = random.standard_t(5, (1000, 21)) * scale[:, None]
    sizes, p = pooled(draws[:, 0], draws[:, 1:])
    assert kstest(p, "uniform").pvalue > 0.01
    assert abs((p <= 0.05).mean() - 0.05) < 0.02
    assert p.min() >= 1 / 20_001 and (np.diff(p[np.argsort(-sizes)]) >= 0).all()


def test_nothing_at_all_is_no_more_than_chance():
    sizes, p = pooled(np.zeros(3), np.zeros((3, 20)))
    assert sizes.tolist() == [0] * 3 and p.tolist() == [1] * 3


def test_a_row_is_patched_as_by_itself(lens, captures, directions, screen):
    assert [each.row for each in screen.rows] == [r for r in range(100, 113) if r != 111]
    assert list(screen.failed) == [111] and "zero or not finite" in screen.failed[111]
    for each in screen.rows:
        one = sl.Subspace.of(lens, SITE, directions[each.row - 100])
        fldd = sl.patch(lens, captures, SITE, one).fldd
        assert each.effect.fldd.value == pytest.approx(fldd.value, abs=1e-5)
    whole = sl.patch(lens, captures, SITE).fldd
    assert screen.whole.fldd.value == pytest.approx(whole.value, abs=1e-5)


def test_what_was_fitted_is_beyond_chance(screen):
    assert 112 in screen.beyond_chance and len(screen.beyond_chance) <= 3
    assert screen.rows[-1].q == min(each.q for each in screen.rows)
    q = false_discovery_control([each.p for each in screen.rows])
    assert [each.q for each in screen.rows] == pytest.approx(q.tolist())
    assert screen.random == 12 * 34  # at least 400 among 12 rows


def test_the_verdict_is_that_of_an_audit_with_q_for_p(lens, captures, directions, screen):
    for each in screen.rows[-3:]:
        one = sl.Subspace.of(lens, SITE, directions[each.row - 100])
        alone = judge(lens, captures, one, budget="fast", seed=each.row)
        chance = alone.tests["chance"].value
        if (chance <= 0.05) == (each.q <= 0.05):
            assert (each.label, each.code) == (alone.verdict.label, alone.verdict.code)


def test_nothing_is_faithful_that_is_no_more_than_chance(lens, captures, monkeypatch):
    def holds(case):
        return Evidence(value=1.0, low=0.9, high=1.1, control=0.0, reading="holds")

    def little(case):
        return Evidence(value=0.0, low=-0.1, high=0.1, control=0.5, reading="little")

    strong = sl.das(lens, captures.test, LAST).basis.T
    shares = ("full_component", "row_effect", "covariation", "natural", "acting")
    tests = dict.fromkeys(shares, holds) | dict.fromkeys(("read_source", "beyond"), little)
    for name, run in tests.items():
        monkeypatch.setitem(screening_tests(), name, ("fast", run))
    for q, label, code in ((0.01, "faithful", "holds"), (0.2, "undetermined", "chance")):
        monkeypatch.setattr(screening, "false_discovery_control", lambda p, q=q: np.full(len(p), q))
        (row,) = sl.screen(lens, captures, LAST, strong).rows
        assert (row.label, row.code) == (label, code)


def screening_tests():
    from subspacelens.audit import judging

    return judging.TESTS


def test_a_table_a_file_and_a_page(screen, tmp_path):
    frame = screen.frame()
    assert frame["row"].to_list() == [each.row for each in screen.rows]
    assert frame["q"].to_list() == [each.q for each in screen.rows]
    hostile = "</script><img src=x onerror=alert(1)>"
    page = write_screen(screen.model_copy(update={"origin": {"file": hostile}}), tmp_path)
    assert sl.Screen.load(tmp_path / "screen.json").rows == screen.rows
    text = page.read_text()
    assert summary(screen).split(" at ")[0] in text and hostile not in text
    assert len(text) < 3e6


def test_no_direction_at_all_is_refused(lens, captures):
    with pytest.raises(sl.SubspaceError, match="zero or not finite"):
        sl.screen(lens, captures, SITE, torch.zeros(2, 56))
    with pytest.raises(sl.SubspaceError, match="no direction to screen"):
        sl.screen(lens, captures, SITE, torch.zeros(0, 56))
    with pytest.raises(sl.SiteError, match="is not in the capture"):
        sl.screen(lens, captures, "L1.mlp_act@X", torch.ones(2, 56))
