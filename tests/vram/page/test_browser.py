"""The page opened and used in the system's browser, with no network. Skipped where there is none."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.vram.history.made import entry, write_runs
from tests.vram.page.made import HOSTILE, hostile, leaky, marked, mode, report, with_tokens, written
from vram import format_bytes
from vram.page.command import gathered, write
from vram.page.html import whole_page
from vram.page.text import cut, visible

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SCREENSHOTS = Path(__file__).parents[3] / "reports"
READY = "html[data-vram=ready]"
DRAWN = ".js-plotly-plot .scatterlayer .trace"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for all tests."""
    for needed in ("playwright", "plotly"):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed")
    from playwright.sync_api import sync_playwright

    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


@dataclass
class Opened:
    """A page, and what the browser said and asked for."""

    page: Page
    said: list[str]
    asked: list[str]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Pages by name, as addresses."""
    folder = tmp_path_factory.mktemp("pages")
    told = {
        "plain": report(mode(), leaky(), with_tokens(), tests=[marked(peak=201)]),
        "hostile": report(*(hostile(at) for at in range(len(HOSTILE))), tests=[marked(text) for text in HOSTILE]),
    }
    uri = write_runs(folder / "store", *([entry(peak, samples=4)] for peak in (1000, 1000, 1000, 5000, 5000)))
    named = write_runs(folder / "named", *([entry(9, mode=text) for text in HOSTILE[:-2]] for _ in range(3)))
    found = {}
    for name, one in told.items():
        path = written(folder / f"{name}.json", one)
        write(folder / f"{name}.html", whole_page(gathered(path, uri if name == "plain" else named)))
        found[name] = (folder / f"{name}.html").as_uri()
    return found


@pytest.fixture
def opened(browser: Browser, files: dict[str, str], request: pytest.FixtureRequest) -> Iterator[Opened]:
    """The page that the test names, in a window of its own; afterwards nothing was said to the console or asked for."""
    told: dict[str, Any] = {"name": "plain", "color_scheme": "light", "viewport": {"width": 1200, "height": 900}}
    told |= getattr(request, "param", {})
    address = files[told.pop("name")]
    context = browser.new_context(**told)
    page = context.new_page()
    one = Opened(page, [], [])
    page.on("console", lambda message: one.said.append(message.text))
    page.on("pageerror", lambda error: one.said.append(str(error)))
    page.on("dialog", lambda dialog: (one.said.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda sent: one.asked.append(sent.url))
    page.goto(address)
    page.wait_for_selector(READY)
    yield one
    context.close()
    assert one.said == []
    assert one.asked == [address]


def test_the_verdict_is_read_first_and_the_worst_mode_is_open(opened: Opened) -> None:
    """The heading is the verdict; only what failed is unfolded; its readings are drawn, a line a lap that differs."""
    page = opened.page
    assert page.locator("h1").inner_text().endswith("leaky grows; 1 marked test over the limit.")
    assert page.locator("details.mode[open] h3").all_inner_texts() == ["leaky"]
    page.wait_for_selector(DRAWN)
    assert page.locator("details[open] .js-plotly-plot .scatterlayer .trace").count() == 5
    page.screenshot(path=_screenshot("memory-page-light.png"), full_page=True)


def test_every_tab_is_reached_by_the_keyboard(opened: Opened) -> None:
    """The first Tab skips to the modes; in the tabs arrows, Home and End move and show; the focus is seen."""
    page = opened.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"
    while page.evaluate("document.activeElement.getAttribute('role')") != "tab":
        page.keyboard.press("Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    tabs = page.locator("details[open] [role=tab]")
    for key, at in (("ArrowRight", 1), ("ArrowRight", 2), ("End", 5), ("ArrowRight", 0), ("ArrowLeft", 5), ("Home", 0)):
        page.keyboard.press(key)
        assert page.evaluate("document.activeElement.id") == tabs.nth(at).get_attribute("id")
        shown = page.locator("details[open] [role=tabpanel]:visible")
        assert shown.count() == 1
        assert shown.get_attribute("aria-labelledby") == tabs.nth(at).get_attribute("id")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.tagName") == "SELECT"


def test_tokens_peak_and_history_are_shown(opened: Opened) -> None:
    """By token a chart; the peak by line with its share; the history with its step marked where it began."""
    page = opened.page
    page.get_by_role("link", name="tokens").click()
    tokens = page.locator("details.mode", has_text="tokens")
    assert tokens.get_attribute("open") is not None
    tokens.get_by_role("tab", name="By token").click()
    tokens.locator(f"[role=tabpanel]:visible {DRAWN}").first.wait_for()
    assert "8 B a token" in tokens.locator("figcaption:visible").inner_text()
    tokens.get_by_role("tab", name="Peak by line").click()
    assert "3.00 KiB" in tokens.locator("table:visible").inner_text()
    assert "25.0%" in tokens.locator("table:visible").inner_text()
    page.get_by_role("link", name="himap").click()
    himap = page.locator("details.mode", has_text="himap").first
    himap.get_by_role("tab", name="History").click()
    himap.locator(f"[role=tabpanel]:visible {DRAWN}").first.wait_for()
    assert himap.locator(".annotation-text:visible").all_inner_texts() == ["+3.91 KiB since run 0004"]
    himap.locator("select:visible").select_option(label="requested")
    himap.locator(".annotation-text:visible").wait_for(state="detached")
    himap.get_by_role("tab", name="Peak by line").click()
    assert "--vram-breakdown" in himap.locator("[role=tabpanel]:visible").inner_text()


@pytest.mark.parametrize("opened", [{"color_scheme": "dark"}], indirect=True)
def test_it_is_dark_where_the_system_is_and_can_be_switched(opened: Opened) -> None:
    """The system's colours first; the button turns them over, charts with them, and says which are on."""
    page = opened.page

    def light() -> tuple[float, float]:
        script = "s => getComputedStyle(document.querySelector(s)).getPropertyValue(s == 'body' ? 'background-color' : 'fill')"
        paper, ticks = page.evaluate(script, "body"), page.evaluate(script, ".xtick text")
        return tuple(sum(map(float, one.partition("(")[2].rstrip(")").split(",")[:3])) / 765 for one in (paper, ticks))  # type: ignore[return-value]

    page.wait_for_selector(DRAWN)
    page.screenshot(path=_screenshot("memory-page-dark.png"), full_page=True)
    paper, ticks = light()
    assert paper < 0.2 < 0.5 < ticks
    button = page.get_by_role("button", name="Dark")
    assert button.get_attribute("aria-pressed") == "true"
    button.focus()
    page.keyboard.press("Enter")
    assert button.get_attribute("aria-pressed") == "false"
    paper, ticks = light()
    assert ticks < 0.5 < 0.9 < paper


