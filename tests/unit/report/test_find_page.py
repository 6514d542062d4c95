"""The page of a search: every answer has its page, and nothing from a record can act in it."""

from __future__ import annotations

import re

import pytest

from helpers_find import make_find, make_lacking, make_nowhere, make_place
from helpers_page import HOSTILE, Page
from helpers_pages import search
from helpers_records import make_record
from subspacelens.core.errors import ResultError
from subspacelens.core.records import Estimate
from subspacelens.find.record import ControlsCount, Prediction, Share, Writer
from subspacelens.measure.maps import PatchingMap
from subspacelens.report import write_find_page
from subspacelens.report.find_page import model_figure, render_find, times


def patched_of(record):
    return PatchingMap.from_json(record.patched.model_dump_json(by_alias=True))


def test_what_was_found_has_a_card_with_its_numbers():
    parsed = Page(render_find(make_find()))
    cards = [a for a in parsed.named("article") if (a["class"] or "").startswith("card")]
    assert [a["class"] for a in cards] == ["card faithful", "card faithful"]
    words = " ".join(parsed.text.split())
    assert words.index(make_find().answer) < words.index("Found")
    assert "of the whole effect 97.0 %" not in words and "97 %" in words
    assert "24 of 24" in words and "not asked for" in words
    assert "L5.head_z.2 0.61, L4.mlp_out 0.20, embedding 0.01" in words
    assert "L7.q_proj.1 0.40" in words


def test_traps_are_told_with_why_and_what_was_searched_with_how_it_is_corrected():
    parsed = Page(render_find(make_find()))
    words = " ".join(parsed.text.split())
    fooled = words[words.index("These sites would have fooled you") :]
    for part in (
        "L6.mlp_act@S2", "DAS is predicted to do 0.70 here, the whole component does 0.03",
        "Patching the whole component does almost nothing", "By prediction alone", "L7.mlp_act@S2",
        "94.0 %", "L5.head_z.2@S2", "128 pairs to fit on, 64 to choose", "128 fresh ones to judge",
        "5 sites audited", "144 whole components", "L3.mlp_act@S2: synthetic",
    ):  # fmt: skip
        assert part in fooled, part


def test_the_subspace_is_loaded_by_code_that_names_its_file():
    parsed = Page(render_find(make_find()))
    assert "sl.load_subspace('L5.resid_post@S2/subspace.safetensors', lens)" in parsed.text
    compile(
        re.findall(r"import subspacelens.*?examples\(5\)\)", parsed.text, re.S)[0], "page", "exec"
    )
    nothing = make_find(found=[make_place("L5.resid_post@S2", "faithful", folder=None)])
    assert "load_subspace" not in Page(render_find(nothing)).text


@pytest.mark.parametrize(
    ("record", "part"),
    [
        (make_lacking(), "Nothing was searched"),
        (make_nowhere(), "No site of one column carries it alone"),
        (make_find(found=[], outcome="undetermined"), "No subspace to rely on"),
    ],
)
def test_an_answer_without_a_subspace_has_a_page(record, part):
    parsed = Page(render_find(record))
    assert part in parsed.text
    assert not [a for a in parsed.named("article") if (a["class"] or "").startswith("card")]
    drawn = [a for a in parsed.named("div") if a.get("class") == "plot"]
    assert bool(drawn) == (record.patched is not None)
    assert any(a.get("id") == "plotly" for a in parsed.named("script")) == bool(drawn)


def test_sites_are_marked_where_they_are_by_shape():
    record = make_find()
    shades, *marks = model_figure(record, patched_of(record)).data
    assert len({mark.marker.symbol for mark in marks}) == len(marks) == 4
    found = next(mark for mark in marks if mark.name == "found")
    assert list(found.y) == [5, 8]
    assert [tuple(names) for names in found.x] == [("at S2", "at END"), ("resid<br>post",) * 2]
    column = list(zip(*shades.x, strict=True)).index(("at S2", "resid<br>post"))
    assert shades.z[5][column] == patched_of(record).at("L5.resid_post@S2").fldd


