"""No surface fails on another's gap, on a name or on a figure; whatever can be read and written is."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unicodedata import category

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.vram.history.made import entry, write_runs
from tests.vram.report.damage import HOSTILE_NAMES, damaged, unprintable
from vram.cli import main
from vram.escaping import shown
from vram.history.runs import History
from vram.report.gathered import gathered
from vram.report.github import error_commands, job_summary
from vram.report.json_file import write_report
from vram.report.junit import properties
from vram.report.markdown import markdown
from vram.report.page import html
from vram.report.terminal import run_lines
from vram.summary import RecordingSummary, RunSummary
from vram.summary.reader import read_run

Json = dict[str, Any]
_fuzz = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(st.text())
def test_what_is_shown_is_one_line_that_nothing_obeys(text: str) -> None:
    """Printable, no command, and shown twice it is the same; text without anything of the kind stays as it is."""
    once = shown(text)
    assert unprintable(once) == []
    assert shown(once) == once
    if text.isprintable() and ":" not in text and "#" not in text:
        assert once == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\nb\x1b[1m", "a\\nb\\x1b[1m"),
        ("::error::x", "\\x3a:error::x"),
        ("  ::error::x", "  \\x3a:error::x"),
        ("test_a.py::test_b[##1]", "test_a.py::test_b[##1]"),
        ("a ##[error]b", "a \\x23#[error]b"),
        ("\ud800", "\\ud800"),
        ("é ü 漢", "é ü 漢"),
    ],
)
def test_how_names_are_shown(text: str, expected: str) -> None:
    """As Python escapes them; test ids and letters of any language are as they are."""
    assert shown(text) == expected


def all_surfaces(run: RunSummary) -> None:
    """Everything that is made of a run: lines of printable text, and a page."""
    page = gathered(run, History(()))
    commands = error_commands(run.failures, Path("/src"), Path("/src"), run.missing)
    assert all(line.startswith("::error ") and line.isprintable() for line in commands)
    for text in (*run_lines(run), markdown(page), job_summary(run)):
        assert unprintable(text) == []
    assert all(map(str.isprintable, properties(run.recordings, None)))
    assert [letter for letter in html(page) if category(letter) in ("Cc", "Cf", "Cs") and letter != "\n"] == []


def test_a_report_with_one_value_wrong(report: Json, tmp_path: Path) -> None:
    """It is refused in one line that names the field, or every surface of it can be made."""
    path = tmp_path / "memory.json"

    @given(damaged(report))
    @_fuzz
    def holds(data: Any) -> None:
        path.write_text(json.dumps(data))
        refused = ""
        try:
            run = read_run(path)
        except ValueError as error:
            refused = str(error)
        if refused:
            assert str(path) in refused
            return
        all_surfaces(run)

    holds()


def test_hostile_names_on_every_surface(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Recordings that grow, are over a limit, skipped or over a ratio, and are called anything: one real run, its
    annotations, JUnit report, job summary, JSON, page, history and comparison are text that can be read."""
    suite = f"NAMES = {list(HOSTILE_NAMES)!a}\n"
    suite += """
import pytest, torch, vram as plugin
KEPT = []
def step(n):
    plugin.mark(NAMES[2])
    torch.zeros(n)
def record(vram, name, step=step): return vram.replay(step, [1], name=name, laps=3)
@pytest.mark.parametrize("at", range(len(NAMES)))
def test_limit(vram, at): vram.assert_peak(record(vram, NAMES[at]), 1)
def test_unread(vram): vram.assert_peak(record(vram, NAMES[0]), "1 GiB", "reserved")
def test_ratio(vram):
    vram.assert_ratio(record(vram, NAMES[4], lambda n: torch.zeros(10**6)), record(vram, NAMES[1]), at_most=1.1)
def test_growth(vram): vram.assert_stable(record(vram, NAMES[0], lambda n: KEPT.append(torch.zeros(9))))
def test_budget(vram): vram.assert_peak(record(vram, NAMES[3]), vram.budget("b.toml", mode=NAMES[0]))
"""
    pytester.makepyfile(test_suite=suite)
    pytester.makeconftest("def pytest_benchmark_generate_machine_info(): return {}")
    pytester.makeini("[pytest]\naddopts = -p no:asyncio -p no:xdist -ra\n")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(pytester.path / "summary.md"))
    files = ("--vram-report=r.json", "--junit-xml=j.xml", "--benchmark-save=x", "--benchmark-quiet", "--vram-compare")
    result = pytester.runpytest("--vram-device=cpu", "--vram-new=fail", *files)
    count = len(HOSTILE_NAMES)
    result.assert_outcomes(failed=count + 3, skipped=1)
    commands = [line for line in result.outlines if line.startswith("::")]
    assert len(commands) == 10
    assert all(line.startswith("::error file=test_suite.py,line=") for line in commands)
    assert unprintable("\n".join(line for line in result.outlines if line not in commands)) == []

    names = [str(one.get("name")) for one in ElementTree.parse(pytester.path / "j.xml").iter("property")]  # noqa: S314
    assert any(name.startswith("vram.\\x1b[31mred") for name in names)
    assert all(map(str.isprintable, names))
    assert unprintable((pytester.path / "summary.md").read_text()) == []
    assert {mode["mode"] for mode in json.loads((pytester.path / "r.json").read_text())["modes"]} == {*HOSTILE_NAMES}

    all_surfaces(read_run(pytester.path / "r.json"))
    capsys.readouterr()
    for command in (("history",), ("compare",), ("report", "--report", "r.json", "--markdown", "-")):
        assert main(command) in (0, 3)
        out, err = capsys.readouterr()
        assert (unprintable(out), err) == ([], "")


