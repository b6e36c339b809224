"""What the pytest plugin does with the history, without pytest: gather entries, have them saved, judge them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from vram.errors import Inconclusive
from vram.history import entries as _entries
from vram.history import store
from vram.history.compare import Judged, judge
from vram.history.criteria import Criterion, parse
from vram.history.entries import Entry
from vram.history.runs import RECORDED, History

ACCEPT = "record it with --benchmark-autosave --vram-accept"
_GROUP = "vram"  # of the benchmarks that are ours alone, in pytest-benchmark's tables
# What is used of pytest-benchmark's session object, which has no promise to stay.
_USED = ("benchmarks", "storage", "save", "autosave", "json")


class MemoryRegression(AssertionError):
    """A test needs more than its base in the history, by more than it is allowed."""


class Gatherer:
    """Turns what one process measures into entries, told by the tests that measured it."""

    def __init__(self) -> None:
        self._seen = 0
        self._steps: Counter[tuple[str, str]] = Counter()
        self._made: dict[str, list[tuple[Mapping[str, Any], int]]] = {}  # by test: summaries, which of their name

    def begin(self, test: str) -> None:
        """A test begins, perhaps anew: its recordings are numbered from one again."""
        for step in [step for step in self._steps if step[0] == test]:
            del self._steps[step]

    def gather(self, test: str, summaries: Sequence[Mapping[str, Any]]) -> None:
        """`test` made the recordings of the session's `summaries` that were not there when this was last called."""
        for summary in summaries[self._seen :]:
            step = test, summary["mode"]
            self._steps[step] += 1
            self._made.setdefault(test, []).append((summary, self._steps[step]))
        self._seen = len(summaries)

    def has(self, test: str) -> bool:
        """Whether `test` made any recording."""
        return test in self._made

    def entries(
        self,
        test: str,
        environment: Mapping[str, object],
        marked: tuple[Mapping[str, Any], Mapping[str, object]] | None = None,
        *,
        accepted: bool = False,
    ) -> list[Entry]:
        """Everything that `test` measured so far, in any try. `marked`: its markers' figures, and their environment."""
        made = [
            _entries.of_summary(summary, environment, test, occurrence=number)
            for summary, number in self._made.get(test, ())
        ]
        if marked is not None:
            made.append(_entries.of_marked(*marked))
        merged = _entries.merged(made)
        return [_entries.accept(entry) for entry in merged] if accepted else merged


class Gate:
    """Holds tests to the history, which is read once.

    `base` names a run, or is "recorded". Raises ValueError for criteria that can't be read.
    """

    def __init__(self, uri: str | None = None, base: str = RECORDED, criteria: Sequence[str] = ()) -> None:
        self._uri = uri or store.DEFAULT
        self._base = base
        self._criteria: list[Criterion] = [parse(text) for text in criteria]
        self._history: History | None = None
        self.skipped: Sequence[str] = ()

    def read(self) -> History:
        """The runs that tests are held to. Raises ValueError where `base` is none of them, or nothing can be read."""
        if self._history is None:
            history = store.read(self._uri)
            if self._base != RECORDED:
                history = History([history.find(self._base)], history.skipped)
            self._history, self.skipped = history, history.skipped
        return self._history

    def check(self, entries: Sequence[Entry]) -> MemoryRegression | Inconclusive | None:
        """What is wrong with a test that measured `entries`: one is worse than its base; or one has no base."""
        history = self.read()
        judged = [judge(entry, history.recorded(entry), self._criteria) for entry in entries]
        worse = [line for one in judged for line in told_regressions(one)]
        if worse:
            return MemoryRegression("\n".join(worse))
        unsaid = [told_unsaid(one, history) for one in judged if one.status in ("new", "inconclusive")]
        return Inconclusive("; ".join(unsaid)) if unsaid else None


def told_regressions(judged: Judged) -> list[str]:
    """A line a figure that fails; channels that say the same thing say it once."""
    apart = {(change.base, change.head): change for change in reversed(judged.regressions)}
    return [f"{judged.entry.name}: {change}" for change in reversed(apart.values())]