def test_of_heads_the_strongest_is_drawn():
    record = make_find()
    patched = patched_of(record)
    (shades, *_) = model_figure(record, patched).data
    column = list(zip(*shades.x, strict=True)).index(("at END", "head<br>z"))
    heads = [e for e in patched.sites(stream="head_z", label="END") if e.site.layer == 3]
    assert shades.z[3][column] == max((e.fldd for e in heads), key=abs)
    assert shades.customdata[3][column].startswith("<b>L3.head_z.")


@pytest.mark.parametrize(
    ("share", "shown"),
    [
        (Estimate(value=0.97, low=0.91, high=1.02), "97 % [91 %, 102 %]"),
        (Estimate(value=25.0, low=20.0, high=31.0), "25.0 × [20.0, 31.0]"),
        (Estimate(value=None), "–"),
    ],
)
def test_a_share_is_told_as_a_percentage_until_it_is_a_multiple(share, shown):
    assert times(share) == shown


def test_hostile_strings_stay_text():
    site = "L5.resid_post@<img>S2"
    place = make_place(
        site, "faithful", reasons=[HOSTILE], why=HOSTILE, folder=HOSTILE, fit={"method": HOSTILE},
        writers=[Writer(name=HOSTILE, layer=None, head=None, effect=1.0, linear=1.0)],
        controls=ControlsCount(right=0, of=0, void=HOSTILE),
    )  # fmt: skip
    plain = make_find(undetermined=[])
    record = plain.model_copy(
        update={
            "answer": HOSTILE,
            "command": HOSTILE,
            "notes": [HOSTILE],
            "failed": {HOSTILE: HOSTILE},
            "model": plain.model.model_copy(update={"id": HOSTILE}),
            "task": plain.task.model_copy(update={"name": HOSTILE, "labels": [HOSTILE]}),
            "found": [place, *plain.found[1:]],
            "largest": [Share(site=HOSTILE, whole=1.0)],
            "predicted": [
                Prediction(site=HOSTILE, whole=0.0, das=1.0, illusion=1.0, refined=False)
            ],
        }
    )
    audits = {site: make_record(site=HOSTILE, notes=[HOSTILE])}
    text = render_find(record, audits, {site: "javascript%3Aalert"})
    parsed, harmless = Page(text), Page(render_find(plain, {plain.found[0].site: make_record()}))
    assert parsed.text.count("alert(2)") > 12
    assert {tag for tag, _ in parsed.elements} == {tag for tag, _ in harmless.elements}
    assert not any(key.startswith("on") for _, attributes in parsed.elements for key in attributes)
    assert "<script>alert" not in text and "<img" not in "".join(parsed.scripts[:-2])


def test_the_page_is_written_with_its_evidence_and_examples(tmp_path):
    page = search(tmp_path)
    assert page == tmp_path / "find.html" and (tmp_path / "report.html").exists()
    parsed = Page(page.read_text(encoding="utf-8"))
    links = {a["href"] for a in parsed.named("a")}
    sites = sorted(path.parent.name for path in tmp_path.glob("*/audit.json"))
    assert {f"report.html#site-{1 + i}" for i in range(len(sites))} <= links
    assert parsed.text.count("likeliest next tokens") == 2
    assert "Examples at L5.resid_post@S2" in parsed.text
    assert "Examples at L6.mlp_act@S2" not in parsed.text


def test_a_page_of_no_search_is_refused_in_one_line(tmp_path):
    with pytest.raises(ResultError, match=r"cannot read .*find\.json"):
        write_find_page(tmp_path)
    (tmp_path / "find.json").write_text("{}")
    with pytest.raises(ResultError, match=r"find\.json is not a subspacelens\.find/1 record"):
        write_find_page(tmp_path)
