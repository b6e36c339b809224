"""What a report's recordings and tests are compared with on a page: the recorded base of the runs before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from vram.history.compare import Judged, judge
from vram.history.entries import Entry, of_marked, of_summary
from vram.history.keys import Key
from vram.history.runs import History, Run
from vram.summary import RecordingSummary, RunSummary


@dataclass(frozen=True)
class Bases:
    """The report beside its base. `head` is the saved run that the report is of, None where it was not saved.

    `recordings` and `tests` have one place for each of the report's; None where no run before it has that key.
    """

    head: Run | None = None
    recordings: Sequence[Judged | None] = ()
    tests: Sequence[Judged | None] = ()
    keys: Sequence[Key | None] = field(default=())


def bases_of(run: RunSummary, history: History) -> Bases:
    """Compare each recording and marked test of `run` with its recorded base, to the byte."""
    made = [_entry(one, run, history) for one in run.recordings]
    marked = [of_marked(test, run.environment) for test in run.tests]
    head = _saved(made, history) or (None if made else _saved(marked, history))
    earlier = history if head is None else history.before(head)

    def judged(entry: Entry | None) -> Judged | None:
        base = None if entry is None else earlier.recorded(entry)
        return None if entry is None or base is None else judge(entry, base)

    keys = [entry.key if entry is not None and entry.key in history.by_key else None for entry in made]
    return Bases(head, [judged(entry) for entry in made], [judged(entry) for entry in marked], keys)


def _entry(one: RecordingSummary, run: RunSummary, history: History) -> Entry | None:
    """The entry of a recording. One without a name of its own is found by its figures: a report has no test of it."""
    entry = of_summary(one, run.environment, "")
    if one.named:
        return entry
    alike = (saved for each in reversed(history.runs) for saved in each.entries if _same(saved, entry))
    return next(alike, None)


def _saved(entries: Sequence[Entry | None], history: History) -> Run | None:
    """The newest run that has one of the entries."""
    known = [entry for entry in entries if entry is not None and entry.channels]
    for run in reversed(history.runs):
        if any(_same(saved, entry) and saved.key == entry.key for saved in run.entries for entry in known):
            return run
    return None


def _same(saved: Entry, entry: Entry) -> bool:
    """Whether they are of one replay: equal in every reading, and in the time that it took."""
    return saved.seconds == entry.seconds and saved.channels == entry.channels
