"""The page in a browser: drawn, pointed at, reached by keyboard, at any width, dark and light, with nothing fetched."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.vram.report.conftest import Json, page_of
from vram.history.runs import History
from vram.report.page import html

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FOCUSED = "(e => e.className || e.id || (e.closest('details') || {}).id || e.tagName)(document.activeElement)"
CUT = """[...document.querySelectorAll('.wide, .plot span, td, li, summary, pre, figcaption')]
  .filter(e => e.checkVisibility() && (e.scrollWidth > e.clientWidth + 1 && e.matches('.wide')
    || e.getBoundingClientRect().right > innerWidth || e.getBoundingClientRect().left < 0)).map(e => e.innerText)"""
UNSIGNED = """[...document.querySelectorAll('.outcome')]
  .filter(e => getComputedStyle(e, '::before').content.length < 3).map(e => e.innerText)"""
WIDTHS = (360, 800, 1400)
QUIET = "#recording-4"  # a recording that is fine
SCREENSHOTS = Path(__file__).parents[3] / "reports"  # kept by CI
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
def written(hostile_report: Json, history: History, file: Path) -> Path:
    if not file.exists():
        file.write_text(html(page_of(hostile_report, history)), encoding="utf-8")
    return file


@pytest.fixture
def page(browser: Any, written: Path, wrong: list[str]) -> Iterator[Any]:
    opened = browser.new_page(color_scheme="light", viewport={"width": 1100, "height": 900})
    opened.on("console", lambda line: wrong.append(line.text) if line.type in ("error", "warning") else None)
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("request", lambda sent: wrong.append(sent.url) if not sent.url.startswith("file://") else None)
    opened.goto(written.as_uri())
    yield opened
    opened.close()


def test_it_is_drawn_and_nothing_is_wrong(page: Any, wrong: list[str]) -> None:
    """The answer is on the first screen. A failing recording stands open, the worst first, and one that passes is
    folded. Under the pointer is the exact figure of the run. No error, no request, and what hostile names would have
    run did not."""
    assert page.locator("h1").inner_text().startswith("GPU memory:")
    assert "4 of 7 need attention" in page.locator("h1 strong").inner_text()
    answers = page.locator(".answers > li")
    assert answers.count() == 5
    assert answers.nth(1).bounding_box()["y"] < 900
    opened = [one.get_attribute("open") is not None for one in page.locator(".recording").all()]
    assert opened == [True, True, True, False, False, False]
    plot = page.locator("#recording-1 .plot").first
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    page.mouse.move(box["x"] + box["width"] - 1, box["y"] + 5)
    assert plot.locator("output").inner_text().startswith("lap 69, sample 1: ")
    assert plot.locator("output").inner_text().endswith(" B")
    page.mouse.move(box["x"] + 1, box["y"] + 5)
    assert plot.locator("output").inner_text().startswith("lap 0, sample 0: ")
    assert plot.locator("path.line").bounding_box()["height"] > 0.7 * box["height"]
    assert page.evaluate(UNSIGNED) == []  # colour is never alone
    assert page.evaluate("window.hacked") is None
    assert page.locator("img").count() == 0
    assert wrong == []


def test_the_keyboard_reaches_everything(page: Any) -> None:
    """Tab: the skip link, the theme, the answers, every recording, the charts, whose runs the arrows go through. A link
    to something folded opens it."""
    reached: list[str] = []
    while (not reached or reached[-1] != "recording-5") and len(reached) < 60:
        page.keyboard.press("Tab")
        reached.append(page.evaluate(FOCUSED))
        if reached[-1] == "theme":
            page.keyboard.press("Enter")
        if reached[-1] == "plot" and reached.count("plot") == 1:
            page.keyboard.press("Home")
            page.keyboard.press("ArrowRight")
            assert page.evaluate("document.activeElement.getAttribute('aria-valuetext')").startswith(
                "lap 0, sample 1: "
            )
    assert reached[0] == "skip"
    assert {"theme", "A", "plot", *(f"recording-{index}" for index in range(6))} <= set(reached)
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert page.locator("#key-0").get_attribute("open") is None
    page.locator(".grid a[href='#key-0']").press("Enter")
    page.wait_for_selector("#key-0[open]")
    last = page.locator("#key-0 .plot").first
    last.focus()
    last.press("Home")
    assert last.get_attribute("aria-valuetext").startswith("run 0001 2026-01-01 10:00 000000000000: 41,943,040 B")


@pytest.mark.share(2)
@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_it_fits_any_width(page: Any, scheme: str, report: Json, history: History, written: Path) -> None:
    """On a phone, a tablet and a desk, with everything open, nothing scrolls sideways and no figure or label is cut.
    The system's dark setting counts until the button is pressed. Screenshots are kept for eyes."""
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.emulate_media(color_scheme=scheme)
    assert (page.evaluate(ground) == light) == (scheme == "light")
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(CUT) == [], width
    page.locator("#theme").click()
    assert (page.evaluate(ground) == light) == (scheme == "dark")
    written.with_name("plain.html").write_text(html(page_of(report, history)), encoding="utf-8")
    page.goto(written.with_name("plain.html").as_uri())
    SCREENSHOTS.mkdir(exist_ok=True)
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 800})
        path = SCREENSHOTS / f"page-{width}-{scheme}.png"
        page.screenshot(path=path, full_page=True)
        assert path.stat().st_size > 10_000


