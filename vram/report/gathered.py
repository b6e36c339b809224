"""A page: one session's summary, and the history of its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vram.history.criteria import GROWTH, PEAK, figures
from vram.history.keys import Key, name_of, place_of
from vram.history.runs import History, steps_of
from vram.summary import RunSummary
from vram.text import rate_text, size_text

_MOST_EXPLANATION = 8  # lines that explain one recording


@dataclass(frozen=True)
class Series:
    """One key's figures over its runs, oldest first, and the newest run's outcome. `runs` has number, date, commit and
    whether it was accepted; `figures` one number a run, None where it was not measured; `steps` the indices where a
    figure changed for good."""

    name: str
    place: str
    outcome: str
    runs: Sequence[tuple[str, str, str, bool]]
    figures: Mapping[str, Sequence[float | None]]
    steps: Mapping[str, Sequence[tuple[int, float, float]]]

    @property
    def changed(self) -> list[str]:
        """Figures to name as changed: peak and growth where they did, else whatever did."""
        return [name for name in self.steps if name in (PEAK, GROWTH)] or list(self.steps)

    @property
    def choices(self) -> list[str]:
        """All figures: those that changed, the peak, the others."""
        return list(dict.fromkeys([*self.changed, *(name for name in self.figures if name == PEAK), *self.figures]))

    @property
    def changes(self) -> list[str]:
        """One line a change of a figure."""
        return [self.change_text(figure, step) for figure, steps in self.steps.items() for step in steps]

    def change_text(self, figure: str, step: tuple[int, float, float]) -> str:
        """ "peak 40.00 MiB -> 42.00 MiB since run 0007 a1b2c3"."""
        index, before, after = step
        number, _, commit, _ = self.runs[index]
        return f"{figure} {_text(figure, before)} -> {_text(figure, after)} since run {number} {commit}".rstrip()

    @property
    def newest(self) -> dict[str, str]:
        """The newest run's figures as texts."""
        return {figure: _text(figure, values[-1]) for figure, values in self.figures.items()}


@dataclass(frozen=True)
class Page:
    """Everything that a page shows. `run` is empty where there is no report."""

    run: RunSummary = field(default_factory=RunSummary)
    history: Sequence[Series] = ()
    skipped: Sequence[str] = ()

    @property
    def headline(self) -> str:
        """The page's first line."""
        if not self.run.recordings and not self.run.tests and not self.run.missing:
            return f"{len(self.history)} figures over time; no report of a run"
        return self.run.headline

    @property
    def environment_text(self) -> str:
        """Source of the figures, device and versions in one line."""
        return ", ".join(f"{name} {value}" for name, value in self.run.environment.items() if value is not None)

    @property
    def explained(self) -> list[str]:
        """Reasons of what needs attention or has no decision, each with the first lines that explain it."""
        lines = [
            line
            for one in self.run.unsettled
            for line in (
                *one.reasons,
                *(f"  {line}" for line in (*one.explanation_lines, *one.peak_lines)[:_MOST_EXPLANATION]),
            )
        ]
        return [*lines, *self.run.missing]

    @property
    def changes(self) -> list[str]:
        """The last change of each peak and growth over the runs, a line each."""
        return [
            f"{series.name}: {series.change_text(figure, steps[-1])}"
            for series in self.history
            for figure, steps in series.steps.items()
            if figure in (PEAK, GROWTH)
        ]

    @property
    def not_measured(self) -> list[str]:
        """Figures that are absent and why, and breakdowns that were not made."""
        lines = self.run.absences
        without = [one for one in self.run.recordings if not one.at_peak]
        if without:
            which = (
                ""
                if len(without) == len(self.run.recordings)
                else f" for {len(without)} of {len(self.run.recordings)} recordings"
            )
            lines.append(f"peaks by line were not recorded{which}: run pytest with --vram-breakdown")
        return lines


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
        outcome=runs[-1][1].outcome_text,
        runs=[
            (run.number, run.time[:16].replace("T", " "), run.commit[:12] + ("+" if run.dirty else ""), entry.accepted)
            for run, entry in runs
        ],
        figures={name: [one.get(name) for one in by_run] for name in names},
        steps={
            name: [(step.index, step.before, step.after) for step in steps] for name, steps in steps_of(runs).items()
        },
    )


def _text(figure: str, value: float | None) -> str:
    if value is None or figure == GROWTH:
        return rate_text(value)
    return size_text(round(value))
