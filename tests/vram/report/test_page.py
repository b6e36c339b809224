"""What the page and its Markdown say, whatever was measured and whatever it is called."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.vram.report.conftest import HOSTILE, MIB, a_mode
from vram.cli import main
from vram.history.runs import History
from vram.report.gathered import Page, gathered
from vram.report.markdown import MOST_LINES, escaped, markdown
from vram.report.page import html
from vram.summary.reader import read_run, run_from_json


class Read(HTMLParser):
    """Elements with their attributes, and the text of all but scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._within = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._within = tag

    def handle_endtag(self, tag: str) -> None:
        self._within = ""

    def handle_data(self, data: str) -> None:
        if self._within not in ("script", "style"):
            self.text += data

    def all(self, tag: str) -> Iterator[dict[str, str | None]]:
        return (attributes for found, attributes in self.found if found == tag)


def page_of(*modes: dict[str, Any]) -> Page:
    return gathered(run_from_json({"environment": {}, "modes": list(modes), "tests": []}), History(()))


def test_hostile_names_are_text(report: dict[str, Any], history: History) -> None:
    """In the HTML and in its data: three scripts are ours, no image is there, and the name reads as it is."""
    text = html(gathered(run_from_json(report), history), "var Plotly;")
    read = Read(text)
    assert len(list(read.all("script"))) == 3
    assert list(read.all("img")) == []
    assert HOSTILE in read.text
    data = re.search(r'id="data">(.*?)</script>', text, re.DOTALL)
    assert data is not None
    assert [lines for mode in json.loads(data[1])["recordings"] for lines in mode["lines"]] == [
        [f"model.py:4 {HOSTILE}", 9 * MIB]
    ]


def test_nothing_is_fetched(report: dict[str, Any], history: History) -> None:
    """No element names another place, and the page's own policy forbids it."""
    read = Read(html(gathered(run_from_json(report), history), "var Plotly;"))
    places = [attributes.get(name) for _, attributes in read.found for name in ("src", "href", "action")]
    assert all(place is None or place.startswith("#") for place in places)
    policies = [meta.get("content") or "" for meta in read.all("meta") if meta.get("http-equiv")]
    assert [policy.startswith("default-src 'none'") for policy in policies] == [True]


def test_the_page_tells_everything(report: dict[str, Any], history: History) -> None:
    """Verdict first; who grows, from which line, who holds it; what changed since which run; what is absent and why."""
    text = Read(html(gathered(run_from_json(report), history), "")).text
    for told in (
        "GPU memory: 3 of 5 need attention: 1 grows, 1 over limit, 1 inconclusive, 1 stable, 1 marked test over limit",
        "4,096 B a sample: model.py:4",
        "held by: list",
        "1 B over its budget",
        "peak 40.00 MiB -> 42.00 MiB since run 0007",
        "driver not measured: a CPU has no driver that counts memory",
        "not read: m/0099_broken.json: not JSON",
        "peak 1 B over",
        "torch 2.13.0",
    ):
        assert told in text, told


def test_what_is_not_there_is_said(report: dict[str, Any]) -> None:
    """No history, no breakdown by line, no budget: in words, and no chart of it."""
    del report["modes"][0]["at_peak"]
    read = Read(html(gathered(run_from_json(report), History(())), ""))
    assert "what peaks are made of was not recorded: run pytest with --vram-breakdown" in read.text
    assert "No run is saved" in read.text
    kinds = {place.get("data-chart") for place in read.all("div")}
    assert kinds == {None, "samples", "marks"}


def test_an_undecided_suite_is_not_called_stable() -> None:
    """A mode without a verdict is inconclusive; one lap, made for its peak alone, is not."""
    page = page_of(a_mode("m", verdict=None))
    assert page.headline == "no decision on 1 of 1: 1 inconclusive"
    page = gathered(
        run_from_json({"environment": {}, "modes": [a_mode("m", verdict=None, laps=1)], "tests": []}), History(())
    )
    assert page.headline == "nothing needs attention: 1 peaks alone"
    modes = [a_mode("a"), a_mode("b"), a_mode("m", verdict=None, laps=1)]
    page = page_of(*modes)
    assert page.headline == "nothing needs attention: 1 peaks alone, 2 stable"


def test_more_than_the_reference_allows_needs_attention() -> None:
    """A recording that is stable and within its budget may still be over its ratio."""
    ratio = {"text": "m needs 1.5 x of b", "over": 2, "ratio": 1.5}
    page = gathered(
        run_from_json({"environment": {}, "modes": [a_mode("m", ratios=[ratio])], "tests": []}), History(())
    )
    assert page.headline == "1 of 1 need attention: 1 over limit"
    assert "m needs 1.5 x of b" in markdown(page)
    assert '<span class="bad">' in html(page, "")


