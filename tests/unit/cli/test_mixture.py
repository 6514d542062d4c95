"""A mixture of experts on the command line: what it has is judged, what it lacks is one line."""

from __future__ import annotations

import pytest

from helpers_models import hub_folder
from subspacelens import load_audit

REFUSED, THERE, EXPERT = "L1.mlp_act@S2", "L1.mlp_out@S2", "L1.expert_act.2@S2"


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> tuple:
    model = hub_folder(tmp_path_factory.mktemp("mixture") / "model", "mixtral")
    return ("--model", model, "--pairs", 16)


def test_its_output_is_audited_and_its_units_are_refused(run, base, tmp_path):
    code, _, err = run(
        "audit", *base, "--site", REFUSED, "--site", THERE, "--fit", "pca", "--budget", "fast",
        "--out", tmp_path,
    )  # fmt: skip
    assert code == 2
    (line,) = [line for line in err.splitlines() if line.startswith("subspacelens: ")]
    assert REFUSED in line and "model.layers.1 has no single down-projection" in line
    record = load_audit(tmp_path / THERE / "audit.json")
    assert record.effects["full"].nats.value is not None
    assert "natural" in record.tests and "row_effect" not in record.tests


def test_several_places_of_it_are_patched(run, base):
    code, out, err = run("patch", *base, "--site", THERE, "--site", "L2.mlp_out@S2+END")
    assert code == 0, err
    assert "L2.mlp_out@END" in out and "interaction" in out


def test_an_expert_is_audited_on_the_pairs_that_are_sent_to_it(run, base, tmp_path):
    command = (*base[:2], "--pairs", 60, "--site", EXPERT)
    code, _, err = run("patch", *command)
    assert code == 2 and "tokens to expert 2" in err and "--skip" in err
    code, out, err = run("patch", *command, "--skip")
    assert code == 0 and "left out for not being sent to the expert, such as" in err, err
    kept = int(out.partition(" test pairs")[0].rsplit(maxsplit=1)[-1])
    assert EXPERT in out and 0 < kept < 60
    code, _, err = run(
        "audit", *command, "--skip", "--fit", "pca", "--budget", "fast", "--out", tmp_path
    )
    assert code == 0, err
    record = load_audit(tmp_path / EXPERT / "audit.json")
    assert 0 < record.task.test_pairs <= kept and "row_effect" in record.tests


def test_doctor_proves_an_expert(run, base):
    code, out, err = run("doctor", *base[:2], "--site", EXPERT)
    assert code == 0 and EXPERT in out, err
