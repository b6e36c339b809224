"""The history as the pytest plugin needs it, without pytest: gather entries, compare tests with their base."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from vram.errors import Inconclusive, NotRecorded
from vram.escaping import shown
from vram.history import store
from vram.history.compare import Judged, Located, judge
from vram.history.criteria import Criterion, parse
from vram.history.entries import Entry, accept, merged, of_marked, of_summary
from vram.history.keys import Key
from vram.history.runs import RECORDED, History, missing
from vram.summary import MarkedSummary, RecordingSummary

ACCEPT = "record it with --benchmark-autosave --vram-accept"


class MemoryRegression(AssertionError):
    """A test needs more than its base in the history, by more than it is allowed."""


class Gatherer:
    """Turns the recordings of one process into entries, by the tests that made them."""

    def __init__(self) -> None:
        self._summaries: Sequence[RecordingSummary] = ()
        self._retried: Collection[int] = ()
        self._seen = 0
        self._steps: Counter[tuple[str, str]] = Counter()
        self._made: dict[str, list[tuple[int, int]]] = {}  # by test: index of the summary, and which of its name it is

    def begin(self, test: str) -> None:
        """A test begins, perhaps anew: its recordings are numbered from one again."""
        for step in [step for step in self._steps if step[0] == test]:
            del self._steps[step]

    def gather(self, test: str, summaries: Sequence[RecordingSummary], retried: Collection[int] = ()) -> None:
        """`test` made the recordings of the session's `summaries` that were not there at the last call. Those of
        `retried`, by index, were made anew by a later try, and count no more."""
        self._summaries, self._retried = summaries, retried
        for index in range(self._seen, len(summaries)):
            step = test, summaries[index].name
            self._steps[step] += 1
            self._made.setdefault(test, []).append((index, self._steps[step]))
        self._seen = len(summaries)

    def has(self, test: str) -> bool:
        """True where `test` made any recording."""
        return test in self._made

    def by_index(self, test: str, environment: Mapping[str, object]) -> dict[int, Entry]:
        """The entry of each recording that `test` made so far, of several tries in the last, by its summary's index."""
        return {
            index: of_summary(self._summaries[index], environment, test, occurrence=number)
            for index, number in self._made.get(test, ())
            if index not in self._retried
        }

    def entries(
        self,
        test: str,
        environment: Mapping[str, object],
        marked: tuple[MarkedSummary, Mapping[str, object]] | None = None,
        *,
        accepted: bool = False,
    ) -> list[Entry]:
        """Everything that `test` measured so far. `marked`: its own figures, and their environment."""
        made = list(self.by_index(test, environment).values())
        if marked is not None:
            made.append(of_marked(*marked))
        return [accept(entry) for entry in merged(made)] if accepted else merged(made)


@dataclass(frozen=True)
class Finding:
    """One key beside its base: over it, without one, or not comparable; a text for each figure. `lines` say what the
    peak has more."""

    key: Key
    name: str
    status: Literal["over", "new", "inconclusive"]
    texts: Sequence[str]
    lines: Sequence[str] = ()


class Gate:
    """Compares tests with the history, which is read once.

    `base` names a run, or is "recorded". Raises ValueError for criteria that can't be read.
    """

    def __init__(self, uri: str | None = None, base: str = RECORDED, criteria: Sequence[str] = ()) -> None:
        self._uri = uri or store.DEFAULT
        self.base = base
        self.criteria = tuple(criteria)
        self._parsed: Sequence[Criterion] = [parse(text) for text in criteria]
        self._history: History | None = None
        self.skipped: Sequence[str] = ()

    def read(self) -> History:
        """The runs that tests are compared with. Raises ValueError where `base` is none of them or can't be read."""
        if self._history is None:
            history = store.read(self._uri)
            if self.base != RECORDED:
                history = History([history.find(self.base)], history.skipped)
            self._history, self.skipped = history, history.skipped
        return self._history

    def findings(self, entries: Sequence[Entry]) -> list[Finding]:
        """Whatever keeps `entries` from passing: each that is worse than its base, or that has none."""
        history = self.read()
        findings = []
        for judged in (judge(entry, history.recorded(entry), self._parsed) for entry in entries):
            status: Literal["over", "new", "inconclusive"] = "new" if judged.base is None else "inconclusive"
            texts = regression_texts(judged)
            if texts:
                status = "over"
            elif judged.status in ("new", "inconclusive"):
                texts = [_open_reason(judged, history)]
            if texts:
                lines = judged.difference_lines if status == "over" else ()
                findings.append(Finding(judged.entry.key, judged.entry.name, status, texts, lines))
        return findings

    def missing(self, entries: Sequence[Entry], tests: Collection[str]) -> list[str]:
        """A line for each recording that one of these tests made for the base, and nobody made among `entries`.

        A test of another name is left to `vram compare --fail missing`: nobody knows whether it was to run.
        """
        history = self.read()
        gone = missing(history.expected(entries), entries)
        return [missing_text(one) for one in gone if one.entry.test in tests]


def missing_text(located: Located) -> str:
    """A recording of the base that a run did not make, in one line."""
    return f"{located.entry.name}: in {located.run}, not measured in this run"


def error_of(findings: Sequence[Finding], lines: Sequence[str] = ()) -> MemoryRegression | Inconclusive | None:
    """The error that a test with these findings ends with; None where there are none. `lines` explain a regression."""
    worse = [f"{shown(one.name)}: {text}" for one in findings if one.status == "over" for text in one.texts]
    if worse:
        return MemoryRegression("\n".join([*worse, *lines]))
    unclear = [
        f"{shown(one.name)}{' is new' if one.status == 'new' else ''}: {text}" for one in findings for text in one.texts
    ]
    kind = NotRecorded if any(one.status == "new" for one in findings) else Inconclusive
    return kind("; ".join(unclear)) if unclear else None


def regression_texts(judged: Judged) -> list[str]:
    """A text for each figure that fails; channels that say the same thing say it once."""
    apart = {(change.base, change.head): change for change in reversed(judged.regressions)}
    return [str(change) for change in reversed(apart.values())]


def open_text(judged: Judged, history: History) -> str:
    """Why a key that is new, or could not be compared, has no decision."""
    between = " is new: " if judged.base is None else ": "
    return judged.entry.name + between + _open_reason(judged, history)


def _open_reason(judged: Judged, history: History) -> str:
    if judged.base is None:
        return f"{history.nearest(judged.entry) or 'no run has measured it'}; {ACCEPT}"
    missing = "; ".join(str(change) for change in judged.changes if change.status == "not measured")
    return judged.reason or missing or "no exact figure to compare"