def test_figures_that_are_no_numbers_are_null_in_json(tmp_path: Path) -> None:
    """A report is always JSON, which has no NaN: what can't be said is null, and the report is read back."""
    notes = {"nothing": float("nan"), "everything": float("inf"), "half": 0.5}
    write_report(tmp_path / "r.json", RunSummary({"source": "CPU"}, [RecordingSummary("a", laps=1, notes=notes)]))
    (one,) = read_run(tmp_path / "r.json").recordings
    assert one.notes == {"softmax_peak_bytes": None, "nothing": None, "everything": None, "half": 0.5}


def _bad_report(folder: Path) -> None:
    (folder / "r.json").write_text("{")


def _no_place_for_the_page(folder: Path) -> None:
    (folder / "p.html").mkdir()


def _no_place_for_the_markdown(folder: Path) -> None:
    (folder / "m.md").mkdir()


@pytest.mark.parametrize(
    ("spoil", "written"),
    [
        (_bad_report, ["m.md", "p.html"]),
        (_no_place_for_the_page, ["m.md"]),
        (_no_place_for_the_markdown, ["p.html"]),
    ],
)
def test_what_can_be_written_is(
    report: Json,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path], None],
    written: list[str],
) -> None:
    """Page and Markdown each for itself, of the sources that can be read; the exit code is 2 and says what was not."""
    pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.json").write_text(json.dumps(report))
    write_runs(tmp_path / ".benchmarks", [entry()])
    spoil(tmp_path)
    assert main(["report", "--report", "r.json", "--output", "p.html", "--markdown", "m.md"]) == 2
    out, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert sorted(out.replace("written: ", "").split()) == written
    assert sorted(path.name for path in tmp_path.glob("*.[hm]*") if path.is_file()) == written
    if spoil is _bad_report:
        assert "not read: a report must be JSON" in (tmp_path / "p.html").read_text()


def test_a_fault_of_ours_on_one_surface_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The Markdown is written although the page can't be made, and the exit code says whose fault it is."""
    pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed")
    monkeypatch.chdir(tmp_path)
    write_runs(tmp_path / ".benchmarks", [entry()])

    def fails(*_: object) -> str:
        raise LookupError("no such thing")

    monkeypatch.setattr("vram.report.page.html", fails)
    assert main(["report", "--output", "p.html", "--markdown", "m.md"]) == 70
    assert "LookupError: no such thing" in capsys.readouterr().err
    assert [path.name for path in tmp_path.glob("*.*") if path.is_file()] == ["m.md"]


def test_files_of_a_session_are_written_each_for_itself(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A report that can't be made is a line; the job summary is there, and the tests are judged."""
    pytester.makepyfile(
        "import torch\ndef test_it(vram): vram.replay(lambda n: torch.zeros(n), [1], laps=1, name='it')"
    )
    pytester.makeini("[pytest]\naddopts = -p no:asyncio -p no:xdist\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(pytester.path / "summary.md"))

    def fails(*_: object) -> None:
        raise LookupError("no such thing")

    monkeypatch.setattr("vram.report.json_file.write_report", fails)
    result = pytester.runpytest("--vram-device=cpu", "--vram-report=r.json")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["report not written: no such thing"])
    assert "| it | peaks alone |" in (pytester.path / "summary.md").read_text()
