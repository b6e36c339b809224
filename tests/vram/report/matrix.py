"""One project whose recordings end in every outcome there is, run by the plugin, and every surface of that run.

`python -m tests.vram.report.matrix` writes the golden texts anew.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

GOLDEN = Path(__file__).with_name("golden")
QUICK = {"PYTEST_ADDOPTS": "-p no:hypothesispytest -p no:anyio"}  # which are not used, and imported for 2 s
# The outcome of each recording of the project below, by its name.
OUTCOMES = {
    "dies": "out of memory",
    "leaks": "grows",
    "over a budget": "over limit",
    "over a limit": "over limit",
    "over a ratio": "over limit",
    "regressed": "regression",
    "rises alone": "undecided",
    "unread": "inconclusive",
    "one lap for stability": "inconclusive",
    "without a budget": "new",
    "without a base": "new",
    "once": "peaks alone",
    "fills a cache": "plateau",
    "level": "stable",
    "beside others": "stable",
    "leaks as known": "expected",
}
PROJECT = """
import os

import pytest
import torch

KEPT, CACHE, ALONE, LENGTH = [], {}, {}, [0]
OTHERS = torch.zeros(25 * 1024)
HEAD = os.environ["MATRIX"] == "head"  # the run that is judged; the one before it is its base
BUDGETS = os.path.join(os.path.dirname(__file__), "budgets.toml")


def level(n):
    torch.zeros(n * 1024)


def leaks(n):
    KEPT.append(torch.zeros(1024))


def fills(n):
    CACHE.setdefault(n, torch.zeros(4096))


def rises_alone(n):
    ALONE.clear()
    torch.zeros(1024 * 1024)  # the peak stays as it is
    if n == 1:
        LENGTH[0] += 1
        ALONE["kept until the next sample"] = torch.zeros(LENGTH[0] * 256)


def dies(n):
    if n == 2:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 48.00 MiB.")


def replay(vram, step, name, **more):
    return vram.replay(step, [1, 2], name=name, **more)


def test_budget(vram):
    vram.assert_peak(replay(vram, level, "over a budget"), vram.budget(BUDGETS, model="small"))


def test_limit(vram):
    vram.assert_peak(replay(vram, level, "over a limit"), "101 KiB")


def test_beside_others(vram):
    recording = replay(vram, level, "beside others")
    vram.assert_peak(recording, "90 KiB", besides_bytes=recording.before["requested"] - 72 * 1024)


def test_ratio(vram):
    reference = replay(vram, level, "level")
    vram.assert_ratio(replay(vram, lambda n: torch.zeros(n * 4096), "over a ratio"), reference, at_most=1.1)


def test_regression(vram):
    replay(vram, lambda n: torch.zeros(n * (1280 if HEAD else 1024)), "regressed")


def test_undecided(vram):
    vram.assert_stable(replay(vram, rises_alone, "rises alone"))


def test_unread(vram):
    vram.assert_peak(replay(vram, level, "unread"), "1 GiB", "reserved")


def test_one_lap(vram):
    vram.assert_stable(replay(vram, level, "one lap for stability", laps=1))


def test_no_budget(vram):
    vram.assert_peak(replay(vram, level, "without a budget"), vram.budget(BUDGETS, model="unknown"))


@pytest.mark.skipif(not HEAD, reason="it is new")
def test_no_base(vram):
    replay(vram, level, "without a base")


def test_once(vram):
    replay(vram, level, "once", laps=1)


def test_cache(vram):
    vram.assert_stable(replay(vram, fills, "fills a cache"))


def test_of_its_own(vram):
    assert not HEAD, "not memory"


@pytest.mark.vram_limit("8 KiB")
def test_marked_within():
    torch.zeros(1024)


@pytest.mark.vram_limit("4095 B")
def test_marked_over():
    torch.zeros(1024)


@pytest.mark.vram_limit("1 GiB")
def test_marked_regressed():
    torch.zeros(1280 if HEAD else 1024)


def test_out_of_memory(vram):
    replay(vram, dies, "dies")


def test_leak(vram):
    vram.assert_stable(replay(vram, leaks, "leaks"))


@pytest.mark.xfail(reason="known")
def test_known_leak(vram):
    vram.assert_stable(replay(vram, leaks, "leaks as known"))


@pytest.mark.xfail
@pytest.mark.vram_leak_free
def test_marked_known():
    KEPT.append(torch.zeros(256))
