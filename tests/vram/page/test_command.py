"""`vram report` as a command: what it takes, writes and exits with."""

from __future__ import annotations

import argparse
import importlib.util
import re
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from tests.vram.history.made import entry, write_runs
from tests.vram.page.made import HOSTILE, hostile, leaky, mode, report, written
from vram.page import command

Report = Callable[..., tuple[int, str]]


@pytest.fixture
def vram_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Report:
    """Runs the command in `tmp_path`; exit code and text. A refusal is a ValueError: `vram` exits 2."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str]:
        parser = argparse.ArgumentParser()
        command.add_report(parser)
        return command.report(parser.parse_args(arguments))

    return run


@pytest.fixture
def without_plotly(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec

    def found(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == "plotly" else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", found)
    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.setitem(sys.modules, "plotly.offline", None)


def test_without_arguments_it_takes_and_writes_the_usual_files(vram_report: Report, tmp_path: Path) -> None:
    """reports/memory.json and .benchmarks in, reports/memory.html out."""
    (tmp_path / "reports").mkdir()
    written(tmp_path / "reports/memory.json", report(leaky()))
    write_runs(tmp_path / ".benchmarks", [entry(1000)])
    code, text = vram_report()
    assert (code, text.startswith("page: reports/memory.html (")) == (0, True)
    page = (tmp_path / "reports/memory.html").read_text()
    assert "leaky" in page
    assert "1 saved run of 1 key" in page


def test_either_source_may_be_absent(vram_report: Report, tmp_path: Path) -> None:
    """A report alone, a history alone; with neither it exits 3, with the reason, and writes nothing."""
    assert vram_report()[0] == 3
    assert vram_report()[1].startswith("nothing to report: no reports/memory.json")
    assert not (tmp_path / "reports").exists()
    written(tmp_path / "r.json", report(mode()))
    assert vram_report("--report", "r.json", "--markdown", "-")[1].startswith("### ✅ GPU memory: no growth")
    uri = write_runs(tmp_path / "s", [entry(1000)])
    assert "1 saved run" in vram_report("--storage", uri, "--markdown", "-")[1]


def test_what_was_named_must_be_there(vram_report: Report) -> None:
    """A report that was asked for and is missing is an error, not a page without it."""
    with pytest.raises(ValueError, match=r"r\.json can't be read: No such file"):
        vram_report("--report", "r.json")


def test_markdown_alone_needs_no_plotly(vram_report: Report, tmp_path: Path, without_plotly: None) -> None:
    """The page is refused in one line that names the extra, and nothing is written."""
    written(tmp_path / "r.json", report(mode()))
    assert vram_report("--report", "r.json", "--markdown", "m.md") == (0, "Markdown: m.md")
    for asked in ((), ("--output", "x.html"), ("--output", "x.html", "--markdown", "n.md")):
        with pytest.raises(ValueError, match=r"pip install 'himap-vram\[report\]'"):
            vram_report("--report", "r.json", *asked)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.md", "r.json"]


def test_a_folder_that_can_not_be_written_is_one_line(vram_report: Report, tmp_path: Path) -> None:
    """Named, and without a traceback; what was there stays."""
    written(tmp_path / "r.json", report(mode()))
    (tmp_path / "file").write_text("mine")
    for where in ("file/m.md", "file/deeper/m.md"):
        with pytest.raises(ValueError, match=f"{where} can't be written: ") as error:
            vram_report("--report", "r.json", "--markdown", where)
        assert "\n" not in str(error.value)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where writing fails half-way the old page is there, and no half of a new one."""
    path = tmp_path / "page.html"
    command.write(path, "old")

    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ValueError, match=r"page\.html can't be written: No space left on device"):
        command.write(path, "the new page")
    assert [one.name for one in tmp_path.iterdir()] == ["page.html"]
    assert path.read_text() == "old"


@pytest.mark.parametrize(
    "same", [("--output", "r.json"), ("--markdown", "./r.json"), ("--output", "a", "--markdown", "a")]
)
def test_nothing_is_written_over_what_is_read(vram_report: Report, tmp_path: Path, same: tuple[str, ...]) -> None:
    """The report is never overwritten by its page."""
    before = written(tmp_path / "r.json", report(mode())).read_text()
    with pytest.raises(ValueError, match="must be different files"):
        vram_report("--report", "r.json", *same)
    assert (tmp_path / "r.json").read_text() == before


def test_runs_that_can_not_be_read_are_told_on_the_page(
    vram_report: Report, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are named on stderr and on the page, and the others are shown."""
    uri = write_runs(tmp_path / "s", [entry(1000)])
    next((tmp_path / "s").iterdir()).joinpath("0002_broken.json").write_text("{")
    assert vram_report("--storage", uri, "--output", "p.html")[0] == 0
    assert "0002_broken.json" in capsys.readouterr().err
    assert "0002_broken.json" in (tmp_path / "p.html").read_text()


def test_the_page_is_one_file_that_names_no_other(vram_report: Report, tmp_path: Path) -> None:
    """No link, script, image or style of elsewhere; a policy that allows none; hostile names add no element."""
    counts = []
    for at in range(len(HOSTILE)):
        written(tmp_path / "r.json", report(hostile(at)))
        vram_report("--report", "r.json", "--output", "p.html")
        page = (tmp_path / "p.html").read_text()
        assert "default-src &#x27;none&#x27;; script-src &#x27;sha256-" in page
        own = page.partition("<script>")[0]
        assert not re.search(r"<(img|link|iframe|object)|<script[^>]* src=|@import|url\(|href=\"(?!#)", own)
        counts.append(tuple(page.count(word) for word in ("<script", "</script", "<!--", "<b>", "<img")))
    assert len(set(counts)) == 1
