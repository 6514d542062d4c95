"""Planted channels do what they are meant to, and the model is as it was afterwards."""

from __future__ import annotations

import pytest
import torch

from helpers_models import tiny_lens
from helpers_oracle import random_pairs
from subspacelens.bench import audit_table
from subspacelens.bench.audit import Result, summary
from subspacelens.bench.cases import CALIBRATION, HELD_OUT, plantings, subspaces
from subspacelens.bench.planted import ROLES, Channels, planted
from subspacelens.certify import require
from subspacelens.core.errors import SiteError
from subspacelens.core.site import Site
from subspacelens.engine.capture import capture
from subspacelens.model.lens import LensModel

SITE = Site(1, "mlp_act", "X")


def random_channels(lens: LensModel, per_role: int = 2, seed: int = 0) -> Channels:
    generator = torch.Generator().manual_seed(seed)
    roles = tuple(role for role in ROLES for _ in range(per_role))

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    mixing, _ = torch.linalg.qr(draw(len(roles), len(roles)))
    writes = draw(lens.map.d_model, len(roles))
    writes[:, [i for i, role in enumerate(roles) if role == "sensor"]] = 0
    return Channels(draw(len(roles), lens.map.d_model), draw(len(roles)), writes, mixing, roles)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_units_read_the_stream_and_write_to_it(family):
    """Against the sum written out by hand, and with nothing left behind."""
    lens = tiny_lens(family)
    channels, pairs = random_channels(lens), random_pairs([(9, 4), (9, 4)])
    before = {name: x.clone() for name, x in lens.model.state_dict().items()}
    mid, post = Site(1, "resid_mid", "X"), Site(1, "resid_post", "X")
    plain = capture(lens, pairs, [mid, post, SITE])
    with planted(lens, 1, channels) as wide:
        require(wide, SITE)
        captured = capture(wide, pairs, [SITE, post])
        assert wide.map.dim(SITE) == lens.map.dim(SITE) + len(channels.roles)
    values = plain.base[mid] @ channels.reads.T + channels.biases
    torch.testing.assert_close(
        captured.base[SITE][:, -len(channels.roles) :], values @ channels.mixing.T
    )
    torch.testing.assert_close(captured.base[SITE][:, : -len(channels.roles)], plain.base[SITE])
    torch.testing.assert_close(captured.base[post], plain.base[post] + values @ channels.writes.T)
    after = lens.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    again = capture(lens, pairs, [post])
    torch.testing.assert_close(again.base[post], plain.base[post], rtol=0, atol=0)


def test_a_direction_moves_its_unit_alone():
    lens = tiny_lens("llama")
    channels, pairs = random_channels(lens), random_pairs([(9, 4), (9, 4)])
    with planted(lens, 1, channels) as wide:
        captured = capture(wide, pairs, [SITE])
        replay, width = captured.at(SITE), wide.map.dim(SITE)
        difference = captured.difference(SITE)
        moved = {}
        for role in ("faithful", "sensor"):
            direction = channels.direction({channels.of(role)[0]: 1.0}, width)
            assert float(direction.norm()) == pytest.approx(1)
            delta = (difference @ direction)[:, None] * direction
            moved[role] = replay.delta_outcomes(delta).logit_diff - captured.clean.logit_diff
    assert float(moved["sensor"].abs().max()) < 1e-6 < float(moved["faithful"].abs().min())


def test_a_block_without_such_an_mlp_is_refused():
    lens = tiny_lens("mixtral")
    with (
        pytest.raises(SiteError, match="block 1 has no MLP"),
        planted(lens, 1, random_channels(lens)),
    ):
        pass


