"""The budgets that a session accepted: merged over its processes, reconciled with the file, shown as a diff."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vram.budgets.file import Budget, accept, named
from vram.budgets.headroom import Headroom, parse_headroom
from vram.text import NO_FIGURE, apart, fitted


@dataclass(frozen=True)
class Accepted:
    """One budget that was accepted: from `before_bytes` (None where it was new) to `after_bytes`.

    `problem` says why it was not recorded; "" where it was. `headroom` is the text of what is allowed above the figure.
    """

    path: str
    key: Mapping[str, str]
    before_bytes: int | None
    after_bytes: int
    problem: str = ""
    headroom: str = ""
    headroom_before: str = ""

    @property
    def changed(self) -> bool:
        """True where the file says something else now."""
        return (self.before_bytes, self.headroom_before) != (self.after_bytes, self.headroom)


def record(
    budget: Budget, peak_bytes: int, earlier: Sequence[Accepted] = (), *, headroom: Headroom | None = None
) -> tuple[Budget, Accepted]:
    """Accept `peak_bytes`, or what was accepted `earlier` for the budget where that is more.

    Its headroom stays as it is recorded where `headroom` is None, else it becomes that.

    Returns the budget as it is now recorded (unchanged where it can't be rewritten), and the change.
    """
    path = str(budget.path.absolute())
    known = [one for one in earlier if (one.path, one.key) == (path, budget.key) and not one.problem]
    largest_bytes = max([peak_bytes, *(one.after_bytes for one in known)])
    before = budget.headroom_text
    change = Accepted(
        path, dict(budget.key), budget.recorded_bytes, largest_bytes, headroom=before, headroom_before=before
    )
    try:
        recorded = accept(budget, largest_bytes, headroom)
        return recorded, replace(change, headroom=recorded.headroom_text)
    except (OSError, ValueError) as error:
        return budget, replace(change, problem=str(error))


def add(
    accepts: list[Accepted],
    budget: Budget,
    peak_bytes: int,
    *,
    headroom: Headroom | None = None,
    outdated: Collection[int] = (),
) -> Budget:
    """Accept as `record` does, beside what this session accepted so far, and add the change to `accepts`.

    `outdated`, by index, are of earlier tries of the test that runs: what they accepted for this budget, it replaces.

    Returns the budget as it is now recorded.
    """
    counting = [one for index, one in enumerate(accepts) if index not in outdated]
    recorded, change = record(budget, peak_bytes, counting, headroom=headroom)
    same = [one for one in outdated if (accepts[one].path, accepts[one].key) == (change.path, change.key)]
    if same and not change.problem:  # which changed the file, so that the change as a whole begins with the first
        first = accepts[same[0]]
        change = replace(change, before_bytes=first.before_bytes, headroom_before=first.headroom_before)
        for index in same:
            accepts[index] = change
    accepts.append(change)
    return recorded


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
            headroom = parse_headroom(one.headroom) if one.headroom else None
            budget = Budget(Path(one.path), one.key, None)
            one = replace(one, problem=record(budget, one.after_bytes, headroom=headroom)[1].problem)
        changes.append(one)
    return changes


def merged(accepts: Iterable[Accepted]) -> list[Accepted]:
    """One for each budget and problem, in order: the largest, as a budget that two tests share has to fit both."""
    groups: dict[tuple[object, ...], list[Accepted]] = {}
    for one in accepts:
        groups.setdefault((one.path, tuple(sorted(one.key.items())), one.problem), []).append(one)
    changes = []
    for group in groups.values():
        after = {(one.after_bytes, one.headroom) for one in group}
        # One test may have read from the file what another had just accepted.
        first = next((one for one in group if (one.before_bytes, one.headroom_before) not in after), group[0])
        changes.append(replace(first, after_bytes=max(one.after_bytes for one in group)))
    return changes


def diff(accepts: Sequence[Accepted], root: Path, width: int = 0) -> list[str]:
    """A table of changes for each file, as lines; sizes that differ never read alike. Paths are relative to `root`.

    `width` is that of the terminal, 0 where it is not known.
    """
    lines = []
    for path in dict.fromkeys(one.path for one in accepts if not one.problem):
        here = [one for one in accepts if one.path == path and not one.problem]
        changed = [one for one in here if one.changed]
        same = len(here) - len(changed)
        count = f"{len(changed)} changed" + (f", {same} as before" if same else "")
        lines.append(f"budgets accepted in {_from(root, path)}: {count}")
        if changed:
            rows = [("budget", "before", "now", "change", "headroom", "limit"), *(_row(one) for one in changed)]
            columns = 6 if any(one.headroom for one in changed) else 4
            lines += [f"  {line}" for line in fitted([row[:columns] for row in rows], max(0, width - 2))]
    return lines


def problems(accepts: Sequence[Accepted], root: Path) -> list[str]:
    """A line for each budget that was not recorded."""
    return [
        f"budget not accepted: {named(one.key)} in {_from(root, one.path)}: {one.problem}"
        for one in accepts
        if one.problem
    ]


def _row(one: Accepted) -> tuple[str, ...]:
    before, now = apart(one.before_bytes, one.after_bytes)
    limit_bytes = parse_headroom(one.headroom).above(one.after_bytes) if one.headroom else one.after_bytes
    room = (one.headroom or NO_FIGURE, apart(one.after_bytes, limit_bytes)[1])
    if one.before_bytes is None:
        return named(one.key), "new", now, NO_FIGURE, *room
    return named(one.key), before, now, f"{one.after_bytes - one.before_bytes:+,} B", *room


def _from(root: Path, path: str) -> str:
    near = os.path.relpath(path, root)
    return path if near.startswith(os.pardir) else near
