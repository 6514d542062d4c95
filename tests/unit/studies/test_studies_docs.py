"""The docs of the studies say what the kept records say, and no number in them is typed."""

from __future__ import annotations

import json
import re
import sys

import pytest

from helpers_studies import ROOT, studies_docs
from subspacelens.core.records import Estimate
from subspacelens.report.toy_page import write_toy
from subspacelens.studies.made import Made
from subspacelens.studies.toy import run_toy

TEMPLATES = sorted((ROOT / "tools/studies").glob("*.j2"))
NAMES = (
    r"GPT-2", r"SmolLM2", r"95 %", r"r²", r"arxiv\.org/abs/\d{4}\.\d{5}", r"Meng et al\. 2022",
    r"rank-1", r"\bS2\b",
)  # fmt: skip
"""Names with digits in them, which are no results."""


@pytest.fixture(scope="module")
def tool():
    return studies_docs()


@pytest.fixture
def folder(tmp_path):
    """The toy study's record, as `reproduce all` leaves it."""
    write_toy(run_toy(), tmp_path / "toy", Made.now("asked"))
    return tmp_path


def test_pages_and_figures_are_what_the_records_say(tool):
    for path, text in tool.pages(tool.records()).items():
        assert path.read_text() == text, f"{path.name}: run `make studies-docs`"


def test_every_study_has_a_block_and_every_block_a_study(tool):
    blocks = [
        match["name"]
        for page in (ROOT / "docs").glob("*.md")
        for match in tool.BLOCK.finditer(page.read_text())
    ]
    assert sorted(blocks) == sorted(tool.RECORDS)
    assert {path.name for path in TEMPLATES} == {f"{name}.md.j2" for name in blocks}


def typed(template: str) -> list[str]:
    """Digits in a template: in its text, or as a number that an expression prints."""
    text = re.sub(r"{%.*?%}|{#.*?#}", "", template, flags=re.DOTALL)
    printed = re.findall(r"{{-?\s*[\"']?[\d.]+[\"']?\s*(?:\|.*?)?-?}}", text)
    text = re.sub(r"{{.*?}}", "", text, flags=re.DOTALL)
    for name in NAMES:
        text = re.sub(name, "", text)
    return printed + re.findall(r"\S*\d\S*", text)


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_no_number_in_a_template_is_typed(path):
    assert typed(path.read_text()) == []


def test_typed_numbers_are_noticed():
    assert typed("FLDD {{ r.fldd | f }} at GPT-2, 95 % of {{ r.rows[0] }}") == []
    assert typed("FLDD .21 in {{ 14 }} minutes") == ["{{ 14 }}", ".21"]


def test_a_record_becomes_a_page(tool, folder):
    held = {"toy": json.loads(tool.digest("toy", folder / "toy"))}
    page = "# Toy\n\n<!-- from: toy -->\nold\n<!-- end -->\n\nAfter.\n"
    text = tool.filled(page, held, "toy.md")
    assert "old" not in text and text.startswith("# Toy\n\n<!-- from: toy -->\n")
    assert text.endswith("<!-- end -->\n\nAfter.\n") and text == tool.filled(text, held, "toy.md")
    made = held["toy"]["made"]
    assert (
        made["machine"] in " ".join(text.split())
        and made["began"][:10] in text
        and (made["commit"] or "")[:10] in text
    )
    held["toy"]["table"]["e3 (faithful)"]["full"] = 0.77
    assert ".77" in tool.filled(text, held, "toy.md") and ".77" not in text


def test_a_block_without_a_record_is_refused(tool):
    with pytest.raises(SystemExit, match=r"toy\.md: block 'toy' has no record docs/records/toy"):
        tool.filled("<!-- from: toy -->\nold .12\n<!-- end -->", {}, "toy.md")


def test_a_record_that_does_not_say_where_it_was_made_is_refused(tool, tmp_path):
    write_toy(run_toy(), tmp_path / "toy")
    with pytest.raises(SystemExit, match="does not say when and where it was made"):
        tool.digest("toy", tmp_path / "toy")


def test_paragraphs_flow_and_tables_stay(tool):
    long = "word " * 30
    text = f"{long}\n{long}\n\n\n| a | b |\n|---|---|\n- one\n  more\n- two\n### Head\ntext\n"
    flowed = tool.flowed(text)
    assert max(map(len, flowed.splitlines())) <= 100 and "\n\n\n" not in flowed
    assert "\n\n| a | b |\n|---|---|\n" in flowed and "\n- one more\n- two\n\n### Head" in flowed
    assert flowed.split() == text.split()


def test_how_numbers_are_written(tool):
    assert [tool.short(x) for x in (0.214, -1.051, -0.001, None, 0.999)] == [
        ".21", "−1.05", ".00", "–", "1.00",
    ]  # fmt: skip
    assert tool.estimate([0.2, 0.1, 0.3]) == ".20 [.10, .30]" and tool.estimate([None]) == "–"
    assert tool.percent(0.634) == "63 %" and tool.word(6) == "six" and tool.word(13) == "13"
    assert tool.exact(-9.4) == "−9.4" and tool.exact(0.875) == ".875" and tool.exact(None) == "–"
    assert tool.listed([1, 2, 3]) == "1, 2 and 3" and tool.coded(["a"]) == "`a`"
    lean = sys.modules["studies.digests"].lean
    assert lean({"a": Estimate(value=1 / 3, low=0, high=1), 2: {"b", "a"}}) == {
        "a": [0.333333, 0, 1], "2": ["a", "b"],
    }  # fmt: skip
