"""The page and its Markdown, whatever was measured and whatever it is called."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

import vram.report
from tests.vram.history.made import entry as made_entry
from tests.vram.report.conftest import HOSTILE, MIB, Json, mode_of, page_of, with_peak
from tests.vram.report.matrix import visible_text
from vram.cli import main
from vram.history.entries import of_summary
from vram.history.runs import History, Run
from vram.report.gathered import gathered
from vram.report.markdown import MOST_LINES, escaped, markdown
from vram.report.page import html
from vram.report.stacked import stacked
from vram.summary.reader import recording_from_json, run_from_json


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


def test_hostile_names_are_text(hostile_report: Json, history: History) -> None:
    """In the HTML and in its data: one script and its data are ours, no image is there, and the name reads as it is."""
    text = html(page_of(hostile_report, history))
    read = Read(text)
    assert [script.get("type") for script in read.all("script")] == ["application/json", None]
    assert list(read.all("img")) == []
    for name in ("leaks", "token", "test_suite.py::test_marked", "CPU tensors", "held by: list `KEPT`"):
        assert re.search(f"{name}[^\n]* {re.escape(HOSTILE)}", read.text), name
    data = re.search(r'id="data">(.*?)</script>', text, re.DOTALL)
    assert data is not None
    assert [len(key["runs"]) for key in json.loads(data[1])] == [12, 12]
    labels = [plot.get("aria-label") or "" for plot in read.all("div") if plot.get("role") == "img"]
    assert f"requested at each token {HOSTILE}, 3 token {HOSTILE}s in 3 laps" in "".join(labels)


def test_nothing_is_fetched(hostile_report: Json, history: History) -> None:
    """No element names another place, and the page's own policy forbids it."""
    read = Read(html(page_of(hostile_report, history)))
    assert all(attributes.get(name) is None for _, attributes in read.found for name in ("src", "srcset", "action"))
    assert {tag for tag, attributes in read.found if "href" in attributes} == {"a"}
    assert [tag for tag, _ in read.found if tag in ("link", "img", "iframe", "object", "use")] == []
    policies = [meta.get("content") or "" for meta in read.all("meta") if meta.get("http-equiv")]
    assert [policy.startswith("default-src 'none'") for policy in policies] == [True]


def test_text_is_legible_in_both_schemes() -> None:
    """Every colour of text has a contrast of 4.5 to 1 or more to both grounds (WCAG AA), in light and dark."""
    css = (Path(vram.report.__path__[0]) / "page.css").read_text(encoding="utf-8")
    schemes = [dict(re.findall(r"--(\w+): #(\w{6})", block)) for block in re.findall(r":root[^{]*\{([^}]*)\}", css)]
    assert len(schemes) == 3

    def brightness(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (0, 2, 4)]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    for scheme in schemes:
        for text in ("ink", "faint", "good", "bad", "doubt", "accent"):
            for ground in ("ground", "raised"):
                low, high = sorted((brightness(scheme[text]), brightness(scheme[ground])))
                assert (high + 0.05) / (low + 0.05) >= 4.5, (text, ground)


def test_only_our_own_parts_are_printed_as_they_are() -> None:
    """Style, data and the script; whatever else a template prints is escaped."""
    templates = Path(vram.report.__path__[0]) / "templates"
    safe = [part for path in templates.iterdir() for part in re.findall(r"(\w+) *\| *safe", path.read_text())]
    assert sorted(safe) == ["data", "script", "style"]


def test_the_page_says_everything(report: Json, history: History) -> None:
    """The headline first; who grows, from which line, who holds it; what changed since which run; what is absent and
    why."""
    text = Read(html(page_of(report, history))).text
    for expected in (
        "GPU memory: 4 of 7 need attention: 1 out of memory, 1 grows, 1 over limit, 1 inconclusive, 1 peaks alone",
        "4,096 B a sample: test_suite.py:21 leak: aten.zeros float32 [1024]",
        "held by: list `KEPT`",
        "large: requested_peak peak ",
        "over the allowed 1 B",
        "peak 40.00 MiB -> 42.00 MiB since run 0007",
        "driver not measured: a CPU has no driver that counts memory",
        "not read: m/0099_broken.json: not JSON",
        "over limit: peak 2,976 B over",
        f"torch {report['environment']['torch']}",
    ):
        assert expected in text, expected