def test_halves_share_no_task_no_block_and_every_kind_is_there():
    for attribute in (lambda p: p.task, lambda p: p.site.layer):
        assert not {attribute(p) for p in CALIBRATION} & {attribute(p) for p in HELD_OUT}
    assert len({p.site.layer for p in HELD_OUT}) >= 4 and len({p.task for p in HELD_OUT}) >= 2
    lens, kinds, count, dims = tiny_lens("llama"), set(), 0, set()
    for number in range(len(HELD_OUT)):
        for planting in plantings(number):
            channels = random_channels(lens, planting.per_role)
            width = 56 + len(channels.roles)
            for case in subspaces(planting, channels, width, 0):
                assert case.basis.shape == (width, planting.k)
                torch.testing.assert_close(
                    case.basis.T @ case.basis, torch.eye(planting.k).double()
                )
                kinds.add(case.kind)
                dims.add(planting.k)
                count += 1
    assert kinds == {"faithful", "illusory", "mixed", "sensor", "dormant", "random"}
    assert dims == {1, 2, 4} and count >= 240


def made(kind: str, verdict: str, score: float, model: int, **changes) -> Result:
    share = {"faithful": 0.0, "illusory": 1.0, "mixed": 0.5}.get(kind)
    values = dict(
        half="held_out", task="t", site="s", tier="i", model=model, k=1, noise=0.2, drift=0.0,
        kind=kind, share=share, fldd=0.5, score=score, verdict=verdict,
        tests={"row_effect": 1 - score}, degenerate=False,
    )  # fmt: skip
    return Result(**(values | changes))


def test_scores_are_counted_as_they_should_be():
    results = [
        made("faithful", "faithful", 0.1, 0),
        made("faithful", "illusory", 0.9, 1),
        made("illusory", "illusory", 1.0, 0),
        made("illusory", "faithful", 0.2, 2),
        made("illusory", "undetermined", 0.5, 3),
        made("illusory", "undetermined", 0.6, 3, degenerate=True),
        made("sensor", "faithful", 0.0, 0),
        *(made("mixed", "faithful", s, 0, share=s) for s in (0.2, 0.4, 0.6)),
    ]
    scores = summary(results)
    assert scores["miss_rate"]["hits"] == 1 and scores["miss_rate"]["of"] == 3
    assert scores["false_alarm_rate"]["value"] == 0.5
    assert scores["undetermined_rate"]["value"] == pytest.approx(1 / 5)
    assert scores["inactive_called_faithful"]["value"] == 1
    assert scores["spearman_mixed"] == pytest.approx(1)
    # Of the 8 couples, the faithful case at 0.1 is below all four, that at 0.9 below one.
    assert scores["auroc"]["value"] == pytest.approx(5 / 8)
    assert scores["by_test"]["row_effect"]["value"] == pytest.approx(5 / 8)
    assert scores["auroc"]["low"] <= 5 / 8 <= scores["auroc"]["high"]


def test_cases_of_one_planted_model_are_one_unit_of_a_rate():
    def width(rate: dict) -> float:
        return rate["high"] - rate["low"]

    def miss_rate(cases: int) -> dict:
        verdicts = ["faithful"] * 3 + ["illusory"] * 9
        results = [made("illusory", v, 0.5, m) for m, v in enumerate(verdicts)]
        return summary(results * cases)["miss_rate"]

    assert miss_rate(8)["of"] == 8 * miss_rate(1)["of"] == 96
    assert width(miss_rate(8)) == pytest.approx(width(miss_rate(1)))
    never = summary([made("illusory", "illusory", 0.5, m) for m in (0, 1) for _ in range(50)])
    assert never["miss_rate"]["high"] > 0.5


def test_the_table_says_what_was_scored_controlled_and_left_out():
    half = summary([made("faithful", "faithful", 0.1, 0), made("illusory", "faithful", 0.9, 1)])
    row = dict(
        site="L1.mlp_act@X", kind="das", fldd=0.5, expected="faithful", verdict="illusory",
        score=0.75,
    )  # fmt: skip
    text = audit_table(half | {"calibration": half, "controls": [row], "skipped": ["one model"]})
    assert "| illusory called faithful | 1 of 1, 100%" in text
    assert "| `L1.mlp_act@X` | das | 0.50 | faithful | illusory | 0.75 |" in text
    assert "- one model" in text
    bare = audit_table(half | {"calibration": half, "controls": [], "skipped": []})
    assert "expected" not in bare and "Left out" not in bare
