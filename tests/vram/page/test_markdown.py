"""The comment on a pull request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.vram.history.made import entry, write_runs
from tests.vram.page.made import HOSTILE, hostile, leaky, marked, mode, report, written
from tests.vram.page.test_text import code_spans
from vram.history import store
from vram.page.gathering import Page, read_report, saved_runs
from vram.page.markdown import markdown


def told(tmp_path: Path, *modes: dict[str, Any], **more: Any) -> str:
    return markdown(Page(read_report(written(tmp_path / "r.json", report(*modes, **more))), []))


def test_the_verdict_is_the_first_line(tmp_path: Path) -> None:
    """Which mode, and what is wrong with it; or that all is well."""
    assert told(tmp_path, mode(), leaky()).splitlines()[0] == "### ❌ GPU memory: `leaky` grows"
    assert "no growth in 1 judged mode" in told(tmp_path, mode()).splitlines()[0]
    assert "1 marked test over" in told(tmp_path, mode(), tests=[marked(peak=201)]).splitlines()[0]
    assert told(tmp_path, mode(verdict=None)).startswith("### ❔ GPU memory: no decision for 1 of 1 mode")


def test_growth_is_explained_by_line(tmp_path: Path) -> None:
    """Bytes a sample, the line, the operation and the holder, as the failing test says them."""
    text = told(tmp_path, leaky())
    assert "64 B a sample: `model.py:7 answer: aten.ones float32 [16]`, held by `` list `kept` ``" in text
    assert "since sample 1 of lap 1" in text


@pytest.mark.parametrize("modes", [0, 1, 16, 17, 100])
@pytest.mark.parametrize("tests", [0, 100])
def test_it_has_at_most_60_lines(tmp_path: Path, modes: int, tests: int) -> None:
    """However much failed, stepped or is absent; what is cut is counted."""
    many = [hostile(at % len(HOSTILE)) | {"mode": f"m{at}", "absent": {f"f{at}": f"why {at}"}} for at in range(modes)]
    failed = [marked(f"tests/t.py::t{at}", peak=300) for at in range(tests)]
    steps = [[entry(peak, mode=f"k{key}") for key in range(50)] for peak in (1, 1, 1, 5000)]
    saved = saved_runs(store.read(write_runs(tmp_path, *steps)))
    path = written(tmp_path / "r.json", report(*many, tests=failed))
    lines = markdown(Page(read_report(path), saved, ["skipped one"] * 50)).splitlines()
    assert len(lines) <= 60
    assert all(len(line) < 1200 for line in lines)
    assert any("44 more steps" in line for line in lines)
    if modes == 100:
        assert any("84 more modes" in line for line in lines)
        assert any("97 more modes" in line for line in lines)
    if tests:
        assert any("95 more marked tests" in line for line in lines)


@pytest.mark.parametrize("index", range(len(HOSTILE)))
def test_hostile_text_stands_in_code_spans(tmp_path: Path, index: int) -> None:
    """Outside of code spans there is no HTML, mention, issue number, link or cell of theirs."""
    text = told(tmp_path, hostile(index), tests=[marked(HOSTILE[index], peak=300)])
    text.encode("utf-8")
    lines = text.splitlines()
    left = [code_spans(line.replace("\\|", "")) for line in lines]
    for mark in ("@", "<", ">", "http", "#1", "](", "hacked"):
        assert not any(mark in line for line in left), mark
    table = [line for line in lines if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in table} == {7}
    assert "hacked" not in "".join(left)


def test_only_saved_runs_are_told_too(tmp_path: Path) -> None:
    """Without a report: how many runs, and what the newest stepped in."""
    uri = write_runs(tmp_path, *([entry(peak)] for peak in (1000, 1000, 1000, 2000)))
    text = markdown(Page(None, saved_runs(store.read(uri))))
    assert "a figure stepped in the newest run of 1 key: `himap`" in text
    assert "**newest run**, `peak, " in text or "**newest run**, `peak: " in text
    assert "4 saved runs of 1 key" in text