def test_failing_recordings_come_first_and_stand_open(report: Json) -> None:
    """In the table, on the page and in Markdown, the worst before the others; what is fine is closed."""
    order = ["dies", "leaks", "large", "unread"]
    read = Read(html(page_of(report)))
    opened = [attributes for attributes in read.all("details") if "id" in attributes]
    assert ["open" in attributes for attributes in opened] == [True, True, True, False, False, False]
    assert [name for name in re.findall(r"^ *(\w+): ", read.text, re.MULTILINE) if name in order][:1] == ["dies"]
    rows = [line.split("|")[1].strip() for line in markdown(page_of(report)).splitlines() if line.startswith("|")]
    assert rows[2:6] == order


def test_what_is_not_there_is_said(report: Json) -> None:
    """No history, no breakdown by line, no budget: in words, and no chart of it."""
    report["modes"] = [{**mode, "at_peak": None} for mode in report["modes"]]
    read = Read(html(page_of(report)))
    assert "peaks by line were not recorded: run pytest with --vram-breakdown" in read.text
    assert "No run is saved" in read.text
    assert not any("peak_above_start" in (plot.get("aria-label") or "") for plot in read.all("div"))
    assert "Peak of sample" not in read.text
    assert "beside the" not in read.text


def test_a_suite_without_a_decision_is_not_called_stable(report: Json) -> None:
    """A recording that could not be judged is open; one lap, made for its peak alone, is not."""
    assert page_of(report, None, "unread").headline == "no decision on 1 of 1: 1 inconclusive"
    assert page_of(report, None, "once").headline == "nothing needs attention: 1 peaks alone"
    assert page_of(report, None, "quiet", "once").headline == "nothing needs attention: 1 peaks alone, 1 stable"


def test_out_of_memory_is_explained(report: Json) -> None:
    """With the line and what was alive, on both surfaces."""
    page = page_of(report, None, "dies")
    assert page.headline == "1 of 1 needs attention: 1 out of memory"
    for text in (Read(html(page)).text, markdown(page)):
        assert "asking for 48.00 MiB" in text
        assert "test_suite.py:27" in text