@pytest.mark.parametrize("opened", [{"name": "hostile"}], indirect=True)
def test_hostile_text_is_shown_and_runs_nothing(opened: Opened) -> None:
    """Every name is on the page as text; unfolded, drawn and hovered, none runs, adds an element or asks for a file."""
    page = opened.page
    titles = page.locator("details.mode h3").all_inner_texts()
    squeezed = [" ".join(title.split()) for title in titles]
    for text in HOSTILE:
        assert " ".join(cut(text, 200).split()) in squeezed
    for at in range(len(HOSTILE)):
        one = page.locator(f"#mode-{at}")
        one.evaluate("details => { details.open = true; details.scrollIntoView(); }")
        for tab in ("By token", "History", "Peak by line", "By sample"):
            one.get_by_role("tab", name=tab).first.click()
        one.locator(f"[role=tabpanel]:visible {DRAWN}").first.wait_for()
        one.locator("select:visible").select_option(index=1)
    page.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
    page.locator(f"section[aria-label^=Saved] {DRAWN}").first.wait_for()
    page.locator("#mode-0 .plot:visible").hover()
    assert page.evaluate("window.hacked") is None
    assert page.locator("img, iframe, object, embed, link, main script").count() == 0
    assert page.locator("[onerror], [onmouseover]").count() == 0
    assert visible(HOSTILE[0]) in page.locator("main").inner_text()


@pytest.mark.parametrize("opened", [{"viewport": {"width": 360, "height": 700}}], indirect=True)
def test_it_fits_a_phone(opened: Opened) -> None:
    """Nothing is wider than the window; tables scroll by themselves, by keyboard too."""
    page = opened.page
    page.wait_for_selector(DRAWN)
    page.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate("[...document.querySelectorAll('.scroll')].every((one) => one.tabIndex === 0)")
    page.screenshot(path=_screenshot("memory-page-phone.png"))


def test_without_its_script_it_still_tells_everything(browser: Browser, files: dict[str, str]) -> None:
    """Panels are shown one below the other, with their titles; controls that would do nothing are not."""
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(files["plain"])
    opened = page.locator("details.mode[open]")
    assert opened.locator("[role=tabpanel]:visible").count() == 6
    assert page.locator("button:visible, select:visible").count() == 0
    context.close()


def test_sizes_read_the_same_in_the_browser(opened: Opened) -> None:
    """The page's script and `vram.format_bytes` write the same figure alike."""
    sizes = [0, 1, 512, 0.5, 1023, 1024, 1536, -2048, 2**20 - 1, 3 * 2**20 + 12_345, 18 * 2**30, 5 * 2**40, -7]
    told = opened.page.evaluate("sizes => sizes.map(window.vramPage.formatBytes)", sizes)
    assert told == [format_bytes(size) for size in sizes]


def _screenshot(name: str) -> str:
    """Kept by CI."""
    SCREENSHOTS.mkdir(exist_ok=True)
    return str(SCREENSHOTS / name)
