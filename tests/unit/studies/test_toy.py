"""The distilled example, and the lemma behind it for any linear map."""

from __future__ import annotations

import json
from math import cos, pi, sin

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from subspacelens.core.geometry import Split
from subspacelens.engine.patches import SubspacePatch
from subspacelens.report.toy_page import write_toy
from subspacelens.studies.toy import DIRECTIONS, effect, hidden, output, run_toy

NAMES = list(DIRECTIONS)


@pytest.fixture(scope="module")
def result():
    return run_toy(pairs=50)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (NAMES[0], (0, None, 0, 0, 0, 0)),
        (NAMES[1], (0, 1, 0.8, 0, 0.8, -0.8)),
        (NAMES[2], (1, 1, 0.2, 0, 0.2, 0.8)),
        (NAMES[3], (1, 1, 0.4, 0, 0.4, 0.6)),
    ],
)
def test_table_is_what_algebra_says(result, name, expected):
    """By hand: h = (1, 0, 1)x, read out by (0, 2, 1); the row space is spanned by (0, 2, 1)/√5."""
    assert tuple(result.table[name].values()) == pytest.approx(expected, abs=1e-12)


def test_sweep_and_span(result):
    for degrees, size in result.sweep:
        assert size == pytest.approx(sin(2 * degrees * pi / 180), abs=1e-12)
    assert result.span == pytest.approx(0, abs=1e-12)
    assert result.component == pytest.approx(1)


@pytest.mark.parametrize(
    ("name", "units", "label", "code", "conditions"),
    [
        (NAMES[0], (1,), "undetermined", "small", (None, None, None)),
        (NAMES[1], (2,), "undetermined", "small", (None, None, None)),
        (NAMES[2], (3,), "undetermined", "whole", (1, 1, 1)),
        (NAMES[3], (1, 2), "illusory", "fails", (0, 0, 0)),
    ],
)
def test_the_rule_says_of_the_units_of_a_direction_what_the_paper_says(
    result, name, units, label, code, conditions
):
    """By hand: y = 2 h2 + h3, and units 1 and 2 together never change it."""
    found, _ = result.verdicts[name]
    assert (found.units, found.verdict.label, found.verdict.code) == (units, label, code)
    assert tuple(found.conditions.values()) == pytest.approx(conditions, abs=1e-12)


def test_in_the_whole_layer_nothing_tells_the_true_direction_from_the_illusory_one(result):
    """Both patches write the same for every pair, so that the first three conditions hold. What
    keeps the rule from calling an illusion faithful is that any direction does as much; the true
    one reads more through the kernel than such a direction would, and little along what acts."""
    true, false = (result.verdicts[name][1] for name in NAMES[2:])
    for found in (true, false):
        assert found.units == (1, 2, 3)
        assert tuple(found.conditions.values()) == pytest.approx((1, 1, 1))
        assert found.verdict.label == "undetermined"
    assert (true.verdict.code, false.verdict.code) == ("conflict", "chance")
    assert "the output has one dimension" in false.verdict.reasons[0]
    base, source = torch.randn(2, 20, generator=torch.Generator().manual_seed(1))
    first, second = (
        output(SubspacePatch(DIRECTIONS[name]).delta(hidden(base), hidden(source)))
        for name in NAMES[2:]
    )
    torch.testing.assert_close(first, second)


def test_the_theory_is_exact_here(result):
    """Its best direction of units 1 and 2 is the illusory one, and does all; of the layer, the one
    halfway between (1, 0, 1) and (0, 2, 1), at the cosine of these two."""
    illusory, layer = result.promises
    assert illusory.units == (1, 2) and layer.units == (1, 2, 3)
    assert illusory.direction == pytest.approx((2**-0.5, 2**-0.5, 0))
    assert (illusory.best, illusory.whole, illusory.cosine, illusory.illusion) == pytest.approx(
        (result.table[NAMES[3]]["full"], 0, 0, 1), abs=1e-9
    )
    cosine = 10**-0.5
    assert (layer.whole, layer.cosine, layer.illusion) == pytest.approx(
        (result.component, cosine, 1 - cosine)
    )
    v = torch.tensor(layer.direction)[:, None].double()
    base, source = torch.randn(2, 20, generator=torch.Generator().manual_seed(1)).double()
    assert effect(SubspacePatch(v), base, source) == pytest.approx(layer.best)
    assert layer.best == pytest.approx((1 + cosine) / 2 * 10**0.5)


