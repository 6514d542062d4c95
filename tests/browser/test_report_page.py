"""The report in a real browser: offline, silent, drawn, in both themes and on a phone."""

from pathlib import Path

import pytest

from helpers_contrast import contrast
from helpers_pages import audits
from helpers_records import make_record
from subspacelens.audit.record import save_audit
from subspacelens.report import write_report
from subspacelens.report.toy_page import write_toy
from subspacelens.studies.toy import run_toy

pytestmark = pytest.mark.browser

LONG = "a/" + "very-long-name-without-any-place-to-break-" * 4


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    return audits(tmp_path_factory.mktemp("run"))


def test_every_figure_is_drawn(open_page, report):
    page = open_page(report, viewport={"width": 1280, "height": 900})
    # Nine a site, but for the null part that the undetermined one lacks.
    assert page.locator(".plot").count() == 3 * 9 - 1
    assert page.locator(".plot svg.main-svg").first.is_visible()
    assert page.evaluate(
        "[...document.querySelectorAll('.plot')].every(p => p.clientWidth"
        " - p.querySelector('svg').getBoundingClientRect().width < 2)"
    )
    boxes = [page.locator(".card").nth(i).bounding_box() for i in range(2)]
    assert boxes[0]["y"] == boxes[1]["y"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_figures_take_the_theme(open_page, report, scheme):
    page = open_page(report, viewport={"width": 1280, "height": 900}, color_scheme=scheme)
    assert contrast(page, "body") > 7
    for selector in (".verdict.illusory", ".verdict.faithful", ".verdict.undetermined", "small"):
        assert contrast(page, selector) > 4.5
    page.wait_for_timeout(300)
    assert contrast(page, ".plot .xtick text", "fill") > 4.5


def test_a_point_shows_its_prompts(open_page, report):
    page = open_page(report, viewport={"width": 1280, "height": 900})
    page.locator(".examples .plot .point").nth(3).hover(force=True)
    page.wait_for_function("document.querySelector('.examples .hoverlayer .hovertext')")
    shown = page.locator(".examples .hoverlayer").first.text_content()
    assert "source:" in shown and "nats without a patch" in shown and "Then, " in shown


def test_the_filter_keeps_the_pairs_of_a_template(open_page, report):
    page = open_page(report, viewport={"width": 1280, "height": 900})
    section = page.locator(".examples").first
    assert section.locator(".pair:visible").count() == 12
    section.locator("select").select_option("2")
    page.wait_for_timeout(300)
    shown = section.locator(".pair:visible")
    assert 0 < shown.count() < 12
    assert {shown.nth(i).get_attribute("data-template") for i in range(shown.count())} == {"2"}
    chosen = page.evaluate(
        "document.querySelector('.examples .plot').data.map(t => t.selectedpoints.length)"
    )
    assert sum(chosen) == len([i for i in range(128) if i % 5 == 2])
    section.locator("select").select_option("")
    assert section.locator(".pair:visible").count() == 12


def test_figures_follow_a_change_of_theme(open_page, report):
    page = open_page(report, color_scheme="light")
    page.emulate_media(color_scheme="dark")
    page.wait_for_timeout(300)
    assert contrast(page, ".plot .xtick text", "fill") > 4.5


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_never_scrolls_sideways(open_page, report, scheme):
    page = open_page(report, viewport={"width": 375, "height": 812}, color_scheme=scheme)
    page.locator("summary").first.click()
    page.wait_for_timeout(300)
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 375
    assert page.evaluate(
        "[...document.querySelectorAll('.plot')]"
        ".every(p => p.querySelector('svg').getBoundingClientRect().right <= 375)"
    )
    assert page.evaluate(
        "[...document.querySelectorAll('table')].every(t => t.parentElement.matches('.scroll'))"
    )


def test_long_names_do_not_widen_a_phone(open_page, tmp_path):
    record = make_record(site=LONG)
    record = record.model_copy(
        update={
            "model": record.model.model_copy(update={"id": LONG}),
            "notes": [LONG],
            "command": f"subspacelens {LONG}",
            "verdict": record.verdict.model_copy(update={"reasons": [LONG]}),
        }
    )
    save_audit(record, tmp_path / "site" / "audit.json")
    page = open_page(write_report(tmp_path), viewport={"width": 375, "height": 812})
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 375


def test_a_window_made_narrow_redraws_its_figures(open_page, report):
    page = open_page(report, viewport={"width": 1280, "height": 900})
    page.set_viewport_size({"width": 375, "height": 812})
    page.wait_for_timeout(800)
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 375


def test_the_guide_opens_from_the_keyboard(open_page, report):
    page = open_page(report)
    prose = page.locator(".guide .prose")
    assert not prose.is_visible()
    page.locator("summary").focus()
    page.keyboard.press("Enter")
    assert prose.is_visible()
    assert "null space" in prose.inner_text()


def test_the_keyboard_reaches_tables_and_links(open_page, report):
    page = open_page(report)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.locator(".scroll").first.focus()
    assert page.evaluate("document.activeElement.getAttribute('aria-label')")
    page.locator(".more a").nth(1).click()
    assert page.url.endswith("#site-2")


def test_hostile_strings_do_not_run(open_page, tmp_path):
    attack = "</script><script>document.title = 'owned'</script><img src=x onerror=alert(1)>"
    save_audit(make_record(site=attack, notes=[attack]), tmp_path / "site" / "audit.json")
    page = open_page(write_report(tmp_path))
    assert page.title().startswith("Subspace audit")
    assert page.locator("main img").count() == 0


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    return write_toy(run_toy(pairs=50), tmp_path_factory.mktemp("toy"))


def test_the_slider_of_the_toy_turns_the_direction(open_page, toy):
    page = open_page(toy, viewport={"width": 1280, "height": 900})
    plot = page.locator(".plot:has(.slider-group)").first
    before = plot.inner_text()
    box = plot.locator(".slider-rail-touch-rect").bounding_box()
    page.mouse.click(box["x"] + 0.8 * box["width"], box["y"] + box["height"] / 2)
    page.wait_for_timeout(500)
    assert plot.inner_text() != before
