"""Recorded, reviewed limits in plain text: `[[budget]]` tables of a TOML file, one a key."""

from __future__ import annotations

import json
import os
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_HEADER = "# Reviewed limits, in bytes, one per key. Changed only by an explicit --vram-accept.\n"
_LIMIT = "peak_bytes"


@dataclass(frozen=True)
class Budget:
    """The limit recorded under `key` in the file `path`; `limit_bytes` is None where the key is new."""

    path: Path
    key: Mapping[str, str]
    limit_bytes: int | None

    def __str__(self) -> str:
        return f"budget {', '.join(self.key.values())} in {self.path.name}"


def read_budget(path: str | Path, **key: str) -> Budget:
    """The budget of exactly this key. A missing file holds no budgets; an unreadable one is a ValueError."""
    path = Path(path)
    for entry in _entries(path):
        if {name: value for name, value in entry.items() if name != _LIMIT} == key:
            return Budget(path, key, int(entry[_LIMIT]))
    return Budget(path, key, None)


def accept(budget: Budget, peak_bytes: int) -> Budget:
    """Record `peak_bytes` under the budget's key, leaving every other key as it is. Written atomically."""
    entries = {_sort_key(entry): entry for entry in _entries(budget.path)}
    new: dict[str, str | int] = {**budget.key, _LIMIT: peak_bytes}
    entries[_sort_key(new)] = new
    text = _HEADER + "".join(
        "\n[[budget]]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in entry.items())
        for _, entry in sorted(entries.items())
    )
    budget.path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=budget.path.parent, prefix=budget.path.name)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    Path(temporary).replace(budget.path)
    return Budget(budget.path, budget.key, peak_bytes)


def _entries(path: Path) -> list[dict[str, str | int]]:
    if not path.exists():
        return []
    try:
        entries: list[dict[str, str | int]] = tomllib.loads(path.read_text(encoding="utf-8")).get("budget", [])
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"budgets must be TOML, got {path}: {error}") from None
    for entry in entries:
        if not isinstance(entry.get(_LIMIT), int):
            raise ValueError(f"every budget needs a whole number {_LIMIT}, got {entry} in {path}")
    return entries


def _sort_key(entry: Mapping[str, str | int]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name, str(value)) for name, value in entry.items() if name != _LIMIT))
