"""The start page: every result once, what cannot be read with why, and links that lead there."""

from __future__ import annotations

import json
import os
from urllib.parse import unquote

import pytest

from helpers_find import make_find, make_nowhere
from helpers_page import HOSTILE, Page
from helpers_pages import audits, search
from helpers_records import make_record
from subspacelens.audit.failure import Failure
from subspacelens.audit.record import save_audit
from subspacelens.core.errors import ResultError
from subspacelens.report import write_pages
from subspacelens.report.index_page import summary
from subspacelens.report.results import results_below
from subspacelens.sweep.store import Store


@pytest.fixture
def runs(tmp_path):
    """Two runs of audits, a search, maps, the toy, an empty sweep, and what is no result."""
    audits(tmp_path / "a")
    save_audit(make_record("faithful", "L3.mlp_act@END"), tmp_path / "b/one/audit.json")
    search(tmp_path / "c/find")
    patched, instant = make_find().patched, make_find().instant
    (tmp_path / "map").mkdir()
    (tmp_path / "map/map.json").write_text(patched.model_dump_json(by_alias=True))
    (tmp_path / "map/instant.json").write_text(instant.model_dump_json(by_alias=True))
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy/toy.json").write_text(json.dumps({"schema": "subspacelens.toy/2"}))
    (tmp_path / "toy/report.html").touch()
    Store(tmp_path / "sweep")
    save_audit(make_record(), tmp_path / "sweep/records/ab/cd/audit.json")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/facts.json").write_text("[1]")
    Failure(site="L9.mlp_act@END", error="it broke", command="").save(tmp_path / "a")
    save_audit(make_record(), tmp_path / ".hidden/site/audit.json")
    return tmp_path


def test_every_result_is_listed_once(runs):
    found, unread = results_below(runs)
    told = {(each.path.relative_to(runs).as_posix(), each.kind, each.verdict) for each in found}
    assert told == {
        ("a/L18.mlp_act@S2/audit.json", "audit", "illusory"),
        ("a/L17.resid_post@S2/audit.json", "audit", "faithful"),
        ("a/L16.mlp_act@S2/audit.json", "audit", "undetermined"),
        ("b/one/audit.json", "audit", "faithful"),
        ("c/find/find.json", "search", "found"),
        *(
            (f"c/find/{place.site}/audit.json", "audit", place.label)
            for place in make_find().places
        ),
        ("map/map.json", "map", ""),
        ("map/instant.json", "instant map", ""),
        ("toy/toy.json", "toy", ""),
        ("sweep", "sweep", ""),
    }
    assert [each.path.name for each in unread] == ["failure.json", "facts.json"]
    assert unread[0].reason == "L9.mlp_act@END: it broke"
    assert "is not a record of facts" in unread[1].reason
    by_kind = {each.kind: each for each in found}
    assert by_kind["map"].site.startswith("most at L") and by_kind["map"].fldd.value > 0.9
    assert by_kind["sweep"].site == "0 cells"
    assert by_kind["search"].fldd == make_find().found[0].effect.fldd


def test_links_lead_to_the_pages_or_else_to_the_records(runs):
    (page,) = write_pages(runs)
    assert page == runs / "index.html"
    parsed = Page(page.read_text(encoding="utf-8"))
    links = [a["href"] or "" for a in parsed.named("a") if a["href"] != "#content"]
    assert {
        "a/report.html#site-1", "a/report.html#site-3", "b/one/audit.json", "c/find/find.html",
        "c/find/report.html#site-1", "map/map.json", "toy/report.html", "sweep", "bad/facts.json",
    } <= set(links)  # fmt: skip
    assert all((runs / unquote(link.partition("#")[0])).exists() for link in links)


def test_the_table_says_of_each_what_it_is(runs):
    write_pages(runs)
    parsed = Page((runs / "index.html").read_text(encoding="utf-8"))
    words = " ".join(parsed.text.split())
    assert "14 results: 9 audits (4 faithful, 3 illusory, 2 undetermined), 1 search" in words
    assert "2 more cannot be shown" in words
    row = "L3.mlp_act@ENDb/one/audit.jsonFaithful1.37[1.21,1.51]auditsynthetic/model-135mioi"
    assert row in "".join(parsed.text.split())
    assert all(a["scope"] in ("row", "col") for a in parsed.named("th"))
    times = [a["datetime"] for a in parsed.named("time")]
    assert len(times) == 14 and all(
        len(time or "") == len("2026-11-30T08:00:00+00:00") for time in times
    )
    assert len((runs / "index.html").read_bytes()) < 1e5


def test_a_run_of_audits_alone_has_its_report_and_no_start_page(tmp_path):
    audits(tmp_path)
    (tmp_path / "report.html").unlink()
    assert write_pages(tmp_path) == [tmp_path / "report.html"]
    assert not (tmp_path / "index.html").exists()
    save_audit(make_record(), tmp_path / "more/deep/site/audit.json")
    assert write_pages(tmp_path) == [tmp_path / "report.html", tmp_path / "index.html"]


def test_a_search_alone_has_its_page_and_no_start_page(tmp_path):
    search(tmp_path, make_nowhere())
    Store(tmp_path / "kept")
    (tmp_path / "find.html").unlink()
    assert write_pages(tmp_path) == [tmp_path / "find.html"]


def test_hostile_names_stay_text_and_links(tmp_path):
    site = "javascript:alert(1)<img src=x>"
    task = make_record().task.model_copy(update={"name": HOSTILE})
    record = make_record(site=HOSTILE, task=task)
    save_audit(record, tmp_path / "<b>run" / site / "audit.json")
    bad = tmp_path / os.fsdecode(b"\xff<i>") / "toy.json"
    bad.parent.mkdir()
    bad.write_text(json.dumps({"schema": HOSTILE}))
    write_pages(tmp_path)
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    parsed = Page(text)
    assert "alert(2)" in parsed.text and "<img" not in text and "<script>alert" not in text
    assert not {"b", "i", "img"} & {tag for tag, _ in parsed.elements}
    links = [a["href"] or "" for a in parsed.named("a")]
    assert not any(":" in link for link in links)
    assert "%FF%3Ci%3E/toy.json" in links


def test_nothing_to_report_is_said_in_one_line(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ResultError, match="nothing to report"):
            write_pages(folder)
    assert not list(tmp_path.iterdir())


def test_links_to_folders_are_not_followed(tmp_path):
    save_audit(make_record(), tmp_path / "run/site/audit.json")
    (tmp_path / "run/loop").symlink_to(tmp_path)
    found, unread = results_below(tmp_path)
    assert len(found) == 1 and not unread


def test_the_summary_counts():
    assert summary([], []) == "0 results."
