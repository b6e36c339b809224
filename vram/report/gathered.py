"""A page: one session's summary, and the history of its figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from vram.history.criteria import GROWTH, PEAK
from vram.history.runs import History
from vram.report.base import Bases, bases_of
from vram.report.series import SavedRun, Series, all_series, saved_run
from vram.summary import RunSummary

_MOST_EXPLANATION = 8  # lines that explain one recording


@dataclass(frozen=True)
class Page:
    """Everything that a page shows. `run` is empty where there is no report; `repository` is the web address that
    commits are linked to."""

    run: RunSummary = field(default_factory=RunSummary)
    history: Sequence[Series] = ()
    skipped: Sequence[str] = ()
    bases: Bases = field(default_factory=Bases)
    repository: str = ""

    @property
    def standing(self) -> Literal["failing", "open", "fine", "nothing"]:
        """Whether something needs attention; "nothing" where nothing was measured."""
        measured = self.run.recordings or self.run.tests or self.run.missing
        return self.run.standing if measured else "nothing"

    @property
    def headline(self) -> str:
        """The page's first line."""
        if self.standing == "nothing":
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
                *(f"  {line}" for line in one.why_lines[:_MOST_EXPLANATION]),
            )
        ]
        for test in self.run.failed_tests:
            if test.cause_lines:
                lines += [f"{test.test}: {test.outcome_text}"]
                lines += [f"  {line}" for line in test.cause_lines[:_MOST_EXPLANATION]]
        return [*lines, *self.run.missing]

    @property
    def saved_head(self) -> SavedRun | None:
        """The saved run that the report is of."""
        return None if self.bases.head is None else saved_run(self.bases.head)

    @property
    def figure_names(self) -> list[str]:
        """Every figure of any key, in one order: the columns of the grid."""
        return list(dict.fromkeys(name for series in self.history for name in series.figures))

    @property
    def base_text(self) -> str:
        """How the peaks stand to their base: "peaks beside the recorded base: 3 the same, 1 more"; "" without any.

        Whether more is too much is for the gate to say, by its criteria, and is one of the reasons where it is.
        """
        judged = [*self.bases.recordings, *self.bases.tests]
        known = [change for one in judged if one for change in one.changes if change.figure == PEAK]
        moved = [change.head - change.base for change in known if change.head is not None and change.base is not None]
        counts = {
            "more": sum(more > 0 for more in moved),
            "less": sum(more < 0 for more in moved),
            "the same": moved.count(0),
            "without one": len(judged) - len(moved),
        }
        words = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
        return f"peaks beside {self.bases.name}: {words}" if moved else ""

    @property
    def changes(self) -> list[str]:
        """Peaks that fail nothing and differ from their base, two lines each; the last change of each peak and growth
        over the runs, a line each."""
        unsettled = {id(one) for one in self.run.unsettled}
        beside = zip(self.run.recordings, self.bases.recordings, strict=False)
        moved = [judged for one, judged in beside if judged is not None and id(one) not in unsettled]
        return [line for one in moved if one.difference for line in one.difference_lines[:2]] + [
            f"{series.name}: {steps[-1].text} {steps[-1].run.commit_text}".rstrip()
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


def gathered(run: RunSummary | None, history: History, repository: str = "") -> Page:
    """The page of a session (None: there is no report) and a history, which may be empty."""
    run = run or RunSummary()
    return Page(
        run=run,
        history=all_series(history),
        skipped=history.skipped,
        bases=bases_of(run, history),
        repository=repository,
    )