def test_out_of_memory_is_told(pytester: pytest.Pytester, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A real report of a replay that ran out: first in the headline, with what was alive, on both surfaces."""
    pytester.makepyfile(
        """
        import torch
        KEPT = []
        def step(length):
            KEPT.append(torch.zeros(1000))
            if length == 2: raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 48.00 MiB.")
        def test_it(vram): vram.replay(step, [1, 2], name="m")
        """
    )
    pytester.runpytest("--vram-device", "cpu", "--vram-report", "r.json").assert_outcomes(failed=1)
    path = pytester.path / "r.json"
    page = gathered(read_run(path), History(()))
    assert page.headline == "1 of 1 need attention: 1 out of memory"
    for text in (Read(html(page, "")).text, markdown(page)):
        assert "asking for 48.00 MiB" in text
        assert "test_out_of_memory_is_told.py:4" in text


def test_a_file_is_not_written_over_another(report: dict[str, Any], tmp_path: Path) -> None:
    """Not the page over the report it is made of, nor the Markdown over the page."""
    path = tmp_path / "memory.json"
    path.write_text(json.dumps(report))
    store = ("--storage", f"file://{tmp_path}/no")
    assert vram_report("--report", path, "--output", path, *store) == 2
    assert vram_report("--report", path, "--markdown", path, *store) == 2
    assert vram_report("--report", path, "--output", tmp_path / "p", "--markdown", tmp_path / "p", *store) == 2
    assert json.loads(path.read_text()) == report


@pytest.mark.parametrize(
    "value", [7, "text", [], [3], {"a": 1}, True, None, {"lines": 3}, {"lines": [{}]}, [{"text": 4}]]
)
@pytest.mark.parametrize(
    "key",
    [
        "mode",
        "laps",
        "verdict",
        "peak_bytes",
        "budget_bytes",
        "channels",
        "absent",
        "marks",
        "at_peak",
        "explanation",
        "ratios",
    ],
)
def test_a_report_of_another_shape_is_refused_or_read(
    key: str, value: object, report: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever stands in a recording: exit code 2 and one line with the file's name, or a page. Never a traceback."""
    report["modes"][0][key] = value
    path = tmp_path / "memory.json"
    path.write_text(json.dumps(report))
    code = vram_report("--report", path, "--markdown", "-", "--storage", f"file://{tmp_path}/no")
    told = capsys.readouterr()
    assert code in (0, 2)
    assert (str(path) in told.err and told.err.count("\n") == 1) if code else told.err == ""
    if code == 0:
        html(gathered(read_run(path), History(())), "")


def test_the_markdown_is_text_too(report: dict[str, Any], history: History) -> None:
    """Nothing in a name is a mention, a link, a cell, HTML or a fence; failures come first."""
    text = markdown(gathered(run_from_json(report), history))
    assert text.startswith("**GPU memory: 3 of 5 need attention: 1 grows, ")
    outside = re.sub(r"```text.*?```", "", text, flags=re.DOTALL)
    assert "@everyone" not in text
    assert "<script>" not in outside
    assert "http://" not in outside
    assert text.count("```") == 2
    rows = [line for line in text.splitlines() if line.startswith("|")][2:]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {6}
    assert "quiet" in rows[2] or "quiet" in rows[3]
    assert "quiet: peak 40.00 MiB -> 42.00 MiB since run 0007" in text


@pytest.mark.parametrize("verdict", ["stable", "grows"])
def test_the_markdown_is_short(report: dict[str, Any], history: History, verdict: str) -> None:
    """60 lines at most, and how much more there is: of 100 recordings, tests and reasons each."""
    absent = {f"channel {number}": f"reason {number}" for number in range(100)}
    explained = report["modes"][1]["explanation"]
    more = {"absent": absent, "explanation": explained}
    report["modes"] = [a_mode(f"{number} {HOSTILE}", verdict=verdict, **more) for number in range(100)]
    report["tests"] *= 100
    text = markdown(gathered(run_from_json(report), history))
    assert len(text.splitlines()) <= MOST_LINES
    assert "and 86 more recordings" in text
    assert "and 95 more tests" in text
    assert "more reasons" in text


def test_markdown_characters_are_escaped() -> None:
    """By hand."""
    assert escaped("a|b_c*d`e\n<f> [g](h) @i") == "a\\|b\\_c\\*d\\`e &lt;f&gt; \\[g\\](h) @\u200bi"


def vram_report(*arguments: object) -> int:
    return main(["report", *map(str, arguments)])


def test_a_report_becomes_a_page(
    report: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both files are written where asked; plotly is in the page; without arguments reports/memory.json is taken."""
    monkeypatch.chdir(tmp_path)
    pytest.importorskip("plotly", reason="plotly is not installed")
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "memory.json").write_text(json.dumps(report))
    assert vram_report("--output", "out/page.html", "--markdown", "page.md") == 0
    assert capsys.readouterr().out == "written: out/page.html\nwritten: page.md\n"
    assert "plotly.js v" in (tmp_path / "out" / "page.html").read_text()
    assert (tmp_path / "page.md").read_text().startswith("**GPU memory: ")
    assert vram_report("--markdown", "-") == 0
    assert capsys.readouterr().out.startswith("**GPU memory: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "page.md", "reports"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "a report must be JSON that --vram-report wrote"),
        ("[]", "a report must be of schema 1, got None"),
        ('{"schema": 2}', "a report must be of schema 1, got 2"),
        (
            '{"schema": 1, "modes": [{}], "tests": [], "environment": {}}',
            "a report must be as --vram-report writes it",
        ),
        (
            '{"schema": 1, "modes": 3, "tests": [], "environment": {}}',
            "a report must be as --vram-report writes it",
        ),
        (None, "No such file"),
    ],
)
def test_a_report_that_cannot_be_read_is_one_line(
    content: str | None, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, with the file's name; nothing is written."""
    path = tmp_path / "memory.json"
    if content is not None:
        path.write_text(content)
    assert vram_report("--report", path, "--output", tmp_path / "page.html", "--storage", f"file://{tmp_path}/no") == 2
    err = capsys.readouterr().err
    assert told in err
    assert str(path) in err
    assert err.count("\n") == 1
    assert not (tmp_path / "page.html").exists()


def test_nothing_to_report_is_no_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 3, as for a comparison with nothing to compare."""
    monkeypatch.chdir(tmp_path)
    assert vram_report() == 3
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_one_line(
    report: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2: a file is in the way of a folder."""
    path = tmp_path / "memory.json"
    path.write_text(json.dumps(report))
    assert vram_report("--report", path, "--markdown", path / "page.md", "--storage", f"file://{tmp_path}/no") == 2
    assert "can't be written" in capsys.readouterr().err


def test_without_plotly_the_markdown_is_there(
    report: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page names the extra; the Markdown does not need it."""
    monkeypatch.setitem(__import__("sys").modules, "plotly.offline", None)
    path = tmp_path / "memory.json"
    path.write_text(json.dumps(report))
    arguments = ("--report", path, "--storage", f"file://{tmp_path}/no")
    assert vram_report(*arguments, "--output", tmp_path / "page.html") == 2
    assert "pip install 'himap-vram[report]'" in capsys.readouterr().err
    assert vram_report(*arguments, "--markdown", "-") == 0


def test_a_session_records_what_the_page_shows(pytester: pytest.Pytester) -> None:
    """--vram-breakdown names the line that the peak is made of; marks are those of the sample that needs most."""
    pytester.makepyfile(
        """
        import torch, vram as plugin
        WEIGHTS = torch.zeros(1000)
        def step(length):
            scratch = torch.zeros(256 * length)
            plugin.mark("token")
        def test_it(vram):
            vram.replay(step, [1, 5, 2], laps=3, name="m")
        """
    )
    pytester.runpytest("--vram-device", "cpu", "--vram-report", "r.json", "--vram-breakdown").assert_outcomes(passed=1)
    mode = json.loads((pytester.path / "r.json").read_text())["modes"][0]
    assert mode["marks"]["token"]["sample"] == mode["at_peak"]["sample"] == 1
    assert [len(lap) for lap in mode["marks"]["token"]["channels"]["requested"]] == [1, 1, 1]
    lines = {line["line"].partition(" ")[2]: line for line in mode["at_peak"]["lines"]}
    assert (lines["step"]["bytes"], lines["step"]["op"], lines["step"]["count"]) == (5 * 1024, "aten.zeros", 1)
    assert sum(line["bytes"] for line in mode["at_peak"]["lines"]) == mode["at_peak"]["bytes"]
    before = next(line for name, line in lines.items() if name.startswith("the sample"))
    assert before["bytes"] >= 4000
    assert mode["at_peak"]["bytes"] <= mode["peak_bytes"] + MIB
