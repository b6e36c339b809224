"""What a page tells: a session's report, and the history of its figures. Reading at the edge, the rest arithmetic."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vram.history.commands import steps_of
from vram.history.criteria import figures
from vram.history.keys import Key, name_of, place_of
from vram.history.runs import History
from vram.report import SCHEMA, absences, outcome, ratios

FAILING = ("grows", "out of memory", "undecided")
_LISTS = ("modes", "tests")
_OF_A_MODE = ("mode", "laps", "samples", "verdict", "reason", "bytes_per_sample", "peak_bytes", "channels", "absent")


@dataclass(frozen=True)
class Series:
    """One key's figures over its runs, oldest first. `runs` has number, date, commit and whether it was accepted;
    `figures` one number a run, None where it was not measured; `steps` the indices where a figure changed for good."""

    name: str
    place: str
    runs: Sequence[tuple[str, str, str, bool]]
    figures: Mapping[str, Sequence[float | None]]
    steps: Mapping[str, Sequence[tuple[int, float, float]]]


@dataclass(frozen=True)
class Page:
    """Everything that is told. `environment`, `modes` and `tests` are the report's; empty where there is none."""

    environment: Mapping[str, Any] = field(default_factory=dict)
    modes: Sequence[Mapping[str, Any]] = ()
    tests: Sequence[Mapping[str, Any]] = ()
    history: Sequence[Series] = ()
    skipped: Sequence[str] = ()

    @property
    def failing(self) -> list[Mapping[str, Any]]:
        """Recordings that grow, ran out of memory, are undecided, or need more than their budget."""
        return [mode for mode in self.modes if mode["verdict"] in FAILING or over_bytes(mode) > 0]

    @property
    def failed_tests(self) -> list[Mapping[str, Any]]:
        """Marked tests over their limits."""
        return [test for test in self.tests if outcome(test) != "passed"]

    @property
    def verdict(self) -> str:
        """The page's first line."""
        wrong = len(self.failing) + len(self.failed_tests)
        judged = [mode for mode in self.modes if mode["verdict"] is not None or mode["laps"] == 1]
        if wrong:
            return f"{wrong} of {len(self.modes) + len(self.tests)} need attention"
        if len(judged) < len(self.modes):
            return f"inconclusive: no decision on {len(self.modes) - len(judged)} of {len(self.modes)}"
        if not self.modes and not self.tests:
            return f"{len(self.history)} figures over time; no report of a run"
        return "memory is stable, and every limit that was given holds"

    @property
    def not_measured(self) -> list[str]:
        """What is absent and why, and what was not recorded."""
        lines = absences(self.modes)
        if self.modes and not any(mode.get("at_peak") for mode in self.modes):
            lines.append("what peaks are made of was not recorded: run pytest with --vram-breakdown")
        return lines

    @property
    def ratios(self) -> list[str]:
        """How much recordings need of their references."""
        return ratios(self.modes)


def over_bytes(mode: Mapping[str, Any]) -> int:
    """How much a recording needs beyond its budget; 0 or less where it holds, or where it has none."""
    if mode.get("budget_bytes") is None or mode["peak_bytes"] is None:
        return 0
    return int(mode["peak_bytes"] - mode.get("besides_bytes", 0) - mode["budget_bytes"])


def read_report(path: Path) -> dict[str, Any]:
    """The JSON of `--vram-report`. Raises ValueError, naming the file, for anything else."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"a report must be JSON that --vram-report wrote, got {path}: {reason}") from None
    schema = report.get("schema") if isinstance(report, dict) else None
    if schema != SCHEMA:
        raise ValueError(f"a report must be of schema {SCHEMA}, got {schema!r} in {path}")
    modes = report.get("modes")
    known = isinstance(report.get("environment"), dict) and all(isinstance(report.get(name), list) for name in _LISTS)
    if not known or not all(isinstance(mode, dict) and all(name in mode for name in _OF_A_MODE) for mode in modes):
        raise ValueError(f"a report must have environment, modes and tests as --vram-report writes them, got {path}")
    return dict(report)


def gathered(report: Mapping[str, Any] | None, history: History) -> Page:
    """The page of a report (None: there is none) and a history, which may be empty."""
    told = report or {}
    return Page(
        environment=told.get("environment", {}),
        modes=told.get("modes", ()),
        tests=told.get("tests", ()),
        history=[_series(key, history) for key in history.by_key],
        skipped=history.skipped,
    )


def _series(key: Key, history: History) -> Series:
    runs = history.by_key[key]
    told = [figures(entry) for _, entry in runs]
    names = list(dict.fromkeys(name for one in told for name in one))
    return Series(
        name=name_of(key),
        place=place_of(key),
        runs=[
            (run.number, run.time[:16].replace("T", " "), run.commit[:12] + ("+" if run.dirty else ""), entry.accepted)
            for run, entry in runs
        ],
        figures={name: [one.get(name) for one in told] for name in names},
        steps={
            name: [(step.index, step.before, step.after) for step in found] for name, found in steps_of(runs).items()
        },
    )
