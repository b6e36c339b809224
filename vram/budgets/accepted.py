"""The budgets that a session accepted: merged over its processes, reconciled with the file, shown as a diff."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vram.budgets.file import Budget, accept, named
from vram.text import aligned, apart


@dataclass(frozen=True)
class Accepted:
    """One budget that was accepted: from `before_bytes` (None where it was new) to `after_bytes`.

    `problem` says why it was not recorded; "" where it was.
    """

    path: str
    key: Mapping[str, str]
    before_bytes: int | None
    after_bytes: int
    problem: str = ""


def record(budget: Budget, peak_bytes: int, earlier: Sequence[Accepted] = ()) -> tuple[Budget, Accepted]:
    """Accept `peak_bytes`, or what was accepted `earlier` for the budget where that is more.

    Returns the budget as it is now recorded (unchanged where it can't be rewritten), and the change.
    """
    path = str(budget.path.absolute())
    known = [one for one in earlier if (one.path, one.key) == (path, budget.key) and not one.problem]
    largest_bytes = max([peak_bytes, *(one.after_bytes for one in known)])
    change = Accepted(path, dict(budget.key), budget.limit_bytes, largest_bytes)
    try:
        return accept(budget, largest_bytes), change
    except (OSError, ValueError) as error:
        return budget, replace(change, problem=str(error))


def reconciled(accepts: Sequence[Accepted]) -> list[Accepted]:
    """One for each budget. Where processes accepted different figures for one, the file gets the largest."""
    changes = []
    for one in merged(accepts):
        unequal = any(
            (other.path, other.key) == (one.path, one.key) and other.after_bytes != one.after_bytes
            for other in accepts
            if not other.problem
        )
        if unequal and not one.problem:
            one = replace(one, problem=record(Budget(Path(one.path), one.key, None), one.after_bytes)[1].problem)
        changes.append(one)
    return changes


def merged(accepts: Iterable[Accepted]) -> list[Accepted]:
    """One for each budget and problem, in order: the largest, as a budget that two tests share has to fit both."""
    groups: dict[tuple[object, ...], list[Accepted]] = {}
    for one in accepts:
        groups.setdefault((one.path, tuple(sorted(one.key.items())), one.problem), []).append(one)
    changes = []
    for group in groups.values():
        after = {one.after_bytes for one in group}
        # One test may have read from the file what another had just accepted.
        before = next((one.before_bytes for one in group if one.before_bytes not in after), group[0].before_bytes)
        changes.append(replace(group[0], before_bytes=before, after_bytes=max(after)))
    return changes


def diff(accepts: Sequence[Accepted], root: Path) -> list[str]:
    """A table of changes for each file, as lines; sizes that differ never read alike. Paths are relative to `root`."""
    lines = []
    for path in dict.fromkeys(one.path for one in accepts if not one.problem):
        here = [one for one in accepts if one.path == path and not one.problem]
        changed = [one for one in here if one.before_bytes != one.after_bytes]
        same = len(here) - len(changed)
        count = f"{len(changed)} changed" + (f", {same} as before" if same else "")
        lines.append(f"budgets accepted in {_from(root, path)}: {count}")
        if changed:
            rows = [("budget", "before", "now", "change"), *(_row(one) for one in changed)]
            lines += [f"  {line}" for line in aligned(rows)]
    return lines


def problems(accepts: Sequence[Accepted], root: Path) -> list[str]:
    """A line for each budget that was not recorded."""
    return [
        f"budget not accepted: {named(one.key)} in {_from(root, one.path)}: {one.problem}"
        for one in accepts
        if one.problem
    ]


def _row(one: Accepted) -> tuple[str, str, str, str]:
    before, now = apart(one.before_bytes, one.after_bytes)
    if one.before_bytes is None:
        return named(one.key), "new", now, "-"
    return named(one.key), before, now, f"{one.after_bytes - one.before_bytes:+,} B"


def _from(root: Path, path: str) -> str:
    near = os.path.relpath(path, root)
    return path if near.startswith(os.pardir) else near
