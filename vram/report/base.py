"""The recorded base that a page compares a report's recordings and tests with: that of the runs before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from vram.history.compare import Judged, judge
from vram.history.entries import Entry, of_marked, of_summary
from vram.history.keys import Key
from vram.history.runs import RECORDED, History, NoRun, Run
from vram.summary import RecordingSummary, RunSummary


@dataclass(frozen=True)
class Bases:
    """The report beside its base. `head` is the saved run that the report is of, None where it was not saved.

    `recordings` and `tests` have one place for each of the report's; None where no run before it has that key. The base
    is called `name`.
    """

    head: Run | None = None
    name: str = "the recorded base"
    recordings: Sequence[Judged | None] = ()
    tests: Sequence[Judged | None] = ()
    keys: Sequence[Key | None] = field(default=())


def bases_of(run: RunSummary, history: History) -> Bases:
    """Compare each recording and marked test of `run` with its base, to the byte: with the recorded one among the runs
    before it, or with the run that a gate compared it with."""
    made = [_entry(one, run, history) for one in run.recordings]
    marked = [of_marked(test, run.environment) for test in run.tests]
    head = _named(run.saved.get("run"), history) or _saved(made, history) or (None if made else _saved(marked, history))
    earlier = history if head is None else history.before(head)
    base = _named(run.saved.get("base"), history)
    earlier = earlier if base is None else History([base])

    def judged(entry: Entry | None) -> Judged | None:
        base = None if entry is None else earlier.recorded(entry)
        return None if entry is None or base is None else judge(entry, base)

    return Bases(
        head=head,
        name="the recorded base" if base is None else f"run {base.number}",
        recordings=[judged(entry) for entry in made],
        tests=[judged(entry) for entry in marked],
        keys=[entry.key if entry is not None and entry.key in history.by_key else None for entry in made],
    )


def _named(name: str | None, history: History) -> Run | None:
    """The run of this name; None where there is none, and for the recorded base, which is no one run."""
    try:
        return history.find(name) if name and name != RECORDED else None
    except NoRun:
        return None


def _entry(one: RecordingSummary, run: RunSummary, history: History) -> Entry | None:
    """The entry of a recording. One without a name that is its alone is found by its figures: a report has no test of
    it, which counts those of one name."""
    entry = of_summary(one, run.environment, "")
    if one.named and sum(other.name == one.name for other in run.recordings) == 1:
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
