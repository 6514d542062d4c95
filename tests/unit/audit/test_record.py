"""`audit.json`: what was written is read back, and what no audit writes is refused in one line."""

from __future__ import annotations

import json
import re

import pytest

from helpers_records import make_record
from subspacelens.audit.record import load_audit, save_audit
from subspacelens.core.errors import ResultError
from subspacelens.core.records import EffectRecord
from subspacelens.report import write_report


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "site" / "audit.json"
    save_audit(make_record(), path)
    return path


def change(path, *keys, to) -> None:
    """Writes `to` at a place in the record."""
    data = json.loads(path.read_text())
    inner = data
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = to
    path.write_text(json.dumps(data))


def test_a_record_comes_back_as_it_was(path):
    record = load_audit(path)
    assert record == make_record()
    assert record.effect("subspace").fldd == record.effects["subspace"].fldd
    assert record.effect("unknown") == EffectRecord.absent()


@pytest.mark.parametrize("version", [1, 4])
def test_a_record_of_an_earlier_version_says_what_to_do(path, version):
    change(path, "schema", to=f"subspacelens.audit/{version}")
    message = rf"audit\.json .*audit/{version} is of an earlier version; run"
    with pytest.raises(ResultError, match=message):
        load_audit(path)


@pytest.mark.parametrize(
    ("keys", "to", "message"),
    [
        (
            ("tests", "chance"),
            {"value": 5.0, "reading": "p"},
            "chance: a p-value",
        ),
        (("tests", "row_effect", "low"), None, "two ends or none"),
        (("tests", "row_effect", "low"), 2.0, "ends before it begins"),
        (("effects", "full", "nats", "value"), 1e308, "effects.full.nats.value"),
        (("effects", "full"), {}, "effects.full.nats"),
        (("verdict", "score"), 1.5, "verdict.score"),
        (("figures", "dose_response", "dose"), [1.0], "figures.dose_response: as many of each"),
        (("figures", "support", "on"), [], "figures.support: as many of each"),
        (("figures", "projection", "z0"), [-1e308, 1e308], "figures.projection.z0.0"),
        (("seconds",), -1.0, "seconds"),
        (("clean",), [], "clean"),
    ],
)
def test_numbers_that_no_audit_gives_are_refused(path, keys, to, message):
    change(path, *keys, to=to)
    with pytest.raises(ResultError, match=re.escape(str(path)) + ".*" + message):
        load_audit(path)


@pytest.mark.parametrize("text", ["[]", "null", "", "{}", "5"])
def test_what_is_no_record_is_refused(path, text):
    path.write_text(text)
    with pytest.raises(ResultError, match=re.escape(str(path))):
        load_audit(path)


@pytest.mark.parametrize("value", [5e-324, -5e-324, 1e100, -1e100])
def test_extreme_numbers_make_a_page(path, value):
    change(path, "tests", "row_effect", to={"value": value, "low": value, "high": value,
                                            "control": value, "reading": "extreme"})  # fmt: skip
    change(path, "effects", "subspace", "nats", to={"value": value, "low": value, "high": value})
    change(path, "figures", "projection", to={"z0": [value] * 3, "z1": [0.0]})
    change(path, "figures", "dose_response", "effect", 0, to=value)
    assert write_report(path.parent.parent).exists()
