"""The IOI study on the real model, the quick form: the circuit, three illusions, two features."""

from __future__ import annotations

import json

import pytest

from subspacelens import Site, ioi
from subspacelens.report.ioi_page import write_ioi
from subspacelens.studies.ioi import reproduce_ioi
from subspacelens.studies.ioi.data import with_first_token

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def study(lens):
    return reproduce_ioi(lens, quick=True)


@pytest.fixture(scope="module")
def record(study):
    return study.record


def table(rows) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        found.setdefault(row.site, {})[row.patch] = row.fldd.value
    return found


def illusions(rows) -> set[str]:
    """MLP sites with a subspace worth four times the whole, and at most half of it in its row."""
    return {
        site
        for site, fldd in table(rows).items()
        if Site.parse(site).stream == "mlp_act"
        and fldd["v_MLP"] >= 0.1
        and fldd["v_MLP"] >= 4 * fldd["full"]
        and fldd["v_MLP row"] <= fldd["v_MLP"] / 2
        and abs(fldd["v_MLP null"]) < 0.01
    }


def test_the_circuit(record):
    roles = {(r.label, r.role, r.component) for r in record.circuit.roles}
    assert ("S2", "writer", "L17.attn_out@S2") in roles
    assert ("END", "writer", "L20.attn_out@END") in roles
    assert ("S2", "reading layer", "L20") in roles and ("END", "reading layer", "L23") in roles
    assert [p.bottleneck for p in record.circuit.places] == [
        "L17.resid_post@S2",
        "L20.resid_post@END",
    ]
    assert all(head.startswith("23.") for head in record.circuit.name_movers)


def test_three_illusions_on_fresh_pairs_and_on_held_out_templates(record):
    held_out = record.generalisation[0]
    assert held_out.kind == "held-out templates"
    assert len(illusions(record.table1) & illusions(held_out.rows)) >= 3


def test_the_success_case(record):
    fldd = table(record.table1)["L20.resid_post@END"]
    assert fldd["v_resid along readers"] >= 0.8 * fldd["v_resid"]
    assert all(item.separation.value > 0.95 for item in record.success)
    assert all(min(item.cosines.values()) > 5 * item.random_cosine for item in record.success)


def test_controls(record):
    def effects(control: str, patch: str = "v") -> list[float]:
        return [c.fldd.value for c in record.controls if (c.control, c.patch) == (control, patch)]

    assert min(effects("random-weight MLP")) > 0.3
    assert max(map(abs, effects("random-weight MLP", "full"))) < 0.15
    assert min(effects("constructed illusion towards v_resid")) > 0.1
    random = [c for c in record.controls if c.control == "random directions"]
    assert all(abs(c.fldd.value) < 0.1 for c in random if "mlp_act" in c.site)
    built = {v.label for v in record.verdicts if v.direction == "constructed"}
    assert "faithful" not in built


def test_files(study, tmp_path):
    write_ioi(study, tmp_path)
    record = json.loads((tmp_path / "ioi.json").read_text())
    at_end = [row for row in record["table1"] if row["site"].endswith("@END")]
    assert any(row["paper"] for row in at_end)
    assert (tmp_path / "report.html").exists() and (tmp_path / "audits/das/report.html").exists()


def test_names_stand_in_the_papers_columns_after_bos(lens):
    pairs = with_first_token(
        ioi(lens.tokenizer, train=4, test=1).train, lens.tokenizer.bos_token_id
    )
    for pair in pairs:
        assert {pair.base.columns["IO"], pair.base.columns["S1"]} == {3, 5}
