"""Every kind of page: read by machines and keyboards, on a phone, in the dark and on paper."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

import pytest

from helpers_contrast import contrast

pytestmark = [pytest.mark.browser, pytest.mark.long]

NAMES = (
    "audit", "addition", "screen", "map", "instant map", "survey", "ioi", "facts", "editing", "toy",
    "find", "find, nowhere", "find, lacking", "index",
)  # fmt: skip
PHONE = {"width": 360, "height": 780}
BARE = "[...document.querySelectorAll('table')].filter(t => !t.parentElement.matches('.scroll'))"


def test_no_page_is_forgotten(pages):
    assert sorted(pages) == sorted(NAMES)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", NAMES)
def test_nothing_shuts_a_reader_out(open_page, pages, name, scheme):
    """axe-core finds nothing, serious or not, with everything unfolded."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page = open_page(pages[name], viewport={"width": 1280, "height": 900}, color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")
    page.wait_for_timeout(300)
    found = axe.Axe().run(page).response["violations"]
    assert [(each["impact"], each["id"], each["nodes"][0]["html"]) for each in found] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_phone_never_scrolls_sideways(open_page, pages, name):
    page = open_page(pages[name], viewport=PHONE)
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")
    page.wait_for_timeout(500)
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 360
    assert page.evaluate(f"{BARE}.length") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", NAMES)
def test_text_is_read_on_what_is_behind_it(open_page, pages, name, scheme):
    page = open_page(pages[name], viewport={"width": 1280, "height": 900}, color_scheme=scheme)
    assert contrast(page, "body") > 7
    if page.locator(".plot .xtick text").count():
        page.wait_for_timeout(300)
        assert contrast(page, ".plot .xtick text", "fill") > 4.5


@pytest.mark.parametrize("name", NAMES)
def test_paper_shows_all_of_it(open_page, pages, name):
    """On white, unfolded, and no figure or table is cut off."""
    page = open_page(pages[name], viewport={"width": 1280, "height": 900}, color_scheme="dark")
    folded = page.locator("details:not([open])").count()
    page.emulate_media(media="print", color_scheme="dark")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.wait_for_timeout(300)
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("document.querySelectorAll('details:not([open])').length") == 0
    cut = "e => e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflowX !== 'visible'"
    assert (
        page.evaluate(f"[...document.querySelectorAll('.scroll, .plot')].filter({cut}).length") == 0
    )
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details:not([open])").count() == folded


def test_a_column_sorts_by_keyboard(open_page, pages):
    page = open_page(pages["index"], viewport={"width": 1280, "height": 900})
    head = page.locator("th", has_text="FLDD")

    def values() -> list[str]:
        cells = page.locator(".sortable tbody td.num[data-value]:nth-child(3)")
        return [cells.nth(i).get_attribute("data-value") for i in range(cells.count())]

    before = values()
    head.locator("button").focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    known = [float(value) for value in values() if value]
    assert known == sorted(known, reverse=True) and len(known) > 5
    assert values() != before and sorted(values()) == sorted(before)
    page.keyboard.press("Space")
    assert head.get_attribute("aria-sort") == "ascending"
    assert [float(value) for value in values() if value] == known[::-1]
    assert [not value for value in values()] == sorted(not value for value in values())
    other = page.locator("th", has_text="Kind")
    other.locator("button").press("Enter")
    assert other.get_attribute("aria-sort") == "ascending"
    assert head.get_attribute("aria-sort") is None


def test_every_link_of_the_start_page_leads_somewhere(open_page, pages):
    page = open_page(pages["index"])
    links = page.evaluate("[...document.querySelectorAll('main table a')].map(a => a.href)")
    assert len(links) > 12
    for link in links:
        path, _, place = link.removeprefix("file://").partition("#")
        assert Path(unquote(path)).exists()
        assert not place or place.startswith("site-")
