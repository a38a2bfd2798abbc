"""The page in headless Chromium, where playwright and its browser are installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from kd_lightning.cli import main


def test_a_narrow_screen_without_network(distilled: Path, tmp_path: Path) -> None:
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="the package playwright is not installed"
    )
    path = tmp_path / "report.html"
    assert main(["report", str(distilled), "--output", str(path)]) == 0
    with playwright.sync_playwright() as started:
        try:
            browser = started.chromium.launch()
        except playwright.Error as error:
            pytest.skip(f"no Chromium: {str(error).splitlines()[0]}")
        page = browser.new_page(viewport={"width": 400, "height": 800})
        problems: list[str] = []
        requests: list[str] = []
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.as_uri())
        width = page.evaluate("document.scrollingElement.scrollWidth")
        browser.close()

    assert problems == []
    outside = [url for url in requests if not url.startswith(("data:", "file:"))]
    assert outside == []
    # Nothing is wider than the screen: tables scroll within their own boxes.
    assert width <= 400
