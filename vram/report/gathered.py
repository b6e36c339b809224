"""A page: one session's summary, and the history of its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from vram.history.criteria import figures
from vram.history.keys import Key, name_of, place_of
from vram.history.runs import History, steps_of
from vram.summary import NEEDS_ATTENTION, RunSummary


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
    """Everything that a page shows. `run` is empty where there is no report."""

    run: RunSummary = field(default_factory=RunSummary)
    history: Sequence[Series] = ()
    skipped: Sequence[str] = ()

    @property
    def headline(self) -> str:
        """The page's first line."""
        if not self.run.recordings and not self.run.tests:
            return f"{len(self.history)} figures over time; no report of a run"
        return self.run.headline

    @property
    def not_measured(self) -> list[str]:
        """Figures that are absent and why, and breakdowns that were not made."""
        lines = self.run.absences
        without = [one for one in self.run.recordings if not one.at_peak]
        if without:
            which = "" if len(without) == len(self.run.recordings) else f" of {len(without)} recordings"
            lines.append(f"what peaks{which} are made of was not recorded: run pytest with --vram-breakdown")
        return lines

    # For templates that still read dictionaries.

    @property
    def verdict(self) -> str:
        """The headline."""
        return self.headline

    @property
    def environment(self) -> Mapping[str, Any]:
        """The run's environment."""
        return self.run.environment

    @cached_property
    def modes(self) -> list[dict[str, Any]]:
        """The recordings as dictionaries."""
        return [
            one.to_json() | {"why": one.explanation_lines, "over": one.over_limit_bytes} for one in self.run.recordings
        ]

    @cached_property
    def tests(self) -> list[dict[str, Any]]:
        """The marked tests as dictionaries."""
        return [test.to_json() | {"text": test.outcome_text} for test in self.run.tests]

    @property
    def failing(self) -> list[dict[str, Any]]:
        """Recordings that need attention."""
        return list(filter(is_failing, self.modes))

    @property
    def failed_tests(self) -> list[dict[str, Any]]:
        """Marked tests that need attention."""
        return [test for test in self.tests if test["outcome"] in NEEDS_ATTENTION]

    @property
    def ratios(self) -> list[str]:
        """Ratios in words."""
        return [ratio.text for one in self.run.recordings for ratio in one.ratios]


def is_failing(mode: Mapping[str, Any]) -> bool:
    """Whether it needs attention."""
    return mode["outcome"] in NEEDS_ATTENTION


def why(mode: Mapping[str, Any]) -> list[str]:
    """Lines that explain it."""
    return list(mode["why"])


def over_bytes(mode: Mapping[str, Any]) -> int:
    """Bytes over its limit."""
    return int(mode["over"])


def gathered(run: RunSummary | None, history: History) -> Page:
    """The page of a session (None: there is no report) and a history, which may be empty."""
    return Page(
        run=run or RunSummary(),
        history=[_series(key, history) for key in history.by_key],
        skipped=history.skipped,
    )


def _series(key: Key, history: History) -> Series:
    runs = history.by_key[key]
    by_run = [figures(entry) for _, entry in runs]
    names = list(dict.fromkeys(name for one in by_run for name in one))
    return Series(
        name=name_of(key),
        place=place_of(key),
        runs=[
            (run.number, run.time[:16].replace("T", " "), run.commit[:12] + ("+" if run.dirty else ""), entry.accepted)
            for run, entry in runs
        ],
        figures={name: [one.get(name) for one in by_run] for name in names},
        steps={
            name: [(step.index, step.before, step.after) for step in steps] for name, steps in steps_of(runs).items()
        },
    )
