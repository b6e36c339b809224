"""What a run of the memory suite amounts to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ci.outcome import outcome
from llava.modes import MODES
from vram.report.json_file import write_report
from vram.summary import Check, Failure, RecordingSummary, RunSummary
from vram.summary.reader import read_run


def report(folder: Path, **verdicts: str | None) -> Path:
    path = folder / "memory.json"
    named = {mode: verdicts.get(mode.replace("-", "_"), "stable") for mode in MODES}
    over = Check("budget", "over", "1 B over", figure_bytes=2, limit_bytes=1, over_bytes=1)
    recordings = [
        RecordingSummary(mode, laps=5, samples=2, verdict="stable", checks=(over,))
        if verdict == "over limit"
        else RecordingSummary(mode, laps=5, samples=2, verdict=verdict)
        for mode, verdict in named.items()
        if verdict != "missing"
    ]
    write_report(path, RunSummary(recordings=recordings))
    return path


@pytest.mark.parametrize(
    ("status", "verdicts", "code"),
    [
        (0, {}, 0),
        (0, {"himap": "plateau"}, 0),
        (0, {"himap": None}, 3),
        (0, {"custom_tome": "missing"}, 3),
        (0, {"himap": "undecided"}, 3),
        (1, {}, 1),
        (1, {"himap": "grows"}, 1),
        (1, {"himap": "undecided"}, 3),
        (1, {"himap": "undecided", "baseline": "grows"}, 1),
        (1, {"baseline": "out of memory"}, 1),
        (1, {"himap": "undecided", "baseline": "over limit"}, 1),
        (2, {}, 130),
        (3, {}, 70),
        (4, {}, 2),
        (5, {}, 70),
    ],
)
def test_exit_code(tmp_path: Path, status: int, verdicts: dict[str, str | None], code: int) -> None:
    """Pytest's exit and the modes' verdicts give the promised code; a mode without a decision is never fine."""
    assert outcome(status, report(tmp_path, **verdicts))[0] == code


def test_a_budget_nobody_recorded_is_named(tmp_path: Path) -> None:
    """Stable and within its budget are two things: the last line claims the second only where there was one."""
    assert "no budget is recorded for baseline, himap" in outcome(0, report(tmp_path))[1]


@pytest.mark.parametrize(("kinds", "code"), [(["NotRecorded"] * 2, 3), (["NotRecorded", "PeakExceeded"], 1)])
def test_what_failed_because_it_is_new_is_no_regression(tmp_path: Path, kinds: list[str], code: int) -> None:
    """In CI a missing budget fails its test: the suite is inconclusive then, unless something else failed too."""
    path = report(tmp_path)
    run = read_run(path)
    write_report(path, replace(run, failures=[Failure("test", "test.py", 1, kind, "why") for kind in kinds]))
    assert outcome(1, path)[0] == code
    write_report(path, replace(run, failures=[Failure("t", "t.py", 1, "NotRecorded", "why")], otherwise=["test"]))
    assert outcome(1, path)[0] == 1


def test_a_run_that_wrote_no_report_is_not_fine(tmp_path: Path) -> None:
    """Nothing measured is inconclusive, not passed."""
    assert outcome(0, tmp_path / "absent.json")[0] == 3
