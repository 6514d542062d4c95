"""Writes the pictures of report pages that README.md and docs/reading.md show.

    subspacelens audit --out runs/ioi
    subspacelens audit --site L18.mlp_act@S2 --fit random --out runs/random
    python tools/draw_pages.py runs

Needs the tools of `make install-dev` and a Chromium on the path.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

DOCS = Path(__file__).parents[1] / "docs"
WRITTEN = "What is written, against what is natural"
PLACES = {
    "illusory": ("ioi", "L18.mlp_act@S2"),
    "faithful": ("ioi", "L17.resid_post@S2"),
    "undetermined": ("random", "L18.mlp_act@S2"),
}
MARGIN = 12


def main(runs: Path) -> None:
    with browser() as chromium:
        page = chromium.new_page(viewport={"width": 1100, "height": 1000})
        for name, (run, site) in PLACES.items():
            opened(page, runs / run)
            section = page.locator("section.part").filter(
                has=page.get_by_role("heading", name=site, exact=True)
            )
            figure = section.locator(f'h3:text-is("{WRITTEN}") + figure')
            figure.screenshot(path=DOCS / f"{name}.png")
        opened(page, runs / "ioi")
        page.screenshot(path=DOCS / "report.png")
        cards = page.locator(".cards").evaluate("cards => cards.getBoundingClientRect().toJSON()")
        around = {"x": cards["x"] - MARGIN, "y": cards["y"] - MARGIN}
        around |= {size: cards[size] + 2 * MARGIN for size in ("width", "height")}
        page.screenshot(path=DOCS / "verdicts.png", clip=around)


@contextmanager
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def opened(page: Page, run: Path) -> None:
    page.goto((run / "report.html").resolve().as_uri())
    page.wait_for_function(
        "[...document.querySelectorAll('.plot')].every(p => p.querySelector('svg.main-svg'))"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
