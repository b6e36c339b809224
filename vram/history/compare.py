"""Is this run worse than its base? Arithmetic on entries: no file, no clock.

"No regression" does not prove that memory does not grow, or fits: only that no judged figure is over what its criterion
allows beside the base. Different keys are never compared; a key without a base is new, which is not a pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Literal

from vram.history.criteria import GROWTH, PEAK, Criterion, criteria_of, figure_in, figures, is_exact
from vram.history.entries import INCONCLUSIVE, OUT_OF_MEMORY, Entry
from vram.summary.difference import Difference, difference
from vram.text import NO_FIGURE, bytes_text, exact_text

Status = Literal["regressed", "drifted", "within", "improved", "same", "reported", "not measured"]
FAILING: tuple[Status, ...] = ("regressed", "drifted")
MEMORY = "memory"  # the figure of a key that ran out of it


@dataclass(frozen=True)
class Located:
    """An entry and what its run is called."""

    run: str
    entry: Entry


@dataclass(frozen=True)
class Change:
    """One figure of one key, beside its base. `criterion` is None for a figure that never fails.

    `base` or `head` is None where the figure was not measured there. Bytes; of `growth`, bytes a sample.
    """

    figure: str
    base: float | None
    head: float | None
    base_run: str
    criterion: Criterion | None
    status: Status

    @property
    def more_text(self) -> str:
        """ "+40 B (+4.00%)"; a dash where the figure was not measured in both."""
        if self.base is None or self.head is None:
            return NO_FIGURE
        more = self.head - self.base
        share = f" ({more / abs(self.base):+.2%})" if self.base and more else ""
        return ("+" if more > 0 else "") + bytes_text(more) + share

    @property
    def telling(self) -> bool:
        """True for peaks, whatever differs, and growth that may fail: what a table of changes shows."""
        may_fail = self.figure == GROWTH and self.criterion is not None
        return may_fail or self.figure in (PEAK, MEMORY) or self.base != self.head

    def __str__(self) -> str:
        if self.figure == MEMORY:
            where = f"where {self.base_run} was not" if self.status in FAILING else f"as accepted in {self.base_run}"
            return f"out of memory, {where}"
        if self.base is None or self.head is None:
            where = "in this run" if self.head is None else f"in {self.base_run}"
            return f"{self.figure}: not measured {where}"
        unit = " a sample" if self.figure == GROWTH else ""
        text = f"{self.figure} {exact_text(self.head)}{unit}, {_moved(self.base, self.head)} in {self.base_run}"
        if self.criterion is None:
            return f"{text}; noisy, or without a criterion: reported, never fails"
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
    """One key beside its base: its changes; or no base, as it is new; or the reason why nothing was compared."""

    entry: Entry
    base: Located | None
    changes: Sequence[Change] = ()
    reason: str = ""

    @property
    def regressions(self) -> list[Change]:
        """The changes that fail it."""
        return [change for change in self.changes if change.status in FAILING]

    @cached_property
    def difference(self) -> Difference | None:
        """Difference of the peak from its base's, piece by piece; None where it is the same, or where one of
        them was not broken down."""
        base = None if self.base is None else self.base.entry.in_pieces
        head = self.entry.in_pieces
        if base is None or head is None or base.peak_bytes == head.peak_bytes:
            return None
        return difference(base, head)

    @property
    def difference_lines(self) -> list[str]:
        """The same in at most six lines; one that says so, where the peak changed and only one of them is known."""
        if self.base is None:
            return []
        beside = f"{self.entry.name}, beside {self.base.run}: "
        if self.difference is not None:
            title, *lines = self.difference.lines()
            return [f"{beside}{title}", *lines]
        moved = any(change.figure == PEAK and change.base != change.head for change in self.changes)
        known = {"this run": self.entry.in_pieces, self.base.run: self.base.entry.in_pieces}
        without = [name for name, one in known.items() if one is None]
        return [f"{beside}the peak was not broken down in {without[0]}"] if moved and len(without) == 1 else []

    @property
    def status(self) -> str:
        """ "new", "inconclusive", "regressed" (a drift too), "improved", "within" or "same"; "reported" where no
        criterion is about a figure it has."""
        if self.base is None:
            return "new"
        if self.regressions:
            return "regressed"
        decided = [change.status for change in self.changes if change.criterion is not None]
        if self.reason or "not measured" in decided or not self.changes:
            return "inconclusive"
        if not decided:
            return "reported"
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
        return any(one.status not in ("new", "inconclusive", "reported") for one in self.judged)

    @property
    def absent(self) -> list[str]:
        """ "new" where some key has no base, "missing" where some key of the base was not measured."""
        return ["new"] * any(one.base is None for one in self.judged) + ["missing"] * bool(self.gone)


def judge(
    head: Entry, base: Located | None, criteria: Sequence[Criterion] = (), past: Sequence[Located] = ()
) -> Judged:
    """Compare `head` with `base`, and with what `anchor` finds in `past`, the key's entries up to the base, oldest
    first: small steps that each pass may add up to a regression."""
    if base is None:
        return Judged(head, None)
    if OUT_OF_MEMORY in (head.verdict, base.entry.verdict):
        return _out_of_memory(head, base)
    if head.verdict == INCONCLUSIVE or (head.verdict is None and not head.peaks_alone):
        return Judged(head, base, reason=head.reason)
    if base.entry.verdict == INCONCLUSIVE:
        return Judged(head, base, reason=f"{base.run}: {base.entry.reason}")
    own = criteria_of(head, criteria)
    now, before = figures(head), figures(base.entry)
    changes = []
    for figure in dict.fromkeys((*own, *before, *now)):
        criterion = own.get(figure)
        in_both = figure in now and figure in before
        if in_both and not (is_exact(head, figure) and is_exact(base.entry, figure)):
            criterion = None
        if in_both or (criterion is not None and (figure in now or figure in before)):
            change = _change(figure, before.get(figure), now.get(figure), base.run, criterion)
            changes.append(_drift(change, past) or change)
    return Judged(head, base, changes)


def _change(figure: str, base: float | None, head: float | None, run: str, criterion: Criterion | None) -> Change:
    status: Status
    if base is None or head is None:
        status = "not measured"
    elif criterion is None:
        status = "reported"
    elif head > criterion.allowed(base):
        status = "regressed"
    else:
        status = "same" if head == base else "within" if head > base else "improved"
    return Change(figure, base, head, run, criterion, status)


def _drift(change: Change, past: Sequence[Located]) -> Change | None:
    """The change since the anchor, where that fails and the one since the base did not."""
    criterion = change.criterion
    # To the byte there is no drift: each byte was reported.
    if criterion is None or criterion.tolerance == "0" or change.head is None or change.status in FAILING:
        return None
    first = anchor(past, change.figure, criterion)
    if first is None:
        return None
    base = figures(first.entry)[change.figure]
    if change.head <= criterion.allowed(base):
        return None
    return Change(change.figure, base, change.head, first.run, criterion, "drifted")


def anchor(past: Sequence[Located], figure: str, criterion: Criterion) -> Located | None:
    """The entry that drift is counted from: the first, or the last since that was accepted or was over (and was
    reported then). A run that passes never takes its place. Runs without the figure are passed over."""
    latest: Located | None = None
    allowed = Fraction(0)
    for located in past:
        now = figure_in(located.entry, figure)
        if now is not None and (latest is None or located.entry.accepted or now > allowed):
            latest, allowed = located, criterion.allowed(now)
    return latest


def _out_of_memory(head: Entry, base: Located) -> Judged:
    both = base.entry.verdict == head.verdict == OUT_OF_MEMORY
    if both and base.entry.accepted:
        return Judged(head, base, [Change(MEMORY, None, None, base.run, Criterion(MEMORY), "same")])
    if base.entry.verdict == OUT_OF_MEMORY:
        also = " too" if both else ""
        return Judged(head, base, reason=f"{base.run} ran out of memory{also}")
    return Judged(head, base, [Change(MEMORY, None, None, base.run, Criterion(MEMORY), "regressed")])


def matching(entry: Entry, located: Sequence[Located]) -> list[Located]:
    """Those with exactly its key. A replay that ran out of memory did not come to count its samples or to read every
    meter: the facts that it knows must be equal."""
    if entry.verdict != OUT_OF_MEMORY:
        return [one for one in located if one.entry.key == entry.key]
    return [one for one in located if set(entry.key) <= set(one.entry.key)]