def test_a_file_is_not_written_over_another(report: Json, tmp_path: Path) -> None:
    """Not the page over the report it is made of, nor the Markdown over the page."""
    path = tmp_path / "memory.json"
    path.write_text(json.dumps(report))
    store = ("--storage", f"file://{tmp_path}/no")
    assert vram_report("--report", path, "--output", path, *store) == 2
    assert vram_report("--report", path, "--markdown", path, *store) == 2
    assert vram_report("--report", path, "--output", tmp_path / "p", "--markdown", tmp_path / "p", *store) == 2
    assert json.loads(path.read_text()) == report


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
        "checks",
        "ratios",
    ],
)
def test_a_report_of_another_shape_is_refused_or_read(
    key: str, report: Json, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever stands in a recording: exit code 2 and one line with the file's name, or a page. Never a traceback."""
    path = tmp_path / "memory.json"
    report["modes"] = [mode_of(report, "quiet")]
    for value in (7, "text", [], [3], {"a": 1}, True, None, {"lines": 3}, {"lines": [{}]}, [{"text": 4}]):
        report["modes"][0][key] = value
        path.write_text(json.dumps(report))
        code = vram_report("--report", path, "--markdown", "-", "--storage", f"file://{tmp_path}/no")
        err = capsys.readouterr().err
        assert code in (0, 2), value
        assert (str(path) in err and err.count("\n") == 1) if code else err == "", value
        if code == 0:
            assert html(page_of(report)).startswith("<!doctype html>"), value


def test_the_markdown_is_text_too(hostile_report: Json, history: History) -> None:
    """Nothing in a name is a mention, a link, a cell, HTML or a fence; failures come first."""
    text = markdown(page_of(hostile_report, history))
    assert text.startswith("**GPU memory: 4 of 7 need attention: 1 out of memory, 1 grows, ")
    outside = re.sub(r"```text.*?```", "", text, flags=re.DOTALL)
    assert "@everyone" not in text
    assert "<script>" not in outside
    assert "http://" not in outside
    assert text.count("```") == 2
    rows = [line for line in text.splitlines() if line.startswith("|")][2:]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {6}
    assert "- quiet: peak 40.00 MiB -> 42.00 MiB since run 0007" in text


@pytest.mark.parametrize("name", ["quiet", "leaks"])
def test_the_markdown_is_short(hostile_report: Json, history: History, name: str) -> None:
    """60 lines at most, and how much more there is: of 100 recordings, tests and reasons each."""
    absent = {f"channel {number}": f"reason {number}" for number in range(100)}
    mode = next(mode for mode in hostile_report["modes"] if mode["mode"].startswith(name)) | {"absent": absent}
    hostile_report["modes"] = [mode | {"mode": f"{number} {mode['mode']}"} for number in range(100)]
    hostile_report["tests"] *= 100
    text = markdown(page_of(hostile_report, history))
    assert len(text.splitlines()) <= MOST_LINES
    assert "and 86 more recordings" in text
    assert "and 95 more tests" in text
    assert "more reasons" in text


def test_markdown_characters_are_escaped() -> None:
    """Markup, a mention and a line end, one by one."""
    assert escaped("a|b_c*d`e\n<f> [g](h) @i") == "a\\|b\\_c\\*d\\`e &lt;f&gt; \\[g\\](h) @\u200bi"


def vram_report(*arguments: object) -> int:
    return main(["report", *map(str, arguments)])


def test_a_report_becomes_a_page(
    report: Json, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both files are written where the options say; reports/memory.json is the default."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "memory.json").write_text(json.dumps(report))
    assert vram_report("--output", "out/page.html", "--markdown", "page.md") == 0
    assert capsys.readouterr().out == "written: out/page.html\nwritten: page.md\n"
    assert (tmp_path / "out" / "page.html").read_text().startswith("<!doctype html>")
    assert (tmp_path / "page.md").read_text().startswith("**GPU memory: ")
    assert vram_report("--markdown", "-") == 0
    assert capsys.readouterr().out.startswith("**GPU memory: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "page.md", "reports"]


@pytest.mark.parametrize(
    ("content", "message"),
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
    content: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, with the file's name; nothing is written."""
    path = tmp_path / "memory.json"
    if content is not None:
        path.write_text(content)
    assert vram_report("--report", path, "--output", tmp_path / "page.html", "--storage", f"file://{tmp_path}/no") == 2
    err = capsys.readouterr().err
    assert message in err
    assert str(path) in err
    assert err.count("\n") == 1
    assert not (tmp_path / "page.html").exists()


def test_nothing_to_report_is_no_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 3, as for a comparison with nothing to compare."""
    monkeypatch.chdir(tmp_path)
    assert vram_report() == 3
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_one_line(
    report: Json, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2: a file is in the way of a folder."""
    path = tmp_path / "memory.json"
    path.write_text(json.dumps(report))
    assert vram_report("--report", path, "--markdown", path / "page.md", "--storage", f"file://{tmp_path}/no") == 2
    assert "can't be written" in capsys.readouterr().err


def charts_of(text: str) -> list[str]:
    """Charts have names for those who can't see them."""
    return [plot.get("aria-label") or "" for plot in Read(text).all("div") if plot.get("role") == "img"]


def test_the_first_screen_is_the_answer(report: Json, history: History) -> None:
    """Before any table: a sentence for each recording that failed or has no decision and each marked test that failed,
    worst first, without saying its outcome twice; the line that grows and its holder, or is alive at
    the peak; and the saved run."""
    text = visible_text(html(page_of(report, history))).partition("\nRecordings\n")[0]
    sentences = text.split("\n")[2:]
    assert sentences[0].startswith("out of memory dies: out of memory in sample 1 of lap 0, asking for 48.00 MiB")
    assert re.fullmatch(r"grows leaks: every sample rose by the same 8,192 B in each of \d+ laps", sentences[1])
    assert sentences[2].startswith(
        "4,096 B a sample: test_suite.py:21 leak: aten.zeros float32 [1024], held by: list `K"
    )
    assert sentences[3].startswith("over limit large: requested_peak peak ")
    assert sentences[4].startswith("alive at the peak of sample 0, run again with tracing: ")
    assert sentences[5] == "inconclusive unread: driver was not measured: a CPU has no driver that counts memory"
    assert sentences[6] == "over limit test_suite.py::test_marked: peak 2,976 B over"
    assert sentences[7] == "3.91 KiB in 1: test_suite.py:56 test_marked: aten.zeros float32 [1000]"
    assert sentences[8].startswith("measured: CPU tensors")


def test_each_figure_stands_beside_its_base(report: Json, history: History) -> None:
    """The base is the first of the runs before the one that the report was saved as, in table, chart and words."""
    report["modes"] = [with_peak(mode_of(report, "quiet"), 42 * MIB)]
    text = html(page_of(report, history))
    assert "quiet | stable | 0 B | 42.00 MiB | - | +2,097,152 B (+5.00%) |" in visible_text(text)
    assert "saved as run 0012, 2026-01-12 10:00" in visible_text(text)
    assert "peaks beside the recorded base: 1 more" in visible_text(text)
    assert "peak | 40.00 MiB | 42.00 MiB | +2,097,152 B (+5.00%)" in visible_text(text)
    assert any("requested_peak" in label and "base 40.00 MiB (run 0001)" in label for label in charts_of(text))


def test_an_accepted_run_is_beside_the_base_before_it(report: Json, history: History) -> None:
    """A run that became the base is not compared with itself."""
    report["modes"] = [with_peak(mode_of(report, "quiet"), 42 * MIB)]
    *earlier, newest = history.runs
    accepted = replace(newest, entries=[replace(entry, accepted=True) for entry in newest.entries])
    text = visible_text(html(page_of(report, History([*earlier, accepted]))))
    assert "quiet | stable | 0 B | 42.00 MiB | - | +2,097,152 B (+5.00%) |" in text


def test_a_gate_with_a_base_of_its_own_is_shown_beside_that(report: Json, history: History) -> None:
    """Where `vram gate --base 8` compared with run 0008, so does the page, and says so."""
    report["modes"] = [with_peak(mode_of(report, "quiet"), 43 * MIB)]
    report["saved"] = {"storage": "x", "run": "0012_made", "base": "8", "criteria": ["peak:9%"], "accepted": False}
    text = visible_text(html(page_of(report, history)))
    assert "saved as run 0012, 2026-01-12 10:00" in text
    assert "peaks beside run 0008: 1 more" in text
    assert "quiet | stable | 0 B | 43.00 MiB | - | +1,048,576 B (+2.38%) |" in text
    report["saved"]["run"] = report["saved"]["base"] = "gone"
    assert "peaks beside the recorded base: 1 more" in visible_text(html(page_of(report, history)))


def test_a_report_that_was_not_saved_is_compared_with_what_was(report: Json, history: History) -> None:
    """Its base is among all runs; without a run of its key there is none, and no column of dashes."""
    report["modes"] = [with_peak(mode_of(report, "quiet"), 41 * MIB)]
    text = visible_text(html(page_of(report, history)))
    assert "quiet | stable | 0 B | 41.00 MiB | - | +1,048,576 B (+2.50%) |" in text
    assert "saved as" not in text
    report["modes"] = [mode_of(report, "quiet") | {"mode": "another"}]
    assert "beside the" not in visible_text(html(page_of(report, history)))


def test_commits_and_the_snapshot_are_links(report: Json, history: History, tmp_path: Path) -> None:
    """Each commit goes to the repository, where that is known; each snapshot, of growth and of timelines, to its file,
    seen from the page."""
    run = run_from_json(report)
    read = Read(html(gathered(run, history, "https://host.org/owner/name"), tmp_path / "reports"))
    links = [link.get("href") or "" for link in read.all("a")]
    assert f"https://host.org/owner/name/commit/{6:040x}" in links
    assert "peak 40.00 MiB -> 42.00 MiB since run 0007 000000000000" in " ".join(read.text.split())
    snapshots = {unquote(link).removeprefix("./") for link in links if link.endswith(".pickle")}
    timelines = [each.timeline_snapshot for each in run.recordings if each.timeline]
    assert len(timelines) > 1
    files = ["vram-snapshots/leaks.pickle", *timelines]
    assert snapshots == {os.path.relpath(file, tmp_path / "reports") for file in files}
    report["modes"] = [mode_of(report, "leaks")]
    report["modes"][0]["explanation"]["snapshot"] = "javascript:alert(1)"
    links = [link.get("href") or "" for link in Read(html(page_of(report))).all("a")]
    assert "./javascript%3Aalert%281%29" in links
    assert not any("commit" in (link.get("href") or "") for link in Read(html(gathered(run, history))).all("a"))


def test_limits_are_lines_and_growth_is_a_staircase(report: Json) -> None:
    """Each recording has one line over all its runs; the chart of a limited channel names its limit."""
    assert sum(len(lap) for lap in mode_of(report, "leaks")["channels"]["requested"]["bytes"]) == 140
    (growth, _) = charts_of(html(page_of(report, None, "leaks")))[:2]
    assert growth.startswith("requested, after each run, 140 samples in 70 laps: ")
    limited = charts_of(html(page_of(report, None, "large")))
    assert any(label.startswith("requested_peak, ") and label.endswith("; limit 1 B") for label in limited)


@pytest.mark.parametrize("count", [60, pytest.param(300, marks=pytest.mark.full)])
def test_hundreds_of_recordings_are_one_page(report: Json, history: History, count: int) -> None:
    """More than are named: the answer is short, the rest folds; a usual report is far below 1.5 MB."""
    assert len(html(page_of(report, history))) < 150_000
    modes = [{**mode_of(report, "leaks"), "mode": f"leak {number} {'n' * 300}"} for number in range(count)]
    text = html(page_of({**report, "modes": modes, "tests": []}))
    assert len(list(Read(text).all("details"))) > 2 * count
    head = text.partition("<main")[0]
    assert head.count("<li>") == count + 2
    assert f"and {count - 12} more" in head
    assert f"and {count - 40} more recordings" in text


def test_a_page_has_a_bounded_number_of_timelines(report: Json) -> None:
    """Those of the first 30 recordings, which need attention before others; of the rest it is said where they are."""
    modes = [{**mode_of(report, "quiet"), "mode": f"quiet {number}"} for number in range(33)]
    text = html(page_of({**report, "modes": modes, "tests": []}))
    assert text.count('<figure class="chart stack"') == 30
    assert text.count("Its timeline is in the JSON report: the page has those of the first 30 recordings.") == 3
    without = html(page_of({**report, "modes": [{**modes[0], "at_peak": None}], "tests": []}))
    assert "Its timeline" not in without
    assert '<figure class="chart stack"' not in without


def test_a_timeline_is_drawn_as_it_was_worked_out(report: Json) -> None:
    """A band for each category, a line for each level, tick and the peak, at their places, with labels for some."""
    mode = mode_of(report, "quiet")
    mode["at_peak"]["timeline"]["ticks"] = ["0 token 0", "1 token 1"]
    timeline = run_from_json({**report, "modes": [mode], "tests": []}).recordings[0].timeline
    assert timeline is not None
    drawn, text = stacked(timeline), html(page_of({**report, "modes": [mode], "tests": []}))
    figure = text[text.index('<figure class="chart stack"') :]
    figure = figure[: figure.index("</figure>")]
    assert len(drawn.bounds) == 2
    assert re.findall(r'class="bound" d="M([\d.]+) 0V100"', figure) == [str(at) for at in drawn.bounds]
    assert re.findall(r'class="level" d="M0 ([\d.]+)H100"', figure) == [str(level.at) for level in drawn.levels]
    assert re.findall(r'class="event" d="M([\d.]+) 0V100"', figure) == [str(drawn.peak.at)]
    assert re.findall(r'class="band tone(\d+)" d="([^"]+)"', figure) == [
        (str(band.tone), band.path) for band in drawn.bands
    ]
    assert re.findall(r'class="tick[^"]*" style="left: ([\d.]+)%">([^<]+)<', figure) == [
        (str(tick.at), tick.text) for tick in drawn.ticks
    ]


def test_the_timeline_of_a_base_is_an_outline(report: Json) -> None:
    """Where the base's entry has one; else it is said, and without a base nothing is."""
    mode = mode_of(report, "quiet")
    before = with_peak(mode, mode["peak_bytes"] + 1024)  # not the saved run that the report is of
    entry = of_summary(recording_from_json(before), report["environment"], "test")
    assert entry.outline
    without = replace(entry, breakdown={**(entry.breakdown or {}), "outline": ""})
    shown = []
    for base in (entry, without):
        runs = [Run("m/0001_x.json", "2026-01-01", "", False, [base])]
        shown.append(visible_text(html(page_of(report, History(runs), "quiet"))))
    shown.append(visible_text(html(page_of(report, None, "quiet"))))
    assert ["base (run 0001), total" in text for text in shown] == [True, False, False]
    assert ["no outline of the base (run 0001) is kept" in text for text in shown] == [False, True, False]


def test_a_history_of_any_kind_is_drawn() -> None:
    """One run; a run that ran out of memory, which is a gap; figures of 0; keys with other channels, or none at all."""
    stable, died = made_entry(mode="a"), made_entry(mode="b", verdict="out of memory", peak=None)
    runs = [
        Run("m/0001_x.json", "2026-01-01", "", False, [stable, made_entry(mode="b", peak=0)]),
        Run("m/0002_x.json", "2026-01-02", "", False, [died]),
        Run("m/0003_x.json", "not a date", "no commit", True, [made_entry(mode="c", peak=None, noisy={"reserved": 7})]),
    ]
    text = visible_text(html(gathered(None, History(runs))))
    assert text.startswith("GPU memory: 3 figures over time; no report of a run")
    for label in ("a, 1 run", "b, 2 runs", "c, 1 run", "b | out of memory"):
        assert label in text, label


def test_keys_that_need_eyes_come_first_and_old_ones_fold() -> None:
    """In the grid: what failed in its newest run, what changed, the others; then, folded, what the last 20 runs did not
    measure, as the keys of an earlier torch."""
    runs = [
        Run(
            f"m/{number:04}_x.json",
            f"2026-01-{number:02}",
            "",
            False,
            [
                made_entry(mode="calm"),
                made_entry(mode="moved", peak=1000 if number < 15 else 2000),
                replace(made_entry(mode="failed"), outcome="grows"),
            ],
        )
        for number in range(1, 26)
    ]
    runs[0] = Run("m/0001_x.json", "2026-01-01", "", False, [made_entry(mode="old"), *runs[0].entries])
    text = html(gathered(None, History(runs)))
    rows = [link.get("href") for link in Read(text).all("a") if (link.get("href") or "").startswith("#key-")]
    names = re.findall(r'<a href="#key-\d+">(\w+)</a></th>', text)
    assert rows == [f"#key-{index}" for index in range(4)]
    assert names == ["failed", "moved", "calm", "old"]
    fold = text.partition("and 1 key that the last 20 runs did not measure")
    assert "old</a></th>" in fold[2]
    assert "calm</a></th>" in fold[0]


def test_a_step_never_reads_like_none() -> None:
    """14.11 GiB -> 14.11 GiB: where two digits would hide a change, it is told to the byte, in Markdown too."""
    runs = [
        Run(f"m/{number:04}_x.json", f"2026-01-{number:02}", "", False, [made_entry(peak)])
        for number, peak in enumerate([14 * 1024 * MIB] * 3 + [14 * 1024 * MIB + 4096] * 3, start=1)
    ]
    page = gathered(None, History(runs))
    change = "peak 15,032,385,536 B -> 15,032,389,632 B since run 0004"
    assert change in visible_text(html(page))
    assert change in markdown(page)


def test_a_session_records_what_the_page_shows(report: Json) -> None:
    """--vram-breakdown names the line that the peak is made of; marks are those of the sample that needs most."""
    mode = mode_of(report, "quiet")
    assert mode["marks"]["token"]["sample"] == mode["at_peak"]["sample"] == 1
    assert [len(lap) for lap in mode["marks"]["token"]["channels"]["requested"]] == [1, 1, 1]
    lines = {line["line"].partition(" ")[2]: line for line in mode["at_peak"]["lines"]}
    assert (lines["answer"]["bytes"], lines["answer"]["op"], lines["answer"]["count"]) == (5 * 1024, "aten.zeros", 1)
    assert sum(line["bytes"] for line in mode["at_peak"]["lines"]) == mode["at_peak"]["bytes"]
    assert mode["at_peak"]["bytes"] <= mode["peak_bytes"] + MIB
    before = next(line for line in mode_of(report, "leaks")["at_peak"]["lines"] if line["line"].startswith("before"))
    assert before["bytes"] >= 4000
