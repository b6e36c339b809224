"""Reading and writing runs, through pytest-benchmark's own storage classes: its files and its other back ends."""

from __future__ import annotations

import heapq
import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path, PurePath
from typing import Any

from vram.extras import remedy
from vram.history.entries import SCHEMA, Entry, from_json, to_json
from vram.history.runs import History, Run

DEFAULT = "file://./.benchmarks"  # pytest-benchmark's own default
EXTRA = "vram"  # in extra_info
_FILE = "file://"


class NoStore(ValueError):
    """A store or a file can't be read, or there is nothing to read it with."""


class _Logger:
    """The logger of pytest-benchmark's storage classes; keeps the warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warning(self, text: str, *_: object, **__: object) -> None:
        self.warnings.append(text)

    def info(self, *_: object, **__: object) -> None:
        """Not kept."""

    debug = error = info


def installed() -> bool:
    """Whether pytest-benchmark is there."""
    return importlib.util.find_spec("pytest_benchmark") is not None


def read(uri: str = DEFAULT) -> History:
    """Every run of the store that holds memory figures, oldest first; none where there is no store. Raises NoStore.

    `uri` is what pytest-benchmark's `--benchmark-storage` takes. Files that can't be read, and entries that can't, are
    left out and named in `skipped`.
    """
    if _is_file(uri) and not _is_folder(uri):
        return History(())  # without pytest-benchmark's class, which would make the folder
    storage, logger = _opened(uri)
    everything = ("*",) if _is_file(uri) else ()
    return _history(storage, logger, everything)


def read_file(path: Path) -> Run:
    """The run of one file, in a store or not. Raises NoStore where it can't be read."""
    storage, logger = _opened(_FILE + str(path.parent))
    history = _history(storage, logger, (str(path),))
    if not history.runs:
        raise NoStore("; ".join(history.skipped) or f"no memory figures in {path}")
    return history.runs[0]


def _is_file(uri: str) -> bool:
    return "://" not in uri or uri.startswith(_FILE)


def _is_folder(uri: str) -> bool:
    try:
        return Path(uri.removeprefix(_FILE)).is_dir()
    except OSError as error:  # a name that no file can have, a folder that nobody may look into
        raise NoStore(f"{uri} can't be opened: {error.strerror or error}") from None


def _opened(uri: str) -> tuple[Any, _Logger]:
    if not installed():
        raise NoStore(f"the history needs pytest-benchmark: {remedy('history')}")
    from pytest_benchmark.utils import load_storage

    logger = _Logger()
    try:
        return load_storage(uri, logger=logger, netrc=""), logger  # type: ignore[no-untyped-call]
    except Exception as error:  # a URI it does not know, a client that is not installed, a server that is not there
        raise NoStore(f"{uri} can't be opened: {error}") from None


def _history(storage: Any, logger: _Logger, patterns: Sequence[str]) -> History:
    runs: list[Run] = []
    skipped: list[str] = []
    try:
        for path, data in storage.load(*patterns):
            try:
                run = _run(str(path), data, skipped)
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                skipped.append(f"skipped {path}: not a run of pytest-benchmark ({type(error).__name__}: {error})")
                continue
            if run.entries:
                runs.append(run)
    except Exception as error:  # whatever the client of another back end raises
        raise NoStore(f"{storage} can't be read: {error}") from None
    unread = [warning.replace("Failed to load", "skipped", 1) for warning in logger.warnings]
    return History(_in_order(runs), [*unread, *skipped])


def _in_order(runs: Sequence[Run]) -> list[Run]:
    """Oldest first: the runs of a folder by their numbers, which are given one after the other, whatever the clocks of
    the machines that wrote them say. Times order the runs of several folders, and files that have no number."""
    numbered: dict[str, list[Run]] = {}
    others: list[Run] = []
    for run in runs:
        if run.number.isdecimal():
            numbered.setdefault(str(PurePath(run.path).parent), []).append(run)
        else:
            others.append(run)
    for several in numbered.values():
        several.sort(key=lambda run: (int(run.number), _when(run)))
    return list(heapq.merge(*numbered.values(), sorted(others, key=_when), key=_when))


def _when(run: Run) -> tuple[datetime, str]:
    try:
        time = datetime.fromisoformat(run.time)
    except ValueError:
        time = datetime.min
    return (time if time.tzinfo else time.replace(tzinfo=UTC)), run.stem


def _run(path: str, data: Mapping[str, Any], skipped: list[str]) -> Run:
    commit = data.get("commit_info") or {}
    entries: list[Entry] = []
    for benchmark in data["benchmarks"]:
        extra = (benchmark.get("extra_info") or {}).get(EXTRA)
        if extra is None:
            continue
        name = benchmark.get("fullname")
        try:
            entries += unpacked(extra)
        except ValueError as error:
            skipped.append(f"skipped {name} of {path}: {error}")
    commit_id = str(commit.get("id") or "")
    return Run(
        path=path,
        time=str(data.get("datetime") or ""),
        commit="" if commit_id in ("unversioned", "unknown") else commit_id,
        dirty=bool(commit.get("dirty")),
        entries=tuple(entries),
    )


def packed(entries: Iterable[Entry]) -> dict[str, Any]:
    """The entries as `extra_info["vram"]` holds them; docs/history.md describes it."""
    return {"schema": SCHEMA, "entries": [to_json(entry) for entry in entries]}


def unpacked(data: Any) -> list[Entry]:
    """Read back what `packed` gave. ValueError for anything else, and for a schema of a later version."""
    schema = data.get("schema") if isinstance(data, dict) else None
    if not isinstance(schema, int) or schema < 1:
        raise ValueError(f'extra_info["{EXTRA}"] must have a schema, got {str(data)[:60]!r}')
    if schema > SCHEMA:
        raise ValueError(f"schema {schema} is from a later version; this one reads {SCHEMA}")
    entries = data.get("entries")
    if not isinstance(entries, list):
        raise ValueError(f"entries must be a list, got {str(entries)[:60]!r}")
    return [from_json(entry) for entry in entries]
