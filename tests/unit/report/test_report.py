"""The report: nothing from a record can act in the page, nothing is fetched, nothing is missing."""

import base64
import gzip
import hashlib
import json
import re
from functools import cache
from itertools import pairwise

import pytest
from pydantic import ValidationError

from helpers_page import HOSTILE, Page
from helpers_records import make_examples, make_pairs, make_record
from subspacelens.audit.record import (
    PATCHES,
    DoseResponse,
    Scatter,
    SupportCurve,
    load_audit,
    save_audit,
)
from subspacelens.audit.record import Test as PValue
from subspacelens.core.errors import ResultError
from subspacelens.core.records import EffectRecord, Estimate
from subspacelens.report import figures, page, render, write_report
from subspacelens.report.document import Plot
from subspacelens.report.examples import CARD_ROOM, HOVER_ROOM, excerpt, scatter
from subspacelens.report.figures import blank


def unpacked(script: str) -> str:
    """What stands in a script, or what a packed one stands for."""
    return script if script.startswith("{") else gzip.decompress(base64.b64decode(script)).decode()


@cache
def two_sites() -> str:
    records = [make_record("illusory"), make_record("faithful", "L17.resid_post@S2")]
    return render(records, "A title")


def hostile_record():
    plain = make_record()
    model = plain.model.model_copy(update={"id": HOSTILE, "dtype": HOSTILE})
    task = plain.task.model_copy(update={"name": HOSTILE, "labels": [HOSTILE]})
    fit = {HOSTILE: HOSTILE}
    subspace = plain.subspace.model_copy(update={"file": HOSTILE, "fit": fit})
    verdict = plain.verdict.model_copy(
        update={"reasons": [HOSTILE], "assumptions": [HOSTILE], "objection": HOSTILE}
    )
    test = plain.tests["support"].model_copy(update={"reading": HOSTILE})
    dose = plain.figures.dose_response.model_copy(update={"marks": {HOSTILE: 0.5}})
    few = make_pairs(count=20, templates=2)
    words = {name: [HOSTILE] * 20 for name in ("base", "source", "answer", "target")}
    words["template"] = [HOSTILE, "plain"] * 10
    spans = {name: [[(3, 20)]] * 20 for name in ("base_marks", "source_marks")}
    pairs = few.model_copy(update=words | spans)
    return make_record(
        site=HOSTILE,
        model=model,
        task=task,
        subspace=subspace,
        verdict=verdict,
        tests={**plain.tests, HOSTILE: test},
        effects={**plain.effects, HOSTILE: plain.effects["full"]},
        notes=[HOSTILE],
        versions={HOSTILE: HOSTILE},
        command=HOSTILE,
        figures=plain.figures.model_copy(update={"dose_response": dose}),
        pairs=pairs,
        examples=make_examples(pairs),
    )


def test_hostile_strings_stay_text():
    text = render([hostile_record()], HOSTILE)
    parsed, plain = Page(text), Page(render([make_record()], "plain"))
    assert "alert(2)" in parsed.text
    assert len(parsed.scripts) == len(plain.scripts)
    assert parsed.text.count("alert(2)") > 4 * 12
    assert {tag for tag, _ in parsed.elements} == {tag for tag, _ in plain.elements}
    assert not any(key.startswith("on") for _, attributes in parsed.elements for key in attributes)
    assert "<script>alert" not in text
    figures_of_page = [unpacked(script) for script in parsed.scripts[:-2]]
    assert "<img" not in "".join(figures_of_page)
    for data in figures_of_page:
        assert "<img" not in data and "<script" not in json.dumps(json.loads(data))
    shown = json.dumps([trace.to_plotly_json() for trace in scatter(hostile_record()).data])
    assert set(re.findall(r"<[^>]*>", shown)) <= {
        "<b>",
        "</b>",
        "<br>",
        "<i>",
        "</i>",
        "<extra>",
        "</extra>",
    }


def test_hostile_names_bring_no_tags_into_a_figure():
    figure = figures.dose_response(hostile_record())
    assert [trace.name for trace in figure.data if trace.name and "<" in trace.name] == []
    assert not any("<" in label for label in figures.effects(hostile_record()).data[0].y)


def test_one_plotly_and_only_the_scripts_the_policy_names():
    parsed = Page(two_sites())
    kinds = [attributes.get("type") for attributes in parsed.named("script")]
    assert kinds.count(None) == 1
    (plotly,) = (
        unpacked(script)
        for script, attributes in zip(parsed.scripts, parsed.named("script"), strict=True)
        if attributes.get("id") == "plotly"
    )
    assert "plotly.js v" in plotly[:200] and "plotly.js v" not in two_sites()
    policy = next(
        attributes["content"]
        for attributes in parsed.named("meta")
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    run = [s for s, kind in zip(parsed.scripts, kinds, strict=True) if kind is None] + [plotly]
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in run]
    assert policy is not None
    assert "default-src 'none'" in policy
    assert re.findall(r"sha256-([^']+)'", policy) == hashes


