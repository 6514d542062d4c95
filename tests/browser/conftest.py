"""A browser without a network, and pages that must be silent in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from helpers_pages import every_page

DRAWN = "[...document.querySelectorAll('.plot')].every(p => p.querySelector('svg.main-svg'))"


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
        page.wait_for_function(DRAWN, timeout=60_000)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert problems == []


@pytest.fixture(scope="module")
def pages(browser, place, tiny_folder, tmp_path_factory) -> Mapping[str, Path]:
    """A page of every kind, by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUBSPACELENS_CACHE", str(tmp_path_factory.mktemp("cache")))
        return every_page(tmp_path_factory.mktemp("pages"), place, tiny_folder)
