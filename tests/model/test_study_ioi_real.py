"""The IOI study on the real model, in small: the circuit, three illusions, two features."""

from __future__ import annotations

import pytest

from subspacelens import ioi
from subspacelens.report.ioi_page import write_ioi
from subspacelens.studies.ioi import reproduce_ioi
from subspacelens.studies.ioi.data import FRESH, HELD_OUT, with_first_token
from subspacelens.studies.ioi.plan import Sizes

pytestmark = pytest.mark.model

SMALL = Sizes(
    map=2, train=32, test=16, held_out=16, heads=8, fresh=48,
    steps=40, control_steps=6, seeds=2, random_mlps=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def study(lens):
    return reproduce_ioi(lens, sizes=SMALL, quick=True)


@pytest.fixture(scope="module")
def record(study):
    return study.record


def test_the_circuit(record):
    roles = {(r.label, r.role, r.component) for r in record.circuit.roles}
    assert ("S2", "writer", "L17.attn_out@S2") in roles
    assert ("END", "writer", "L20.attn_out@END") in roles
    assert ("S2", "reading layer", "L20") in roles and ("END", "reading layer", "L23") in roles
    assert [p.bottleneck for p in record.circuit.places] == [
        "L17.resid_post@S2",
        "L20.resid_post@END",
    ]
    assert any(head.startswith("23.") for head in record.circuit.name_movers)


def test_three_illusions_on_fresh_pairs_and_on_held_out_templates(record):
    assert len(record.sites_where("illusion", FRESH, HELD_OUT)) >= 3


def test_the_success_case(record):
    assert record.sites_where("feature", FRESH, HELD_OUT) == [
        "L17.resid_post@S2",
        "L20.resid_post@END",
    ]
    assert all(item.separation.value > 0.95 for item in record.success)
    assert all(min(item.cosines.values()) > 5 * item.random_cosine for item in record.success)
    for item in record.success:
        left = {row.what: row.left.value for row in item.frozen}
        assert abs(left["all that attention reads at this token"]) < 0.1
        assert left["all that MLPs read at this token"] > 0.5


def test_controls(record):
    def effects(control: str, patch: str = "v") -> list[float]:
        return [c.fldd.value for c in record.controls if (c.control, c.patch) == (control, patch)]

    assert min(effects("random-weight MLP")) > 4 * max(effects("random-weight MLP", "full"))
    assert min(effects("constructed illusion towards v_resid")) > 0.1
    random = [c for c in record.controls if c.control == "random directions"]
    assert all(abs(c.fldd.value) < 0.1 for c in random if "mlp_act" in c.site)
    assert all(row.random < 0.1 for row in record.selectivity)


def test_files(study, tmp_path):
    page = write_ioi(study, tmp_path)
    at_end = [row for row in study.record.table1 if row.site.endswith("@END")]
    assert any(row.paper for row in at_end)
    assert page.exists() and (tmp_path / "audits/das/report.html").exists()


def test_names_stand_in_the_papers_columns_after_bos(lens):
    pairs = with_first_token(
        ioi(lens.tokenizer, train=4, test=1).train, lens.tokenizer.bos_token_id
    )
    for pair in pairs:
        assert {pair.base.columns["IO"], pair.base.columns["S1"]} == {3, 5}