"""
MARKED = {
    "test_marked_within": "passed",
    "test_marked_over": "over limit",
    "test_marked_known": "expected",
    "test_marked_regressed": "regression",
}


@dataclass(frozen=True)
class Surfaces:
    """The texts of one run, by surface; `folder` has the report itself."""

    folder: Path
    terminal: str
    annotations: str
    junit: str
    summary: str
    markdown: str
    page: str
    history: str


def surfaces(folder: Path, python: str = sys.executable) -> Surfaces:
    """Run the project twice in `folder`, the second time held to the first, and render all that there is."""
    (folder / "test_matrix.py").write_text(PROJECT)
    (folder / "budgets.toml").write_text('[[budget]]\nmodel = "small"\npeak_bytes = 100000\nheadroom = "2%"\n')
    options = ("--vram-device", "cpu", "-p", "no:cacheprovider", "-p", "no:randomly", "--benchmark-quiet")
    judged = "regress or others or once or cache or marked_within"
    _python(folder, python, "base", "pytest", "-q", *options, "-k", judged, "--benchmark-save", "base")
    files = ("--vram-report", "memory.json", "--junit-xml", "junit.xml")
    terminal = _python(folder, python, "head", "pytest", *options, *files, "--vram-compare", "--benchmark-save", "head")
    page = ("--output", "page.html", "--markdown", "page.md")
    _python(folder, python, "head", "vram", "report", "--report", "memory.json", *page)
    lines = terminal.splitlines()
    section = lines.index(next(line for line in lines if line.strip("= ") == "vram"))
    end = next((at for at, line in enumerate(lines) if line.startswith("=") and at > section), len(lines))
    return Surfaces(
        folder=folder,
        terminal="\n".join(lines[section + 1 : end]),
        annotations="\n".join(line for line in lines if line.startswith("::error")),
        junit=(folder / "junit.xml").read_text(encoding="utf-8"),
        summary=(folder / "summary.md").read_text(encoding="utf-8"),
        markdown=(folder / "page.md").read_text(encoding="utf-8"),
        page=visible_text((folder / "page.html").read_text(encoding="utf-8")),
        history=_python(folder, python, "head", "vram", "history"),
    )


def _python(folder: Path, python: str, run: str, module: str, *arguments: str) -> str:
    variables = {"MATRIX": run, "GITHUB_ACTIONS": "true" if run == "head" else "", "CI": "", "NO_COLOR": "1"}
    if run == "head":
        variables["GITHUB_STEP_SUMMARY"] = str(folder / "summary.md")
    environment = {**os.environ, **variables, "COLUMNS": "200", "GITHUB_WORKSPACE": "", **QUICK}
    environment.pop("PYTEST_XDIST_WORKER", None)  # its name would be part of a snapshot's
    command = [python, "-m", module, *arguments]
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode in (0, 1), ended.stdout + ended.stderr
    return ended.stdout


_LINES = ("tr", "p", "h1", "h2", "h3", "li", "summary", "pre", "title", "figcaption")
_VOID = ("meta", "br", "path")


class _Visible(HTMLParser):
    """Text with a line for each block. A chart is what it is called to those who can't see it."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._within: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        if attributes.get("role") == "img":
            self.parts.append(f"{attributes['aria-label']}\n")
            tag = "chart"
        if attributes.get("data-head") == "host":  # which is noisy
            tag = "chart"
        if tag not in _VOID:
            self._within.append(tag)
        self.parts.append(" | " if tag in ("td", "th") else "\n" if tag == "p" else "")

    def handle_endtag(self, tag: str) -> None:
        if self._within and self._within[-1] in (tag, "chart"):
            self._within.pop()
        self.parts.append("\n" if tag in _LINES else "")

    def handle_data(self, data: str) -> None:
        if not {"script", "style", "button", "chart"} & set(self._within):
            self.parts.append(data if "pre" in self._within else re.sub(r"\s+", " ", data))


def visible_text(html: str) -> str:
    """The text that a page shows, a row of a table to a line."""
    parser = _Visible()
    parser.feed(html)
    lines = (" ".join(line.split()) for line in "".join(parser.parts).splitlines())
    return "\n".join(line for line in lines if line)


def golden_texts(of: Surfaces) -> Mapping[str, str]:
    """The text that is kept of each surface."""
    return {
        "terminal.txt": normalized(of.terminal),
        "annotations.txt": normalized(of.annotations),
        "memory.json": normalized(json.dumps(json.loads((of.folder / "memory.json").read_text()), indent=1)),
        "junit.txt": normalized(junit_text(of.junit)),
        "summary.md": normalized(of.summary),
        "page.md": normalized(of.markdown),
        "page.txt": normalized(of.page),
        "history.txt": normalized(of.history),
    }


def junit_text(xml: str) -> str:
    """Each test of a JUnit report with its properties of ours."""
    lines = []
    for case in ElementTree.fromstring(xml).iter("testcase"):  # noqa: S314 - our own file
        lines.append(str(case.get("name")))
        lines += [f"  {each.get('name')} = {each.get('value')}" for each in case.iter("property")]
    return "\n".join(lines)


# Texts that differ from machine to machine or run to run: versions, times, and the host's memory, which is noisy.
_VARYING = (
    (r"torch(\W+)2\.[\w.+]+", r"torch\1VERSION"),
    (r"python(\W+)3\.[\w.+]+", r"python\1VERSION"),
    (r"Linux x86\\?_64", "PLATFORM"),
    (r"\d{4}-\d\d-\d\d([ T]\d\d:\d\d)?", "DATE"),
    (r"(?m)^(.*  )\d+\.\d$", r"\1SECONDS"),
    (r"(?m)^(\| .*\| )\d+\.\d$", r"\1SECONDS"),
    (r"(?m)^ *\| host\b.*\n", ""),
    (r'(?s)\n    "host": \{.*?\n    \}', '\n    "host": {}'),
    (r'"seconds": \d+\.\d+', '"seconds": 0.0'),
    (r'(?s)"bytes": \[\n.*?\n     \]', '"bytes": []'),
)


def normalized(text: str) -> str:
    """`text` without what differs from run to run."""
    for pattern, by in _VARYING:
        text = re.sub(pattern, by, text)
    return text.rstrip() + "\n"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        made = surfaces(Path(temporary))
        for name, text in golden_texts(made).items():
            (GOLDEN / name).write_text(text, encoding="utf-8")
            print(f"written: {GOLDEN.name}/{name}")
