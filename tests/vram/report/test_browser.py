"""The page in a browser: drawn, clicked, reached by keyboard, dark and light, with nothing fetched and nothing run."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.vram.report.conftest import Json, page_of
from vram.history.runs import History
from vram.report.page import html

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
offline = pytest.importorskip("plotly.offline", reason="plotly is not installed")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FOCUSED = "(e => e.className || e.id || (e.closest('details') || {}).id || e.tagName)(document.activeElement)"
CUT = """[...document.querySelectorAll('.wide')].filter(e => e.scrollWidth > e.clientWidth).map(e => e.innerText)"""
QUIET = "#recording-4"  # a recording that is fine
SCREENSHOT = Path(__file__).parents[3] / "reports" / "page.png"  # kept by CI
pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium on this machine")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the page is; empty until a test has the report to write it."""
    return tmp_path_factory.mktemp("page") / "page.html"


@pytest.fixture
def wrong() -> list[str]:
    """Complaints of the browser, and whatever it fetched."""
    return []


@pytest.fixture
def page(browser: Any, hostile_report: Json, history: History, file: Path, wrong: list[str]) -> Iterator[Any]:
    if not file.exists():
        file.write_text(html(page_of(hostile_report, history), offline.get_plotlyjs()), encoding="utf-8")
    opened = browser.new_page(color_scheme="light", viewport={"width": 1100, "height": 900})
    opened.on("console", lambda line: wrong.append(line.text) if line.type in ("error", "warning") else None)
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("request", lambda sent: wrong.append(sent.url) if not sent.url.startswith("file://") else None)
    opened.goto(file.as_uri())
    yield opened
    opened.close()


def charts(page: Any) -> int:
    """How many are drawn."""
    return int(page.locator(".chart .main-svg").count())


def until(page: Any, condition: str) -> None:
    """Wait for what follows a moment later. The page's own policy forbids playwright's `wait_for_function`."""
    for _ in range(200):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"10 s later this is still not so: {condition}")


def test_it_is_drawn_and_nothing_is_wrong(page: Any, wrong: list[str]) -> None:
    """A failing recording stands open and is drawn, the worst first. A closed recording is drawn when it is opened,
    its laps over one another; another figure changes the chart. No error, no request, and what hostile names would have
    run did not."""
    assert page.locator("h1").inner_text().startswith("GPU memory: 4 of 7 need attention: 1 out of memory, 1 grows, ")
    first = page.locator("main > details").first
    assert first.locator("summary").inner_text().startswith("dies ")
    assert first.get_attribute("open") is not None
    assert page.locator("#recording-2").get_attribute("open") is not None
    assert page.locator(QUIET).get_attribute("open") is None
    before = charts(page)
    page.locator(f"{QUIET} > summary").click()
    page.wait_for_selector("#samples-4 .main-svg")
    assert charts(page) > before
    assert page.locator("#samples-4 .scatterlayer .trace").count() == 3
    points = "document.getElementById('history-0').data[0].y.slice(-1)[0]"
    peak = page.evaluate(points)
    page.select_option("#history-0-select", "growth")
    assert peak == 42
    assert page.evaluate(points) == 0
    assert page.evaluate("document.getElementById('history-0').layout.shapes.length") == 0
    page.select_option("#history-0-select", "peak")
    assert page.evaluate("document.getElementById('history-0').layout.shapes[0].x0") == 5.5  # before the seventh run
    assert page.evaluate("window.hacked") is None
    assert page.locator("img").count() == 0
    assert wrong == []
    SCREENSHOT.parent.mkdir(exist_ok=True)
    page.screenshot(path=SCREENSHOT, full_page=True)
    assert SCREENSHOT.stat().st_size > 10_000


def test_the_keyboard_reaches_everything(page: Any) -> None:
    """Tab: the skip link, the theme, every recording, every choice; Enter opens and switches."""
    reached = []
    while (not reached or reached[-1] != "history-0-select") and len(reached) < 60:
        page.keyboard.press("Tab")
        reached.append(page.evaluate(FOCUSED))
        if reached[-1] == "theme":
            page.keyboard.press("Enter")
    assert reached[0] == "skip"
    expected = {"theme", *(f"recording-{index}" for index in range(6)), "samples-1-select", "history-0-select"}
    assert expected <= set(reached)
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_it_is_dark_where_that_is_asked_for_and_fits_any_width(page: Any) -> None:
    """The system's setting counts until the button is pressed; charts follow. At the widths of a phone, a tablet and a
    desk, with everything open, nothing scrolls sideways and no figure is cut."""
    ground = "getComputedStyle(document.body).backgroundColor"
    ink = "document.getElementById('samples-1').layout.font.color"
    light, light_ink = page.evaluate(ground), page.evaluate(ink)
    page.emulate_media(color_scheme="dark")
    until(page, f"{ink} !== '{light_ink}'")
    assert page.evaluate(ground) != light
    assert page.locator("#theme").inner_text() == "Light"
    page.locator("#theme").click()
    assert page.evaluate(ground) == light
    assert page.evaluate(ink) == light_ink
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    for width in (390, 768, 1200):
        page.set_viewport_size({"width": width, "height": 800})
        until(page, f"document.documentElement.scrollWidth <= {width}")
        assert page.evaluate(CUT) == [], width
