"""The page in a browser: drawn, clicked, reached by keyboard, dark and light, with nothing fetched and nothing run."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vram.history.runs import History
from vram.report.gathered import gathered
from vram.report.page import html
from vram.summary.reader import run_from_json

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
offline = pytest.importorskip("plotly.offline", reason="plotly is not installed")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FOCUSED = "(e => e.className || e.id || (e.closest('details') || {}).id || e.tagName)(document.activeElement)"
SCREENSHOT = Path(__file__).parents[3] / "reports" / "page.png"  # kept by CI
pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium on this machine")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        yield launched
        launched.close()


@pytest.fixture
def wrong() -> list[str]:
    """What the browser complained of, and what it asked the network for."""
    return []


@pytest.fixture
def page(browser: Any, report: dict[str, Any], history: History, tmp_path: Path, wrong: list[str]) -> Iterator[Any]:
    path = tmp_path / "page.html"
    path.write_text(html(gathered(run_from_json(report), history), offline.get_plotlyjs()), encoding="utf-8")
    opened = browser.new_page(color_scheme="light", viewport={"width": 1100, "height": 900})
    opened.on("console", lambda told: wrong.append(told.text) if told.type in ("error", "warning") else None)
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("request", lambda asked: wrong.append(asked.url) if not asked.url.startswith("file://") else None)
    opened.goto(path.as_uri())
    yield opened
    opened.close()


def charts(page: Any) -> int:
    """How many are drawn."""
    return int(page.locator(".chart .main-svg").count())


def test_it_is_drawn_and_nothing_is_wrong(page: Any, wrong: list[str]) -> None:
    """What is open is drawn: the laps of a mode over one another; what failed stands open. No error, no request, and
    what hostile names would have run did not."""
    assert page.locator("h1").inner_text().startswith("GPU memory: 3 of 5 need attention: 1 grows, ")
    assert page.locator("#samples-0 .scatterlayer .trace").count() == 3
    assert page.locator("#recording-1").get_attribute("open") is not None
    assert page.locator("#recording-3").get_attribute("open") is None
    assert page.evaluate("window.hacked") is None
    assert page.locator("img").count() == 0
    assert wrong == []
    SCREENSHOT.parent.mkdir(exist_ok=True)
    page.screenshot(path=SCREENSHOT, full_page=True)
    assert SCREENSHOT.stat().st_size > 10_000


def test_opening_draws_and_choosing_redraws(page: Any, wrong: list[str]) -> None:
    """A closed recording is drawn when it is opened; another figure changes the chart."""
    before = charts(page)
    page.locator("#recording-3 > summary").click()
    page.wait_for_selector("#samples-3 .main-svg")
    assert charts(page) > before
    points = "document.getElementById('history-0').data[0].y.slice(-1)[0]"
    peak = page.evaluate(points)
    page.select_option("#history-0-select", "growth")
    assert peak == 42
    assert page.evaluate(points) == 0
    assert page.evaluate("document.getElementById('history-0').layout.shapes.length") == 0
    page.select_option("#history-0-select", "peak")
    assert page.evaluate("document.getElementById('history-0').layout.shapes[0].x0") == 5.5  # before the seventh run
    assert wrong == []


def test_the_keyboard_reaches_everything(page: Any) -> None:
    """Tab: the skip link, the theme, every recording, every choice; Enter opens and switches."""
    reached = []
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.append(page.evaluate(FOCUSED))
        if reached[-1] == "theme":
            page.keyboard.press("Enter")
    assert reached[0] == "skip"
    assert {"theme", "recording-0", "recording-3", "samples-0-select", "history-0-select"} <= set(reached)
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_it_is_dark_where_that_is_asked_for_and_can_be_switched(page: Any) -> None:
    """By the system's setting until the button is pressed; charts follow."""
    ground = "getComputedStyle(document.body).backgroundColor"
    ink = "document.getElementById('samples-0').layout.font.color"
    light, light_ink = page.evaluate(ground), page.evaluate(ink)
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"{ink} !== '{light_ink}'")
    dark = page.evaluate(ground)
    assert dark != light
    assert page.locator("#theme").inner_text() == "Light"
    page.locator("#theme").click()
    assert page.evaluate(ground) == light
    assert page.evaluate(ink) == light_ink


def test_it_fits_a_phone(page: Any) -> None:
    """Nothing but tables scrolls sideways."""
    page.set_viewport_size({"width": 390, "height": 800})
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