def test_nothing_is_fetched():
    parsed = Page(two_sites())
    for _, attributes in parsed.elements:
        for key in ("src", "href", "data", "action", "poster", "srcset"):
            assert (attributes.get(key) or "#").startswith(("#", "data:"))
    style = two_sites().split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style


def test_every_section_is_there_and_in_order():
    text = Page(two_sites()).text
    order = [
        "A title",
        "the effect is illusory at L18.mlp_act@S2 and faithful at L17.resid_post@S2.",
        "Verdicts",
        "How to read this page",
        *(
            "What each patch does",
            "Examples",
            "What natural prompts do along the subspace",
            "Dose and response",
            "What is written, against what is natural",
            "Does the effect lie where activations vary?",
            "Tests",
            "What the verdict assumes",
            "The strongest objection",
            "Notes",
            "Where this comes from",
        )
        * 2,
    ]
    at = 0
    for words in order:
        at = text.index(words, at) + 1
    levels = [int(tag[1]) for tag, _ in Page(two_sites()).elements if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))


def test_tables_and_figures_are_named():
    parsed = Page(two_sites())
    assert all(attributes.get("scope") in ("row", "col") for attributes in parsed.named("th"))
    plots = [a for a in parsed.named("div") if a.get("class") == "plot"]
    assert len(plots) == 2 * 9
    assert all(a["role"] == "img" and len(a["aria-label"] or "") > 20 for a in plots)
    assert len(parsed.named("figcaption")) == len(parsed.named("figure")) == 2 * 6


def test_a_dozen_pairs_are_told_with_their_label_and_likeliest_tokens():
    parsed = Page(render([make_record()], "t"))
    cards = [a for a in parsed.named("article") if a.get("class") == "pair"]
    assert len(cards) == 12 and {a["data-template"] for a in cards} <= set("01234")
    assert len(parsed.named("mark")) == 2 * 12
    record = make_record()
    for example in record.examples:
        assert record.pairs.base[example.row][:40] in parsed.text
    text = " ".join(parsed.text.split())
    for words in ("no patch", "whole component", "subspace V", "unit row part"):
        assert text.count(f" {words} ") >= 12
    assert [a["value"] for a in parsed.named("option")] == ["", "0", "1", "2", "3", "4"]


def test_every_pair_is_one_point_at_its_effects():
    pairs, points = make_record().pairs, []
    for trace in scatter(make_record()).data:
        points += zip(trace.x, trace.y, [data[1] for data in trace.customdata], strict=True)
    full, subspace = (
        [round(a - b, 3) for a, b in zip(pairs.clean, pairs.patched[name], strict=True)]
        for name in ("full", "subspace")
    )
    templates = [str(i % 5) for i in range(128)]
    assert sorted(points) == sorted(zip(full, subspace, templates, strict=True))


def test_a_page_of_three_sites_and_a_thousand_pairs_is_small():
    """Long prompts add nothing beyond what is shown of them."""
    records = []
    sites = ("L18.mlp_act@S2", "L17.resid_post@S2", "L16.mlp_act@END")
    for label, site in zip(("illusory", "faithful", "undetermined"), sites, strict=True):
        pairs = make_pairs(label, 1000)
        long = [f"{'word ' * 500}{text}" for text in pairs.base]
        marks = [[(a + 2500, b + 2500)] for ((a, b),) in pairs.base_marks]
        pairs = pairs.model_copy(update={"base": long, "base_marks": marks})
        records.append(make_record(label, site, pairs=pairs, examples=make_examples(pairs)))
    assert len(render(records, "t").encode()) < 2.5e6


def test_large_figures_are_packed_and_whole():
    pairs = make_pairs("illusory", 1000)
    plot = Plot.of(scatter(make_record(pairs=pairs, examples=make_examples(pairs))), "pairs")
    assert plot.packed is not None and len(plot.packed) < len(plot.json) / 3
    unpacked = json.loads(gzip.decompress(base64.b64decode(plot.packed)))
    assert unpacked == json.loads(plot.json)
    assert sum(len(trace["customdata"]) for trace in unpacked["data"]) == 1000
    assert Plot.of(blank(height=200), "small").packed is None


def test_an_excerpt_is_around_what_is_marked():
    text = "a" * 300 + "MARK" + "b" * 300
    short, marks = excerpt(text, [(300, 304)], 100)
    ((start, end),) = marks
    assert short[start:end] == "MARK" and len(short) == 102 and short[0] == short[-1] == "…"
    assert excerpt(text, [], 100) == ("…" + "b" * 100, [])
    assert excerpt("abc", [(0, 1)], 100) == ("abc", [(0, 1)])
    assert HOVER_ROOM < CARD_ROOM


def test_a_record_without_examples_has_no_such_section():
    text = render([make_record(examples=[])], "t")
    assert "Examples</h3>" not in text


