"""What the illusion map says in words, from made-up maps."""

from __future__ import annotations

import pytest

from subspacelens.core.records import Estimate, ModelRecord
from subspacelens.report.survey_page import ranked, reading
from subspacelens.survey import IllusionMap
from subspacelens.survey.illusions import Illusion, SiteIllusions


def site(layer: int, effect: float, whole: float) -> SiteIllusions:
    illusion = Illusion(
        effect=Estimate(value=effect), connected=Estimate(value=0.0), degrees=90.0,
        amplification=1.0, carries=None,
    )  # fmt: skip
    return SiteIllusions(
        layer=layer, label="END", whole=Estimate(value=whole), random=Estimate(value=0.0),
        illusions={"transpose of gradient": illusion}, sensed=None,
    )  # fmt: skip


@pytest.fixture
def illusions() -> IllusionMap:
    """Layer 0 has the largest effect, but its whole component does as much: no illusion works."""
    return IllusionMap(
        model=ModelRecord(id="m", weights_sha256="", dtype="float32"), task="t", train_pairs=8,
        test_pairs=8, test_sha256="", one_for_all=True, clean_logit_diff=1.0, layers=3,
        labels=["END"], seconds=1.0,
        sites=[site(0, 0.9, 0.8), site(1, 0.3, 0.0), site(2, 0.5, 0.01)],
    )  # fmt: skip


def test_the_strongest_is_one_that_works(illusions):
    text = reading(illusions, "END")
    assert "work at layers 1 and 2:" in text
    assert "The strongest of them, at layer 2, has FLDD 0.50" in text
    assert [each.layer for each in ranked(illusions, "END")] == [2, 1, 0]


def test_where_none_works_the_strongest_is_the_largest(illusions):
    none = illusions.model_copy(update={"sites": illusions.sites[:1]})
    assert "No layer meets the rule" in reading(none, "END")
    assert "The strongest, at layer 0, has FLDD 0.90" in reading(none, "END")
