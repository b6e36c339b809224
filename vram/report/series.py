"""The history of one key as a page shows it: its saved runs, its figures, and the runs since which they changed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from vram.history.criteria import GROWTH, PEAK, figures
from vram.history.entries import Entry
from vram.history.keys import Key, name_of, place_of
from vram.history.runs import History, Run, steps_of
from vram.summary import NEEDS_ATTENTION
from vram.text import apart, rate_text, size_text

RECENT = 20  # a key that so many runs did not measure is of an earlier torch, or of a test that is gone


@dataclass(frozen=True)
class SavedRun:
    """One run of a key. `commit` is the whole id, "" where it is not known; `accepted`: it became the recorded base."""

    number: str
    time: str
    commit: str
    dirty: bool
    accepted: bool
    outcome: str

    @property
    def needs_attention(self) -> bool:
        """Whether the run failed."""
        return self.outcome in NEEDS_ATTENTION

    @property
    def date(self) -> str:
        """ "2026-01-07 10:00"."""
        return self.time[:16].replace("T", " ")

    @property
    def commit_text(self) -> str:
        """The beginning of the commit's id, with a plus where files had changed since."""
        return self.commit[:12] + ("+" if self.dirty else "")


@dataclass(frozen=True)
class Step:
    """A figure that changed for good with `run`, the one at `index`."""

    index: int
    figure: str
    before: float
    after: float
    run: SavedRun

    @property
    def text(self) -> str:
        """ "peak 40.00 MiB -> 42.00 MiB since run 0007", to the byte where two digits would read alike. The commit is
        apart, as a page links it."""
        if self.figure == GROWTH:
            before, after = rate_text(self.before), rate_text(self.after)
        else:
            before, after = apart(round(self.before), round(self.after))
        return f"{self.figure} {before} -> {after} since run {self.run.number}"

    @property
    def rose(self) -> bool:
        """Whether there is more of it now."""
        return self.after > self.before

    @property
    def arrow(self) -> str:
        """Up or down."""
        return "\u25b2" if self.rose else "\u25bc"


@dataclass(frozen=True)
class Series:
    """One key's figures over its runs, oldest first; None where a run did not measure one. `current` where one of the
    history's newest runs measured it."""

    key: Key
    runs: Sequence[SavedRun]
    figures: Mapping[str, Sequence[float | None]]
    steps: Mapping[str, Sequence[Step]]
    current: bool = True

    @property
    def rank(self) -> tuple[bool, bool, bool]:
        """Its place among all: failed in its newest run, changed, neither; last what is no longer measured."""
        return not self.current, not self.runs[-1].needs_attention, not self.steps

    @property
    def name(self) -> str:
        """Name of the recording or test."""
        return name_of(self.key)

    @property
    def place(self) -> str:
        """Where it was measured, and on what."""
        return place_of(self.key)

    @property
    def outcome(self) -> str:
        """The newest run's."""
        return self.runs[-1].outcome

    @property
    def changed(self) -> list[str]:
        """Figures to name as changed: peak and growth where they did, else whatever did."""
        return [name for name in self.steps if name in (PEAK, GROWTH)] or list(self.steps)

    @property
    def charted(self) -> list[str]:
        """Figures to draw: the peak, growth where there was some, others that changed with other runs."""
        known = {step.index for name in _TOLD for step in self.steps.get(name, ())}
        grew = any(self.figures.get(GROWTH, ()))
        return [
            name
            for name in self.figures
            if name == PEAK
            or (grew if name == GROWTH else any(step.index not in known for step in self.steps.get(name, ())))
        ]

    @cached_property
    def newest(self) -> dict[str, str]:
        """The newest run's figures as texts."""
        return {figure: figure_text(figure, values[-1]) for figure, values in self.figures.items()}

    def last(self, count: int) -> list[tuple[SavedRun, list[str], list[str]]]:
        """The last runs, newest first: each with its growth and peak as texts, and which figures changed with it."""
        rows = []
        for index in range(len(self.runs) - 1, max(-1, len(self.runs) - 1 - count), -1):
            texts = [figure_text(name, self.figures[name][index]) if name in self.figures else "-" for name in _TOLD]
            notes = [name for name, steps in self.steps.items() if any(step.index == index for step in steps)]
            rows.append((self.runs[index], texts, notes))
        return rows


_TOLD = (GROWTH, PEAK)


def saved_run(run: Run, accepted: bool = False, outcome: str = "") -> SavedRun:
    """A run as a page names it."""
    return SavedRun(run.number, run.time, run.commit, run.dirty, accepted, outcome)


def all_series(history: History) -> list[Series]:
    """Every key's series, those that somebody should look at first."""
    recent = {id(run) for run in history.runs[-RECENT:]}
    return sorted((_series(key, runs, recent) for key, runs in history.by_key.items()), key=lambda series: series.rank)


def _series(key: Key, runs: Sequence[tuple[Run, Entry]], recent: Collection[int]) -> Series:
    """One key's runs as a series; growth and peak first of its figures. `recent` are identities of runs."""
    saved = [saved_run(run, entry.accepted, entry.outcome_text) for run, entry in runs]
    by_run = [figures(entry) for _, entry in runs]
    measured = dict.fromkeys(name for one in by_run for name in one)
    names = [*(name for name in _TOLD if name in measured), *(name for name in measured if name not in _TOLD)]
    return Series(
        key=key,
        runs=saved,
        figures={name: [one.get(name) for one in by_run] for name in names},
        steps={
            name: [Step(step.index, name, step.before, step.after, saved[step.index]) for step in steps]
            for name, steps in steps_of(runs).items()
        },
        current=id(runs[-1][0]) in recent,
    )


def figure_text(figure: str, value: float | None) -> str:
    """A figure in the words of every table."""
    return rate_text(value) if value is None or figure == GROWTH else size_text(round(value))