def test_a_timeline_says_line_and_stack(page: Any, wrong: list[str]) -> None:
    """Under the pointer: the operation, all that is alive and the category. A click opens the line of the band and of
    the operation, with its stack; the keyboard goes through operations and categories, Enter opens. Names are text."""
    figure = page.locator("#recording-2 figure.stack")
    plot, chosen = figure.locator(".plot"), figure.locator(".chosen")
    plot.scroll_into_view_if_needed()
    assert not chosen.is_visible()
    box, peak = plot.bounding_box(), figure.locator("path.dots").bounding_box()
    over = (peak["x"] + 2, (peak["y"] + box["y"] + box["height"]) / 2)
    page.mouse.click(*over)
    found = chosen.inner_text()
    assert found.startswith("after operation 1: other ")
    assert "1,024 B, most of it (1,024 B) made by" in found
    assert "test_suite.py:16 answer: aten.zeros float32 [256]" in found
    assert re.search(r"\n\S*test_suite.py:16 answer", found.partition("aten.zeros")[2])  # its stack
    assert "the operation: made by" in found
    assert plot.locator("output").inner_text().startswith("after operation 1: ")
    plot.press("Home")
    assert plot.get_attribute("aria-valuetext").startswith("after operation 0: ")
    categories = []
    for key in ("ArrowDown", "ArrowDown", "ArrowDown", "ArrowUp"):
        plot.press(key)
        categories.append(plot.get_attribute("aria-valuetext").partition("; ")[2].partition(" ")[0])
    assert categories[-1] == "other"
    plot.press("ArrowRight")
    plot.press("Enter")
    assert chosen.inner_text() == found
    assert page.evaluate("window.hacked") is None
    assert wrong == []


def test_it_is_whole_without_scripts(browser: Any, written: Path) -> None:
    """Where scripts are blocked, as by viewers of CI artefacts: text, charts and folds are there, the theme's button is
    not."""
    context = browser.new_context(java_script_enabled=False)
    opened = context.new_page()
    opened.goto(written.as_uri())
    assert opened.locator("#recording-1 path.line").first.bounding_box()["height"] > 50
    opened.locator(f"{QUIET} > summary").click()
    assert opened.locator(f"{QUIET} .plot").first.is_visible()
    assert not opened.locator("#theme").is_visible()
    figure = opened.locator("#recording-2 figure.stack")
    assert figure.locator("path.band").last.bounding_box()["height"] > 20
    figure.locator("summary").click()
    assert "test_suite.py:16 answer" in figure.locator(".made").inner_text()
    context.close()
