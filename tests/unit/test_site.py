"""The site of the documentation: whole, linked, quiet, and readable on a phone and in the dark."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tools"))
from notebooks import NOTEBOOK, tutorials  # noqa: E402

LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
FOREIGN = re.compile(r"^(?:https?:)?//")
READ = ("index", "start", "illusion", "audit", "cli", "schemas", "api", "tutorials/1_your_pairs")


class Page(HTMLParser):
    """What a page loads, what it links to, and the anchors that it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if "id" in values:
            self.anchors.add(values["id"])
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if (name := LOADS.get(tag)) in values and values.get("rel") not in ("canonical", "license"):
            self.loads.append(values[str(name)])


def foreign_in(css: str) -> list[str]:
    """Addresses elsewhere that a style sheet loads."""
    loaded = re.findall(r"""(?:url\(|@import)\s*["']?([^"')\s]+)""", css)
    return [each for each in loaded if FOREIGN.match(each)]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder]
    source = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": source, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site) -> dict[Path, Page]:
    """The pages of the site, without those that the tool itself made."""
    ours = [p for p in site.rglob("*.html") if "gallery" not in p.parts and "runs" not in p.parts]
    return {path: Page(path.read_text()) for path in ours}


def test_nothing_is_loaded_from_elsewhere(site, pages):
    for path, page in pages.items():
        assert [each for each in page.loads if FOREIGN.match(each)] == [], path
        assert foreign_in(path.read_text()) == [], path
        assert 'class="mermaid"' not in path.read_text()  # the theme would load it from elsewhere
    for sheet in site.rglob("*.css"):
        assert foreign_in(sheet.read_text()) == [], sheet


def test_what_is_loaded_from_elsewhere_is_noticed():
    page = Page('<script src="https://a/b.js"></script><link rel="icon" href="c.png"><a href="d">')
    assert (page.loads, page.links) == (["https://a/b.js", "c.png"], ["d"])
    assert foreign_in("@import '//a/b.css'; x { background: url(c.png), url(\"http://d\") }") == [
        "//a/b.css", "http://d"
    ]  # fmt: skip


def test_links_and_what_is_loaded_are_there(site, pages):
    for path, page in pages.items():
        if path.name == "404.html":  # its links are those of a server's root
            continue
        for target in [*page.links, *page.loads]:
            if FOREIGN.match(target) or re.match(r"(mailto|data|javascript):", target):
                continue
            where, _, anchor = target.partition("#")
            there = (path.parent / where.partition("?")[0]).resolve() if where else path
            if there.is_dir():
                there /= "index.html"
            assert there.is_file(), f"{path}: {target}"
            if anchor and there in pages:
                assert anchor in pages[there].anchors, f"{path}: {target}"


def test_what_is_made_is_there(site):
    assert (site / "cli.html").read_text().count("<h3 ") > 10
    text = (site / "cli.html").read_text()
    assert "--only-correct" in text and "subspacelens reproduce ioi --quick" in text
    assert "subspacelens.audit/" in (site / "schemas.html").read_text()
    schema = json.loads((site / "schemas/audit.json").read_text())
    assert "verdict" in schema["properties"]
    for name in tutorials():
        assert (site / f"tutorials/{name}.html").is_file()
    assert "<!-- made" not in "".join(p.read_text() for p in site.glob("*.html"))


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_are_quiet_and_fit_a_phone(browser, site, scheme):
    page = browser.new_page(viewport={"width": 360, "height": 800}, color_scheme=scheme)
    asked, errors = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    for name in READ:
        page.goto((site / f"{name}.html").as_uri())
        page.wait_for_load_state("networkidle")
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= 360, name
        theme = page.evaluate("document.body.getAttribute('data-md-color-scheme')")
        assert theme == ("slate" if scheme == "dark" else "default")
    page.goto((site / "illusion.html").as_uri())
    page.wait_for_selector(".figure svg.main-svg")
    assert page.locator(".figure .slider-container").count() == 1
    assert errors == []
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []


@pytest.mark.browser
def test_the_search_finds_without_a_server(browser, site):
    page = browser.new_page(viewport={"width": 1200, "height": 800})
    page.goto((site / "index.html").as_uri())
    page.locator(".md-search__input").fill("covariation")
    page.wait_for_selector(".md-search-result__item")


@pytest.mark.long
@pytest.mark.model
@pytest.mark.parametrize("source", tutorials().values(), ids=lambda path: path.stem)
def test_a_tutorial_runs_in_two_minutes(source, tmp_path):
    """On two cores; counted in seconds of one, its commands' too."""
    python = Path(sys.executable).parent
    done = subprocess.run(
        [sys.executable, ROOT / "tools/notebooks.py", "--here", source],
        cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PATH": f"{python}{os.pathsep}{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    ran = json.loads((tmp_path / NOTEBOOK).read_text())
    assert ran["metadata"]["subspacelens"]["seconds"] < 240
