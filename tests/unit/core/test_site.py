"""A site names one place, and only a place that there can be."""

from __future__ import annotations

import pytest

from subspacelens.core.errors import SiteError
from subspacelens.core.site import Site


@pytest.mark.parametrize(
    "text",
    [
        "L0.resid_pre@END",
        "L18.mlp_act@S2",
        "L9.head_z.3@END",
        "L9.attn_k.1@END",
        "L3.expert_act.5@END",
    ],
)
def test_what_is_read_is_written_again(text):
    assert str(Site.parse(text)) == text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, "resid_pre", "END"), "layer -1: blocks are counted from 0"),
        ((0, "head_z", "END", -1), "head -1: heads are counted from 0"),
        ((0, "mlp_act", "END", 1), "only head_z, attn_q"),
        ((0, "mlp", "END"), "unknown stream 'mlp'"),
        ((0, "expert_act", "END"), "needs the number of an expert, as in expert_act.5"),
        ((0, "mlp_act", ""), "it is empty"),
        ((0, "mlp_act", "*"), "stands for every label"),
        ((0, "mlp_act", "S" * 300), "300 characters"),
        ((0, "mlp_act", "S\x1b[31m"), "cannot be printed"),
        ((0, "mlp_act", "a/b"), "not allowed"),
    ],
)
def test_what_cannot_be_a_site_is_refused(arguments, message):
    with pytest.raises(SiteError, match=message):
        Site(*arguments)


@pytest.mark.parametrize(
    "text", ["L-1.resid_pre@END", "L0.head_z.-1@END", "L" + "9" * 5000 + ".mlp_act@S"]
)
def test_a_number_that_is_none_is_refused_in_a_short_line(text):
    with pytest.raises(SiteError, match="not of the form") as error:
        Site.parse(text)
    assert len(str(error.value)) < 300