def test_what_does_not_exist_is_said_and_not_drawn():
    record = make_record("undetermined")
    assert figures.projection(record, "null") is None
    figure = figures.effects(record)
    assert figure.data[0].x[PATCHES.index("null")] is None
    notes = [note.text for note in figure.layout.annotations]
    assert notes.count("not available here") == 2
    text = Page(render([record], "t")).text
    assert "There is no such part here" in text
    assert "not measured" in text


def test_a_record_with_next_to_nothing():
    record = make_record(effects={}, no_op=EffectRecord.absent(), tests={}, notes=[], versions={})
    empty = record.figures.model_copy(
        update={
            "projection": Scatter(z0=[], z1=[]),
            "row_projection": Scatter(z0=[1.0], z1=[1.0]),
            "null_projection": None,
            "dose_response": DoseResponse(dose=[], effect=[], marks={"subspace": 1.0}),
            "written": record.figures.written.model_copy(
                update={"natural": Scatter(z0=[], z1=[]), "patched": Scatter(z0=[], z1=[])}
            ),
            "support": SupportCurve(explained=[], components=[], share=[], on=[], off=[]),
        }
    )
    clean = record.clean.model_copy(update={"logit_diff": Estimate(value=None)})
    text = render([record.model_copy(update={"figures": empty, "clean": clean})], "t")
    assert "No test was run." in Page(text).text


@pytest.mark.parametrize("metric", ["nats", "fldd", "iia", "iia_pair"])
def test_bars_and_intervals_are_the_records(metric):
    record = make_record()
    bars = figures.effects(record, metric).data[0]
    for i, name in enumerate(PATCHES):
        estimate = getattr(record.effects[name], metric)
        assert bars.x[i] == estimate.value
        assert bars.x[i] + bars.error_x.array[i] == pytest.approx(estimate.high)
        assert bars.x[i] - bars.error_x.arrayminus[i] == pytest.approx(estimate.low)


def test_both_classes_share_bins_and_lose_no_prompt():
    record = make_record()
    z0, z1 = figures.projection(record).data
    assert sum(z0.y) == pytest.approx(1)
    assert sum(z1.y) == pytest.approx(1)
    steps = {round(b - a, 9) for trace in (z0, z1) for a, b in pairwise(trace.x)}
    assert len(steps) == 1


def test_figures_leave_the_record_alone_and_repeat():
    record = make_record()
    before = record.model_dump_json()
    for draw in (figures.effects, figures.dose_response, figures.written, figures.support):
        assert draw(record).to_json() == draw(record).to_json()
    assert record.model_dump_json() == before


def test_summary_of_one_and_of_three():
    one, two, three = (
        make_record("illusory"),
        make_record("faithful", "L17.resid_post@S2"),
        make_record("undetermined", "L16.mlp_act@S2"),
    )
    assert page.summary([one]).endswith("its effect at L18.mlp_act@S2 is illusory.")
    assert page.summary([three, one, two]).endswith(
        "the effect is illusory at L18.mlp_act@S2, faithful at L17.resid_post@S2, "
        "and undetermined at L16.mlp_act@S2."
    )


def test_chance_is_corrected_for_the_number_of_sites():
    def with_p(p: float | None):
        test = PValue(value=p, reading="p")
        record = make_record("illusory")
        return record.model_copy(update={"tests": record.tests | {"chance": test}})

    told = page.corrected([with_p(0.01), with_p(0.04), with_p(None), with_p(0.03)])
    readings = [each.tests["chance"].reading for each in told]
    assert readings == [
        "p; 0.03 among 3 sites",
        "p; 0.04 among 3 sites",
        "p",
        "p; 0.04 among 3 sites",
    ]
    assert page.corrected([with_p(0.01)])[0].tests["chance"].reading == "p"


def test_write_report_reads_every_site_in_order(tmp_path):
    for label, site in (("illusory", "L18.mlp_act@S2"), ("faithful", "L17.resid_post@S2")):
        record = make_record(label, site)
        save_audit(record, tmp_path / site / "audit.json")
        assert load_audit(tmp_path / site / "audit.json") == record
    path = write_report(tmp_path)
    assert path == tmp_path / "report.html"
    parsed = Page(path.read_text(encoding="utf-8"))
    assert "Subspace audit: ioi in synthetic/model-135m" in parsed.text
    cards = [c for a in parsed.named("article") if (c := a["class"] or "").startswith("card")]
    assert cards == ["card faithful", "card illusory"]


def test_write_report_says_what_is_wrong(tmp_path):
    with pytest.raises(ResultError, match=r"no audit\.json"):
        write_report(tmp_path)
    with pytest.raises(ResultError, match=r"no audit\.json"):
        write_report(tmp_path / "absent")
    bad = tmp_path / "L18.mlp_act@S2" / "audit.json"
    bad.parent.mkdir()
    for text in ("", "{", "[]", '{"schema": "subspacelens.audit/2"}'):
        bad.write_text(text)
        with pytest.raises(ResultError, match=re.escape(str(bad))):
            write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()
    with pytest.raises(ResultError, match="nothing to report"):
        render([], "t")


def test_the_fixture_maker_validates():
    with pytest.raises(ValidationError):
        make_record(seconds="soon")