def told_unsaid(judged: Judged, history: History) -> str:
    """Why nothing can be said of a key that is new or inconclusive."""
    name = judged.entry.name
    if judged.base is None:
        return f"{name} is new: {history.nearest(judged.entry) or 'no run has measured it'}; {ACCEPT}"
    missing = "; ".join(str(change) for change in judged.changes if change.status == "not measured")
    return f"{name}: {judged.unsaid or missing or 'no exact figure to compare'}"


class _Guarded:
    """A storage whose `save` says what went wrong and lets the session end as its tests did."""

    def __init__(self, storage: Any) -> None:
        self._storage = storage
        self.problem = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def __str__(self) -> str:
        return str(self._storage)

    def save(self, output_json: Any, save: str) -> None:
        """As the storage's own; an error is kept in `problem`."""
        try:
            self._storage.save(output_json, save)
        except Exception as error:  # a full disk, a folder that can't be written to, a server that is not there
            self.problem = f"history not saved in {self._storage}: {error}"


class Saver:
    """Puts entries among pytest-benchmark's benchmarks, which then saves them itself, xdist or not."""

    def __init__(self, benchmarks: Any) -> None:
        """`benchmarks` is pytest-benchmark's session object (the plugin "pytest-benchmark")."""
        missing = [name for name in _USED if not hasattr(benchmarks, name)]
        if missing:
            raise RuntimeError(f"this pytest-benchmark's session has no {', '.join(missing)}: vram can't save with it")
        self._session = benchmarks
        self._storage: _Guarded | None = None

    @property
    def wanted(self) -> bool:
        """Whether the session saves its benchmarks at all."""
        return bool(self._session.save or self._session.autosave or self._session.json)

    @property
    def problem(self) -> str:
        """Why the run was not saved; "" where it was."""
        return self._storage.problem if self._storage is not None else ""

    def put(self, entries: Sequence[Entry], seconds: Mapping[str, float]) -> None:
        """Add `entries` to what is going to be saved, by a writer that is atomic and locked.

        An entry whose test has a benchmark of its own goes along with that; others become benchmarks whose time is that
        of a sample, or of the test (`seconds` by test) where no samples were timed.
        """
        self._session.storage = self._storage = _Guarded(_locked(self._session.storage))
        own = {benchmark.fullname: benchmark for benchmark in self._session.benchmarks if benchmark}
        for test, group in _by_carrier(_entries.merged(entries), own).items():
            carrier = own.get(test)
            if carrier is None:
                carrier = _benchmark(test, group, seconds)
                self._session.benchmarks.append(carrier)
            carrier.extra_info[store.EXTRA] = store.packed(group)


def _locked(storage: Any) -> Any:
    from pytest_benchmark.storage.file import FileStorage

    from vram.history.file_storage import LockedFileStorage

    if type(storage) is not FileStorage:  # another back end has writers of its own
        return storage
    made: Any = LockedFileStorage
    return made(storage.path, storage.logger, default_machine_id=storage.default_machine_id)


def _by_carrier(entries: Sequence[Entry], own: Mapping[str, Any]) -> dict[str, list[Entry]]:
    """Entries by the benchmark that carries them: their test's, or one of the name that stays the same in every run."""
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        found.setdefault(entry.test if entry.test in own else dict(entry.key).get("test", entry.name), []).append(entry)
    return found


def _benchmark(fullname: str, entries: Sequence[Entry], seconds: Mapping[str, float]) -> Any:
    from pytest_benchmark.stats import Metadata

    fixture = SimpleNamespace(
        name=fullname.rpartition("::")[2],
        fullname=fullname,
        group=_GROUP,
        param=None,
        params=None,
        extra_info={},
        cprofile_stats=None,
        has_error=False,
    )
    made: Any = Metadata
    benchmark = made(fixture, iterations=1, options={})
    timed = [entry.seconds for entry in entries if entry.seconds is not None]
    benchmark.update(sum(timed) if timed else seconds.get(entries[0].test, 0.0))
    return benchmark
