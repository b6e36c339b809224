"""A history: the runs that were read, oldest first, and what BASE and HEAD mean among them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePath

from vram.history.compare import Comparison, Judged, Located, judge, matching
from vram.history.criteria import Criterion, figures, is_exact
from vram.history.entries import OUT_OF_MEMORY, Entry
from vram.history.keys import Key, difference, environment_of
from vram.history.steps import Step, find_steps

RECORDED = "recorded"  # as BASE: for each key the newest accepted run, else the first
_LONGEST_NUMBER = 6  # digits; more are a commit


@dataclass(frozen=True)
class Run:
    """One saved run. `path` begins at the store; `time` is ISO 8601; `commit` is "" where it is not known."""

    path: str
    time: str
    commit: str
    dirty: bool
    entries: Sequence[Entry]

    @cached_property
    def stem(self) -> str:
        """ "0003_NAME": the file's name without its suffix."""
        return PurePath(self.path).stem

    @cached_property
    def number(self) -> str:
        """ "0003", or the whole name where it has none."""
        number, _, rest = self.stem.partition("_")
        return number if number.isdecimal() and rest else self.stem

    def located(self) -> list[Located]:
        """Its entries, each with its run's number."""
        return [Located(f"run {self.number}", entry) for entry in self.entries]


class NoRun(ValueError):
    """A name means no run, or more than one."""


@dataclass(frozen=True)
class History:
    """Runs, oldest first. `skipped` says which files and entries were not read, and why."""

    runs: Sequence[Run]
    skipped: Sequence[str] = field(default=())

    @cached_property
    def by_key(self) -> dict[Key, list[tuple[Run, Entry]]]:
        """Every key's runs, oldest first."""
        by_key: dict[Key, list[tuple[Run, Entry]]] = defaultdict(list)
        for run in self.runs:
            for entry in run.entries:
                by_key[entry.key].append((run, entry))
        return dict(by_key)

    def find(self, name: str) -> Run:
        """The newest run of this number ("3", "0003", "MACHINE/0003"), name or commit (its beginning). Raises NoRun."""
        tests: list[Callable[[Run], bool]] = [
            lambda run: name in (run.path, run.path.removesuffix(".json"), run.stem),
            lambda run: name.isdecimal() and len(name) <= _LONGEST_NUMBER and _number(run) == int(name),
            lambda run: "/" in name and f"{PurePath(run.path).parent.name}/{run.number}" == name,
            lambda run: run.stem.partition("_")[2] == name,
            lambda run: len(name) >= 4 and run.commit.startswith(name),
        ]
        for test in tests:
            matches = [run for run in self.runs if test(run)]
            if matches and name.isdecimal() and len({PurePath(run.path).parent for run in matches}) > 1:
                raise NoRun(f"{name} is more than one run: {', '.join(run.path for run in matches[-5:])}")
            if matches:
                return matches[-1]
        known = ", ".join(run.stem for run in self.runs[-3:])
        raise NoRun(f"no run is called {name}: " + (f"the newest are {known}" if known else "there are none"))

    def before(self, run: Run) -> History:
        """The runs before this one. All, where it is no run of this history."""
        return History(self.runs[: self.runs.index(run)] if run in self.runs else self.runs)

    def like(self, entry: Entry) -> list[Located]:
        """Entries that it may be compared with, oldest first."""
        if entry.verdict == OUT_OF_MEMORY:
            return matching(entry, [located for run in self.runs for located in run.located()])
        return [Located(f"run {run.number}", one) for run, one in self.by_key.get(entry.key, ())]

    def recorded(self, entry: Entry) -> Located | None:
        """Its recorded base: the newest accepted one that has figures, else the first that has; where none has, the
        newest that ran out of memory and was accepted so."""
        like = self.like(entry)
        measured = [located for located in like if located.entry.channels]
        accepted = [located for located in measured or like if located.entry.accepted]
        return accepted[-1] if accepted else next(iter(measured), None)

    def expected(self, measured: Sequence[Entry]) -> list[Located]:
        """Entries that a run with these should have measured too: the newest entry of each key, in the same
        environments, of the newest run that was accepted there and of each run since; of all where none was.

        An accept says what is measured, too: a key that it does not have is expected no longer.
        """
        environments = {environment_of(entry.key) for entry in measured}
        newest: dict[Key, Located] = {}
        for run in self.runs:
            here = [one for one in run.located() if not environments or environment_of(one.entry.key) in environments]
            if any(one.entry.accepted for one in here):
                newest.clear()
            newest.update((one.entry.key, one) for one in here)
        return list(newest.values())

    def nearest(self, entry: Entry) -> str:
        """How the key of the newest entry of the same name differs; "" where there is none."""
        for run in reversed(self.runs):
            for other in run.entries:
                if other.name == entry.name and other.key != entry.key:
                    return f"run {run.number} differs: {difference(other.key, entry.key)}"
        return ""


def _number(run: Run) -> int | None:
    return int(run.number) if run.number.isdecimal() else None


def with_the_one_before(history: History, head: Run, criteria: Sequence[Criterion] = ()) -> Comparison:
    """Each key of `head` beside the newest run before it that measured the key, and beside its `anchor`."""
    earlier = history.before(head)
    judged = []
    for entry in head.entries:
        past = earlier.like(entry)
        judged.append(judge(entry, past[-1] if past else None, criteria, past))
    return Comparison(judged, missing(earlier.runs[-1].located(), head.entries) if earlier.runs else ())


def with_recorded(history: History, head: Run, criteria: Sequence[Criterion] = ()) -> Comparison:
    """Each key of `head` beside its recorded base, which no run becomes by passing."""
    earlier = history.before(head)
    judged = [judge(entry, earlier.recorded(entry), criteria) for entry in head.entries]
    return Comparison(judged, missing(earlier.expected(head.entries), head.entries))


def with_run(base: Run, head: Run, criteria: Sequence[Criterion] = ()) -> Comparison:
    """Each key of `head` beside the same key of `base`."""
    judged: list[Judged] = []
    for entry in head.entries:
        same = matching(entry, base.located())
        judged.append(judge(entry, same[-1] if same else None, criteria))
    return Comparison(judged, missing(base.located(), head.entries))


def missing(expected: Sequence[Located], measured: Sequence[Entry]) -> list[Located]:
    """Those whose key was not measured, nor began to be by a replay that ran out of memory."""
    return [one for one in expected if not any(_is_of(entry, one.entry) for entry in measured)]


def _is_of(entry: Entry, other: Entry) -> bool:
    """Whether both have one key, as far as a replay that ran out of memory came to know its facts."""
    return bool(matching(entry, [Located("", other)]) or matching(other, [Located("", entry)]))


def steps_of(runs: Sequence[tuple[Run, Entry]]) -> dict[str, list[Step]]:
    """Every figure's steps over a key's runs; figures without one are left out."""
    measured = [(entry, figures(entry)) for _, entry in runs]
    steps = {}
    for figure in dict.fromkeys(name for _, by_name in measured for name in by_name):
        exact = all(is_exact(entry, figure) for entry, by_name in measured if figure in by_name)
        found = find_steps([by_name.get(figure) for _, by_name in measured], exact=exact)
        if found:
            steps[figure] = found
    return steps
