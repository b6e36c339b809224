"""Evidence for suggestions: what a traced run did, and the peak that it would have had without some of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal

from vram.explanation.allocations import BEFORE, Allocation, Event
from vram.explanation.categories import Categories
from vram.explanation.suggestions.uses import Use, Uses

LEAST_SHARE = 100  # a way out that saves less than so many parts of what the sample makes is not worth a line
Bound = Literal["", "about ", "up to "]


class Curve:
    """Bytes alive during a run, event by event. Positions count events; a storage that is never freed has no end."""

    def __init__(self, start: Iterable[tuple[int, Allocation]], events: Iterable[Event]) -> None:
        self.sizes: dict[int, int] = {key: one.n_bytes for key, one in start}
        self.begins: dict[int, int] = {}
        self.ends: dict[int, int] = {}
        self._start_bytes = sum(self.sizes.values())
        self._changes: list[int] = []
        for position, event in enumerate(events):
            n_bytes = event.allocation.n_bytes
            if event.action == "alloc":
                self.begins[event.key], self.sizes[event.key] = position, n_bytes
            else:
                self.ends[event.key] = position
            self._changes.append(n_bytes if event.action == "alloc" else -n_bytes)
        totals = list(accumulate(self._changes, initial=self._start_bytes))
        self.peak_bytes = max(totals)
        self.peak_at = totals.index(self.peak_bytes)  # so many events came before

    def end(self, key: int) -> int:
        """The position of its end; after the last event where it has none."""
        return self.ends.get(key, len(self._changes))

    def peak_with(self, sizes: Mapping[int, int], ends: Mapping[int, int]) -> int:
        """The peak if storages had other `sizes`, or had ended before the events at the positions `ends`."""
        changes, start_bytes = [*self._changes, 0], self._start_bytes
        for key in {*sizes, *ends}:
            old, new = self.sizes[key], sizes.get(key, self.sizes[key])
            if key in self.begins:
                changes[self.begins[key]] += new - old
            else:
                start_bytes += new - old
            changes[self.end(key)] += old if key in self.ends else 0
            end = ends.get(key, self.ends.get(key))
            if end is not None:
                changes[end] -= new
        return max(accumulate(changes, initial=start_bytes))


@dataclass(frozen=True)
class Found:
    """A pattern that is certain, and its way out in one sentence, without the bytes.

    They are those of the peak with other `sizes` and `ends` of storages, or what `saves_bytes` says. With `bound` it
    is not exact.
    """

    text: str
    sizes: Mapping[int, int] = field(default_factory=dict)
    ends: Mapping[int, int] = field(default_factory=dict)
    bound: Bound = ""
    saves_bytes: int | None = None


@dataclass(frozen=True)
class Evidence:
    """A traced run of one sample. `alive` are the allocations at its peak, by their keys in the trace.

    `peak_within` runs the sample again within a context and returns its traced peak; None where that raises.
    """

    alive: Mapping[int, Allocation]
    curve: Curve
    uses: Uses
    categories: Categories
    log: Sequence[Event]
    peak_within: Callable[[AbstractContextManager[object]], int | None]

    @property
    def own_bytes(self) -> int:
        """Bytes at the peak that the run made itself."""
        return sum(one.n_bytes for one in self.alive.values() if one.run != BEFORE)

    def stays_inside(self, key: int) -> bool:
        """Whether all reads of a storage are known: it ended before the step returned, and nobody saw its bytes."""
        return self.curve.end(key) < self.uses.end and not self.uses[key].hidden

    def instead(self, key: int, source: int) -> dict[int, int] | None:
        """Ends of storages if `source` had been read wherever its copy `key` was; None where it changed meanwhile."""
        use, begin = self.uses[source], self.curve.begins.get(key, -1)
        if use.hidden or use.last_write > begin or source not in self.curve.sizes:
            return None
        until = max(self.curve.end(source), self.curve.end(key))
        return {source: until} if source in self.curve.ends else {}

    def untouched(self, key: int) -> Use | None:
        """The use of a storage of the run that stays inside and that nothing changed; None of any other."""
        use = self.uses[key]
        known = bool(use.maker) and use.last_write < 0 and bool(use.reads) and self.stays_inside(key)
        return use if known else None