def test_page_and_tables(result, tmp_path):
    page = write_toy(result, tmp_path)
    assert "Turn the direction" in page.read_text()
    record = json.loads((tmp_path / "toy.json").read_text())
    assert record["table"][NAMES[3]]["full"] == pytest.approx(1)
    assert record["verdicts"][NAMES[3]][0]["verdict"]["label"] == "illusory"
    table = (tmp_path / "toy.md").read_text()
    assert "| 0.40 |" in table
    assert f"| {NAMES[3]} | units 1, 2 | 0.00 | 0.00 | 0.00 | illusory |\n" in table
    assert f"\n- {NAMES[3]}, units 1, 2, illusory: the whole component does 0%" in table


@st.composite
def networks(draw):
    """A random wide map W, a natural difference Δ, and unit directions n̂ in ker W, d̂ ⟂ Δ in its
    row space."""
    rows, columns = draw(st.integers(2, 6)), draw(st.integers(9, 14))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    delta = torch.randn(columns, generator=generator, dtype=torch.float64)
    split = Split.of(weight)
    null = split.null(delta[:, None])[:, 0]
    dormant = split.row(torch.randn(columns, 1, generator=generator, dtype=torch.float64))[:, 0]
    seen = split.row(delta[:, None])[:, 0]
    dormant = dormant - (dormant @ seen) / (seen @ seen) * seen
    return weight, delta, null / null.norm(), dormant / dormant.norm()


def written(weight, delta, v):
    """What the patch along v writes downstream."""
    change = SubspacePatch(v[:, None]).delta(torch.zeros_like(delta)[None], delta[None])[0]
    return weight @ change


@settings(deadline=None)
@given(networks(), st.floats(0.05, pi / 2 - 0.05))
def test_effect_of_an_angle_is_half_its_double_sine(network, theta):
    weight, delta, n, d = network
    got = written(weight, delta, cos(theta) * n + sin(theta) * d)
    torch.testing.assert_close(got, 0.5 * sin(2 * theta) * float(n @ delta) * (weight @ d))


@settings(deadline=None)
@given(networks(), st.floats(0, pi / 2))
def test_no_angle_beats_45_degrees(network, theta):
    weight, delta, n, d = network
    best = written(weight, delta, (n + d) / 2**0.5).norm()
    other = written(weight, delta, cos(theta) * n + sin(theta) * d).norm()
    assert float(other) <= float(best) * (1 + 1e-12)


@settings(deadline=None)
@given(networks(), st.floats(0.1, pi / 2 - 0.1))
def test_an_illusory_patch_equals_a_true_one_when_the_sizes_match(network, theta):
    """A residual patch along unit t moves the stream by (tᵀΔ_r) t. The illusory one does the same
    if W d̂ is parallel to t and sin θ (cos θ n̂ᵀΔ + sin θ d̂ᵀΔ) ‖W d̂‖ = tᵀΔ_r."""
    weight, delta, n, d = network
    t = weight @ d / (weight @ d).norm()
    size = sin(theta) * (cos(theta) * float(n @ delta) + sin(theta) * float(d @ delta))
    residual_difference = size * float((weight @ d).norm()) * t
    true_patch = SubspacePatch(t[:, None]).delta(
        torch.zeros_like(t)[None], residual_difference[None]
    )
    got = written(weight, delta, cos(theta) * n + sin(theta) * d)
    torch.testing.assert_close(got, true_patch[0])
    doubled = written(weight, 2 * delta, cos(theta) * n + sin(theta) * d)
    assert float((doubled - true_patch[0]).norm()) > 1e-9
