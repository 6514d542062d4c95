"""The report in a real browser: offline, silent, drawn, in both themes and on a phone."""

import shutil
from pathlib import Path

import pytest

from helpers_models import tiny_lens
from helpers_oracle import random_pairs
from helpers_records import make_record
from subspacelens.audit.record import save_audit
from subspacelens.measure.maps import patching_map
from subspacelens.report import write_report
from subspacelens.report.map_page import write_map_page
from subspacelens.report.toy_page import write_toy
from subspacelens.studies.toy import run_toy

pytestmark = pytest.mark.browser

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SITES = (
    ("illusory", "L18.mlp_act@S2"),
    ("faithful", "L17.resid_post@S2"),
    ("undetermined", "L16.mlp_act@S2"),
)
LONG = "a/" + "very-long-name-without-any-place-to-break-" * 4
DRAWN = "[...document.querySelectorAll('.plot')].every(p => p.querySelector('svg.main-svg'))"


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    for label, site in SITES:
        save_audit(make_record(label, site), folder / site / "audit.json")
    return write_report(folder)


@pytest.fixture
def open_page(browser):
    """Opens a file with the network cut; at the end nothing may have gone wrong or been asked for
    but that file."""
    contexts, problems = [], []

    def open_(path: Path, **options):
        context = browser.new_context(offline=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: problems.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("requestfailed", lambda request: problems.append(f"failed: {request.url[:200]}"))

        def asked(request):
            if request.url.split("#")[0] != path.as_uri() and not request.url.startswith("data:"):
                problems.append(f"asked for {request.url[:200]}")

        page.on("request", asked)
        page.goto(path.as_uri())
        page.wait_for_function(f"document.querySelector('.plot') && {DRAWN}", timeout=60_000)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert problems == []


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


@pytest.fixture(scope="module")
def effects(tmp_path_factory) -> Path:
    lens = tiny_lens("llama")
    found = patching_map(lens, random_pairs([(9, 4)] * 4), ["mlp_act", "head_z"], ["X", "END"])
    return write_map_page(found, tmp_path_factory.mktemp("map"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["toy", "effects"])
def test_other_pages_are_drawn_read_well_and_fit_a_phone(open_page, request, name, scheme):
    path = request.getfixturevalue(name)
    page = open_page(path, viewport={"width": 375, "height": 812}, color_scheme=scheme)
    assert contrast(page, "body") > 7
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 375
    page.set_viewport_size({"width": 1280, "height": 900})
    page.wait_for_timeout(500)
    assert page.locator(".plot svg.main-svg").first.is_visible()
    assert contrast(page, ".plot .xtick text", "fill") > 4.5


def test_the_slider_of_the_toy_turns_the_direction(open_page, toy):
    page = open_page(toy, viewport={"width": 1280, "height": 900})
    plot = page.locator(".plot:has(.slider-group)").first
    before = plot.inner_text()
    box = plot.locator(".slider-rail-touch-rect").bounding_box()
    page.mouse.click(box["x"] + 0.8 * box["width"], box["y"] + box["height"] / 2)
    page.wait_for_timeout(500)
    assert plot.inner_text() != before


def contrast(page, selector: str, colour: str = "color") -> float:
    """WCAG contrast of the first match's text against the page's background."""

    def luminance(value: str) -> float:
        parts = value[value.index("(") + 1 : -1].replace(",", " ").split()[:3]
        channels = [float(part) / 255 for part in parts]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    element = page.locator(selector).first
    front = luminance(element.evaluate(f"e => getComputedStyle(e).{colour}"))
    back = luminance(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    return (max(front, back) + 0.05) / (min(front, back) + 0.05)
