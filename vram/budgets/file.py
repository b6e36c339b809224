"""Recorded, reviewed limits in plain text: `[[budget]]` tables of a TOML file, one a key.

People read these files and comment them, so an accept changes one figure with its headroom, or adds one table, and
nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vram.budgets.headroom import Headroom, parse_headroom
from vram.files import atomic_write
from vram.text import bytes_text

_HEADER = "# Reviewed limits, in bytes, one per key. Changed only by an explicit --vram-accept.\n"
_LIMIT = "peak_bytes"
_HEADROOM = "headroom"
_WAIT_SECONDS = 60.0  # for another writer, which needs milliseconds
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_TABLE = re.compile(r"""\s*\[\[\s*(?:budget|"budget"|'budget')\s*\]\]\s*(?:#.*)?""")
_FIGURE = re.compile(rf"""(\s*(?:{_LIMIT}|"{_LIMIT}"|'{_LIMIT}')\s*=\s*)[\w+]+(.*)""", re.DOTALL)
_ROOM = re.compile(rf"""(\s*(?:{_HEADROOM}|"{_HEADROOM}"|'{_HEADROOM}')\s*=\s*)(?:"[^"]*"|'[^']*')(.*)""", re.DOTALL)

Entry = dict[str, Any]


@dataclass(frozen=True)
class Budget:
    """The figure recorded under `key` in the file `path`, with its headroom; None where the key is new."""

    path: Path
    key: Mapping[str, str]
    recorded_bytes: int | None
    headroom: Headroom | None = None

    def __str__(self) -> str:
        return f"budget {named(self.key)} in {self.path.name}"

    @property
    def limit_bytes(self) -> int | None:
        """The most bytes that are allowed: the recorded figure and its headroom. None where the key is new."""
        if self.recorded_bytes is None or self.headroom is None:
            return self.recorded_bytes
        return self.headroom.above(self.recorded_bytes)

    @property
    def headroom_text(self) -> str:
        """ "2%" or "64 MiB"; "" where the limit is the recorded figure itself."""
        return "" if self.headroom is None or self.limit_bytes == self.recorded_bytes else self.headroom.text

    @property
    def limit_source(self) -> str:
        """ ", the recorded 4,000 B + 2%": where the limit comes from; "" where it is the recorded figure itself."""
        figure_bytes = self.recorded_bytes
        if figure_bytes is None or not self.headroom_text:
            return ""
        return f", the recorded {bytes_text(figure_bytes)} + {self.headroom_text}"

    @property
    def new_text(self) -> str:
        """Say that no limit is recorded, and how to record one: the key is not in the file, or there is no file."""
        where = "" if self.path.exists() else " (there is no such file)"
        return f"new: no {self}; record it with --vram-accept{where}"


def named(key: Mapping[str, str]) -> str:
    """The values of a key side by side; one with control characters as Python writes it."""
    return ", ".join(value if value.isprintable() else repr(value) for value in key.values())


def read_budget(path: str | Path, **key: str) -> Budget:
    """The budget of exactly this key. A missing file holds no budgets.

    Raises ValueError for a file that can't be read as budgets, and for a key that can't be written as one.
    """
    path = Path(path)
    _check(key)
    for entry in _entries(path, _text(path)):
        if _key(entry) == key:
            return Budget(path, key, entry[_LIMIT], _headroom(entry))
    return Budget(path, key, None)


def accept(budget: Budget, peak_bytes: int, headroom: Headroom | None = None) -> Budget:
    """Record `peak_bytes` under the budget's key and leave everything else as it is, comments and order included.

    Its headroom stays as it is recorded where `headroom` is None, else it becomes that.

    Written atomically, one writer at a time; not at all where the file says so already. A new table comes before the
    first whose key is greater. Raises OSError where the file can't be written, ValueError where it can't be edited.
    """
    from filelock import FileLock  # only where something is written

    _check(budget.key)
    if not _is_limit(peak_bytes):
        raise ValueError(f"a budget must be a whole number of bytes, got {peak_bytes!r}")
    path = budget.path.resolve()  # a link stays one
    with FileLock(_lock_of(path), timeout=_WAIT_SECONDS, poll_interval=0.01):
        before = _text(path)
        after, headroom = _edited(path, before, budget.key, peak_bytes, headroom)
        if after != before:
            _write(path, after)
    return Budget(budget.path, budget.key, peak_bytes, headroom)


def _check(key: Mapping[str, str]) -> None:
    for name, meaning in ((_LIMIT, "limit"), (_HEADROOM, "room above its limit")):
        if name in key:
            raise ValueError(f"a budget's key must not have {name}, which is its {meaning}, got {dict(key)}")
    for name, value in key.items():
        if not isinstance(value, str):
            raise ValueError(f"a budget's key must be text, got {name}={value!r}")
        try:
            f"{name}{value}".encode()
        except UnicodeEncodeError:
            raise ValueError(f"a budget's key must be text that UTF-8 can write, got {name!r}: {value!r}") from None


def _text(path: Path) -> str:
    """The file's text, line ends as they are; "" where there is no file."""
    try:
        return path.read_bytes().decode()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"budgets must be a TOML file in UTF-8, got {path}: {error}") from None


