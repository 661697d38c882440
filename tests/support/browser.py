"""A headless Chromium, Debian's own, that notes what goes wrong in a page and asks axe about it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from playwright.sync_api import Page

CHROMIUM = shutil.which("chromium")


def missing() -> str:
    """What a test with a browser lacks here; "" for nothing."""
    if not CHROMIUM:
        return "chromium is not installed"
    return (
        "" if find_spec("playwright") and find_spec("axe_playwright_python") else "playwright or axe is not installed"
    )


@contextmanager
def browsing(
    width: int = 1280, height: int = 900, scheme: Literal["light", "dark"] = "light"
) -> Iterator[tuple[Page, list[str]]]:
    """A page, and what its console says is wrong."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])  # as root there is none
        try:
            page = browser.new_page(
                viewport={"width": width, "height": height},
                color_scheme=scheme,
                ignore_https_errors=True,  # it does not know the authority of a test's broker
            )
            wrong: list[str] = []
            page.on("pageerror", lambda error: wrong.append(str(error)))
            page.on("console", lambda said: wrong.append(said.text) if said.type in ("error", "warning") else None)
            yield page, wrong
        finally:
            browser.close()


def violations(page: Page) -> list[dict[str, Any]]:
    """What axe-core finds in a page that is serious or critical."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [
        {"id": each["id"], "where": [node["target"] for node in each["nodes"]]}
        for each in found
        if each["impact"] in ("serious", "critical")
    ]
