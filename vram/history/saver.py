"""Puts entries among pytest-benchmark's benchmarks, which then saves them itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from vram.history import store
from vram.history.entries import Entry, merged

_GROUP = "vram"  # of the benchmarks that are ours alone, in pytest-benchmark's tables
# Attributes of pytest-benchmark's session object that are used here, with no promise that they stay.
_USED = ("benchmarks", "storage", "save", "autosave", "json")


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


class _TimeOnly:
    """A check of --benchmark-compare-fail that does not see the benchmarks that are ours alone."""

    def __init__(self, check: Any, ours: Sequence[Any]) -> None:
        self._check, self._ours = check, ours

    def fails(self, current: Any, compared: Any) -> Any:
        """As the check's own; None, which is a pass, for one of ours."""
        return None if any(current is one for one in self._ours) else self._check.fails(current, compared)


class Saver:
    """Puts entries among pytest-benchmark's benchmarks, which then saves them itself, xdist or not."""

    def __init__(self, benchmarks: Any) -> None:
        """`benchmarks` is pytest-benchmark's session object (the plugin "pytest-benchmark")."""
        missing = [name for name in _USED if not hasattr(benchmarks, name)]
        if missing:
            raise RuntimeError(f"this pytest-benchmark's session has no {', '.join(missing)}: vram can't save with it")
        self._session = benchmarks
        self._storage: _Guarded | None = None
        self._ours: set[str] = set()

    @property
    def saves(self) -> bool:
        """True where the session saves its benchmarks at all."""
        return bool(self._session.save or self._session.autosave or self._session.json)

    @property
    def problem(self) -> str:
        """Why the run was not saved; "" where it was."""
        return self._storage.problem if self._storage is not None else ""

    def put(self, entries: Sequence[Entry], seconds: Mapping[str, float]) -> None:
        """Add `entries` to what is going to be saved, by a writer that is atomic and locked.

        An entry whose test has a benchmark of its own goes along with that; others become benchmarks whose time is that
        of a sample, or of the test (`seconds` by test) where no samples were timed. That time includes what measuring
        costs, so pytest-benchmark's own gate on times leaves it out.
        """
        self._session.storage = self._storage = _Guarded(_locked(self._session.storage))
        own = {benchmark.fullname: benchmark for benchmark in self._session.benchmarks if benchmark}
        ours: list[Any] = []
        if checks := getattr(self._session, "compare_fail", ()):
            self._session.compare_fail = [_TimeOnly(check, ours) for check in checks]
        for test, group in _by_carrier(merged(entries), own).items():
            carrier = own.get(test)
            if carrier is None:
                carrier = _benchmark(test, group, seconds)
                self._session.benchmarks.append(carrier)
                ours.append(carrier)
            carrier.extra_info[store.EXTRA] = store.packed(group)
        self._ours = {benchmark.fullname for benchmark in ours}

    def without_ours(self, benchmarks: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """The benchmarks of pytest-benchmark's user: what is here for saving alone is no timing that anybody made."""
        return [one for one in benchmarks if one["fullname"] not in self._ours]


def _locked(storage: Any) -> Any:
    from pytest_benchmark.storage.file import FileStorage  # an extra: late, here and below

    from vram.history.file_storage import LockedFileStorage

    if type(storage) is not FileStorage:  # another back end has writers of its own
        return storage
    made: Any = LockedFileStorage
    return made(storage.path, storage.logger, default_machine_id=storage.default_machine_id)


def _by_carrier(entries: Sequence[Entry], own: Mapping[str, Any]) -> dict[str, list[Entry]]:
    """Entries by the benchmark that carries them: their test's, or one of the name that stays the same in every run."""
    by_carrier: dict[str, list[Entry]] = {}
    for entry in entries:
        carrier = entry.test if entry.test in own else dict(entry.key).get("test", entry.name)
        by_carrier.setdefault(carrier, []).append(entry)
    return by_carrier


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