def _parsed(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ValueError(f"budgets must be TOML, got {path}: {error}") from None


def _entries(path: Path, text: str) -> list[Entry]:
    entries = _parsed(path, text).get("budget", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"budgets must be [[budget]] tables, got {str(entries)[:60]!r} in {path}")
    seen = set()
    for entry in entries:
        if not _is_limit(entry.get(_LIMIT)):
            raise ValueError(f"every budget needs a whole number {_LIMIT}, got {str(entry)[:200]} in {path}")
        try:
            limit_bytes = Budget(path, {}, entry[_LIMIT], _headroom(entry)).limit_bytes
        except ValueError as error:
            raise ValueError(f"{error} in {path}") from None
        if not _is_limit(limit_bytes):
            raise ValueError(f"a budget and its headroom must be below 2**63 bytes, got {limit_bytes} in {path}")
        if not all(isinstance(value, str) for value in _key(entry).values()):
            raise ValueError(f"every budget's key must be text, got {entry} in {path}")
        if _order(entry) in seen:
            raise ValueError(f"every budget must be there once, got {_key(entry)} twice in {path}")
        seen.add(_order(entry))
    return entries


def _is_limit(value: object) -> bool:
    """True for bytes that a device may have: TOML's whole numbers have 64 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _key(entry: Entry) -> dict[str, str]:
    return {name: value for name, value in entry.items() if name not in (_LIMIT, _HEADROOM)}


def _headroom(entry: Entry) -> Headroom | None:
    return parse_headroom(entry[_HEADROOM]) if _HEADROOM in entry else None


def _order(entry: Entry) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(_key(entry).items()))


def _edited(
    path: Path, text: str, key: Mapping[str, str], peak_bytes: int, headroom: Headroom | None
) -> tuple[str, Headroom | None]:
    """`text` with the figure of one key changed, or with one more table, and the headroom that the key has then.

    Raises ValueError where it does not work.
    """
    entries = _entries(path, text)
    known = next((number for number, one in enumerate(entries) if _key(one) == key), None)
    headroom = headroom or (None if known is None else _headroom(entries[known]))
    entry: Entry = {**key, _LIMIT: peak_bytes} | ({} if headroom is None else {_HEADROOM: headroom.text})
    if not _is_limit(Budget(path, key, peak_bytes, headroom).limit_bytes):
        raise ValueError(f"a budget and its headroom must be below 2**63 bytes, got {peak_bytes} + {headroom}")
    lines = re.findall(r"[^\n]*\n|[^\n]+", text or _HEADER)  # TOML's line ends, and not what else splitlines knows
    starts = [number for number, line in enumerate(lines) if _TABLE.fullmatch(line.rstrip("\r\n"))]
    if known is None:
        place = next((number for number, one in enumerate(entries) if _order(one) > _order(entry)), len(entries))
        expected = [*entries[:place], entry, *entries[place:]]
        _insert(lines, starts, place, entry)
    elif entries[known][_LIMIT] == peak_bytes and headroom == _headroom(entries[known]):
        return text, headroom
    else:
        expected = [entry if number == known else one for number, one in enumerate(entries)]
        _change(lines, starts, known, entries[known], entry)
    edited = "".join(lines)
    # A line may look like a table or a figure and be none, inside a multi-line string for one: read it again.
    with suppress(ValueError):
        if len(starts) == len(entries) and _parsed(path, edited) == {**_parsed(path, text), "budget": expected}:
            return edited, headroom
    by_hand = f"{_LIMIT} = {peak_bytes}" + (f' and {_HEADROOM} = "{headroom.text}"' if headroom else "")
    raise ValueError(f"{path} is not written as --vram-accept can edit it: set {by_hand} by hand")


def _change(lines: list[str], starts: Sequence[int], number: int, before: Entry, after: Entry) -> None:
    """Set the figure of table `number` and its headroom, each where it is another, where there is such a table."""
    if number >= len(starts):
        return
    start, end = [*starts, len(lines)][number : number + 2]
    table = lines[start:end]
    at = next((at for at, line in enumerate(table) if _FIGURE.fullmatch(line)), None)
    if at is None:
        return
    if before[_LIMIT] != after[_LIMIT]:
        table[at] = _FIGURE.sub(rf"\g<1>{after[_LIMIT]}\g<2>", table[at])
    if before.get(_HEADROOM) != after.get(_HEADROOM):
        _change_headroom(table, at, _value(after[_HEADROOM]), "\r\n" if lines[0].endswith("\r\n") else "\n")
    lines[start:end] = table


def _change_headroom(table: list[str], figure: int, value: str, end: str) -> None:
    """Set the headroom of a table, in its own line or in a new one below that of its figure."""
    for at, line in enumerate(table):
        if found := _ROOM.fullmatch(line):
            table[at] = f"{found[1]}{value}{found[2]}"
            return
    line = table[figure]
    indent = line[: len(line) - len(line.lstrip())]
    whole = line.endswith("\n")
    table[figure : figure + 1] = [line if whole else line + end, f"{indent}{_HEADROOM} = {value}" + end * whole]


def _insert(lines: list[str], starts: Sequence[int], number: int, entry: Entry) -> None:
    """Put a table before table `number` and the comment that stands right above it, or at the end."""
    end = "\r\n" if lines[0].endswith("\r\n") else "\n"
    table = f"[[budget]]{end}" + "".join(f"{_name(name)} = {_value(value)}{end}" for name, value in entry.items())
    if number < len(starts):
        place = starts[number]
        while place and lines[place - 1].lstrip().startswith("#") and lines[place - 1].strip() != _HEADER.strip():
            place -= 1
        lines[place:place] = [table + end]
        return
    if not lines[-1].endswith("\n"):
        lines[-1] += end
    lines.append((end if lines[-1].strip() else "") + table)


def _name(name: str) -> str:
    return name if _BARE.fullmatch(name) else _value(name)


def _value(value: str | int) -> str:
    """TOML for a value: JSON's strings, with invisible characters (DEL, marks that turn text) escaped too."""
    text = json.dumps(value, ensure_ascii=False)
    return "".join(letter if letter.isprintable() else f"\\U{ord(letter):08x}" for letter in text)


def _lock_of(path: Path) -> Path:
    """The lock file of this user's processes. It is no neighbour of the budgets, where it would get into commits."""
    user = os.getuid() if hasattr(os, "getuid") else ""
    which = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"vram-budgets-{user}-{which}.lock"


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        path.open("ab").close()  # a rename needs the folder alone, but a file made read-only is meant to stay as it is
    atomic_write(path, text.encode())
