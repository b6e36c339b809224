"""Is this run worse than its base? Arithmetic on entries: no file, no clock.

"No regression" does not prove that memory does not grow, or fits: only that no judged figure is over what its criterion
allows beside the base. Different keys are never compared; a key without a base is new, and nothing is said of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

from vram.history.criteria import GROWTH, Criterion, figure_in, figures, held_to, is_exact
from vram.history.entries import OUT_OF_MEMORY, Entry
from vram.text import bytes_text, exact_text

Status = Literal["regressed", "drifted", "within", "improved", "same", "told", "not measured"]
FAILING: tuple[Status, ...] = ("regressed", "drifted")
MEMORY = "memory"  # the figure of what ran out of it


@dataclass(frozen=True)
class Located:
    """An entry and what its run is called."""

    run: str
    entry: Entry


@dataclass(frozen=True)
class Change:
    """One figure of one key, beside its base. `criterion` is None for a figure that decides nothing.

    `base` or `head` is None where the figure was not measured there. Bytes; of `growth`, bytes a sample.
    """

    figure: str
    base: float | None
    head: float | None
    base_run: str
    criterion: Criterion | None
    status: Status

    def __str__(self) -> str:
        if self.figure == MEMORY:
            return f"out of memory, where {self.base_run} was not"
        if self.base is None or self.head is None:
            where = "in this run" if self.head is None else f"in {self.base_run}"
            return f"{self.figure}: not measured {where}"
        unit = " a sample" if self.figure == GROWTH else ""
        text = f"{self.figure} {exact_text(self.head)}{unit}, {_moved(self.base, self.head)} in {self.base_run}"
        if self.criterion is None:
            return f"{text}; noisy or not asked for: told, does not decide"
        if self.status in FAILING:
            since = "; no single run since was over" if self.status == "drifted" else ""
            return f"{text}; allowed {self.criterion.tolerance} more{since}"
        return text


def _moved(base: float, head: float) -> str:
    if head == base:
        return f"the same as {exact_text(base)}"
    more = bytes_text(abs(head - base))
    share = "" if base == 0 else f" ({abs(head - base) / abs(base):.2%})"
    return f"{more}{share} {'more' if head > base else 'less'} than {exact_text(base)}"


@dataclass(frozen=True)
class Judged:
    """All that is said of one key: its changes; or that it is new; or why nothing can be said."""

    entry: Entry
    base: Located | None
    changes: Sequence[Change] = ()
    unsaid: str = ""

    @property
    def regressions(self) -> list[Change]:
        """What fails it."""
        return [change for change in self.changes if change.status in FAILING]

    @property
    def status(self) -> str:
        """ "new", "inconclusive", "regressed" (a drift too), "improved", "within", "same"; "told" where no criterion is
        about a figure it has."""
        if self.base is None:
            return "new"
        if self.regressions:
            return "regressed"
        decided = [change.status for change in self.changes if change.criterion is not None]
        if self.unsaid or "not measured" in decided or not self.changes:
            return "inconclusive"
        if not decided:
            return "told"
        return next((status for status in ("within", "improved") if status in decided), "same")


@dataclass(frozen=True)
class Comparison:
    """A run beside its base. `gone` are keys of the base's run that this run did not measure."""

    judged: Sequence[Judged]
    gone: Sequence[Located] = field(default=())

    @property
    def regressed(self) -> bool:
        """Whether some key regressed."""
        return any(one.status == "regressed" for one in self.judged)

    @property
    def comparable(self) -> bool:
        """Whether anything was decided at all."""
        return any(one.status not in ("new", "inconclusive", "told") for one in self.judged)


def judge(
    head: Entry, base: Located | None, criteria: Sequence[Criterion] = (), past: Sequence[Located] = ()
) -> Judged:
    """Hold `head` to `base`, and where `past` (the key's entries, oldest first, up to the base) is given, to what
    `anchor` finds there: small steps that each pass may add up to a regression."""
    if base is None:
        return Judged(head, None)
    if OUT_OF_MEMORY in (head.verdict, base.entry.verdict):
        return _out_of_memory(head, base)
    if head.verdict is None and not head.peaks_alone:
        return Judged(head, base, unsaid=head.reason)
    held = held_to(head, criteria)
    now, before = figures(head), figures(base.entry)
    changes = []
    for figure in dict.fromkeys((*held, *before, *now)):
        criterion = held.get(figure)
        told = [here for here, one in ((now, head), (before, base.entry)) if figure in here]
        if criterion is not None and len(told) == 2 and not (is_exact(head, figure) and is_exact(base.entry, figure)):
            criterion = None
        if len(told) < (2 if criterion is None else 1):  # of what neither has nothing is said
            continue
        change = _change(figure, before.get(figure), now.get(figure), base.run, criterion)
        # To the byte there is no drift: each byte was told.
        if change.status not in FAILING and criterion is not None and criterion.tolerance != "0" and figure in now:
            change = _drift(change, criterion, past) or change
        changes.append(change)
    return Judged(head, base, changes)


def _change(figure: str, base: float | None, head: float | None, run: str, criterion: Criterion | None) -> Change:
    status: Status
    if base is None or head is None:
        status = "not measured"
    elif criterion is None:
        status = "told"
    elif head > criterion.allowed(base):
        status = "regressed"
    else:
        status = "same" if head == base else "within" if head > base else "improved"
    return Change(figure, base, head, run, criterion, status)


def _drift(change: Change, criterion: Criterion, past: Sequence[Located]) -> Change | None:
    held = anchor(past, change.figure, criterion)
    if held is None or change.head is None:
        return None
    base = figures(held.entry)[change.figure]
    if change.head <= criterion.allowed(base):
        return None
    return Change(change.figure, base, change.head, held.run, criterion, "drifted")


def anchor(past: Sequence[Located], figure: str, criterion: Criterion) -> Located | None:
    """The entry that a figure is held to: the first, or the last since that was accepted or was over what was allowed
    (and was told then). A run that passes never takes its place. Runs without the figure are passed over."""
    held: Located | None = None
    allowed = Fraction(0)
    for located in past:
        now = figure_in(located.entry, figure)
        if now is None:
            continue
        if held is None or located.entry.accepted or now > allowed:
            held, allowed = located, criterion.allowed(now)
    return held


def _out_of_memory(head: Entry, base: Located) -> Judged:
    if base.entry.verdict == OUT_OF_MEMORY:
        also = " too" if head.verdict == OUT_OF_MEMORY else ""
        return Judged(head, base, unsaid=f"{base.run} ran out of memory{also}")
    return Judged(head, base, [Change(MEMORY, None, None, base.run, Criterion(MEMORY), "regressed")])


def matching(entry: Entry, located: Sequence[Located]) -> list[Located]:
    """Those of exactly its key. A replay that ran out of memory did not come to count its samples, nor to ask every
    meter: what it knows must be equal."""
    if entry.verdict != OUT_OF_MEMORY:
        return [one for one in located if one.entry.key == entry.key]
    return [one for one in located if set(entry.key) <= set(one.entry.key)]
