"""The record of a search is read back as it was written, and holds together."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from helpers_find import make_find, make_lacking, make_nowhere, make_place
from subspacelens.core.errors import ResultError
from subspacelens.find.record import FindRecord, load_find, save_find


@pytest.mark.parametrize("make", [make_find, make_lacking, make_nowhere])
def test_a_record_is_read_back(tmp_path, make):
    record = make()
    save_find(record, tmp_path / "find.json")
    assert load_find(tmp_path / "find.json") == record
    assert json.loads((tmp_path / "find.json").read_text())["schema"] == "subspacelens.find/1"


@pytest.mark.parametrize("label", ["illusory", "mixed", "undetermined"])
def test_nothing_but_what_an_audit_calls_faithful_is_found(label):
    with pytest.raises(ValidationError, match=f"found: L5.resid_post@S2 is {label}"):
        make_find(found=[make_place("L5.resid_post@S2", label)])


def test_an_outcome_agrees_with_what_was_found():
    with pytest.raises(ValidationError, match="outcome found with 0 found"):
        make_find(found=[])
    with pytest.raises(ValidationError, match="a map is missing"):
        make_find(patched=None)


def test_a_damaged_record_is_refused_in_one_line(tmp_path):
    path = tmp_path / "find.json"
    text = make_find().model_dump_json(by_alias=True)
    path.write_text(text.replace('"subspacelens.find/1"', '"subspacelens.audit/5"'))
    with pytest.raises(ResultError, match=r"find.json is not a subspacelens.find/1 record: schema"):
        load_find(path)


def test_all_places_are_listed():
    record = make_find()
    assert len(record.places) == 5
    assert FindRecord.model_validate_json(record.model_dump_json(by_alias=True)) == record
