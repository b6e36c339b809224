"""Traces of the same work at any length, from those at some lengths, whose sizes are on a line."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from vram.simulated.trace import Outside, Scratch, ScratchSizes, Trace


@dataclass(eq=False)
class Family:
    """Traces of the same work at any length, of which some sizes grow with it; see `interpolated`.

    Sizes are those of operations, then those of `others` that may differ by length, each by its `places` in `others`.
    """

    least: Trace
    least_length: int
    sizes: npt.NDArray[np.int64]
    slopes: npt.NDArray[np.int64]
    plans: dict[bytes, Any] = field(default_factory=dict)  # of quick replays

    def __post_init__(self) -> None:
        outsides = list(enumerate(_outsides(self.least), start=len(self.least)))
        self.places = {at: place for place, (at, _) in outsides}
        self._grown = [(place, at, other) for place, (at, other) in outsides if self.slopes[place]]
        # Places of sizes that grow; one of all equal lengths of scratch memory, with the rule and where they are.
        scratch = {place: (at, other.sizes) for place, at, other in self._grown if isinstance(other, Scratch)}
        self.growing = np.array([each for each in np.flatnonzero(self.slopes) if each not in scratch], dtype=np.int64)
        alike: dict[Any, tuple[int, ScratchSizes, list[int]]] = {}
        for place, (at, rule) in scratch.items():
            key = rule, int(self.sizes[place]), int(self.slopes[place])
            alike.setdefault(key, (place, rule, []))[2].append(at)
        self.growing_scratch = list(alike.values())

    def __call__(self, length: int) -> OfFamily:
        """The trace at a length."""
        return OfFamily(self, length)

    def sizes_at(self, length: int) -> npt.NDArray[np.int64]:
        """All sizes at a length."""
        return self.sizes + self.slopes * (length - self.least_length)

    def others_at(self, length: int) -> dict[int, Outside | Scratch | str]:
        """Operations that are neither mallocs nor frees of the trace's own blocks, at a length."""
        sizes, others = self.sizes_at(length), dict(self.least.others)
        for place, position, other in self._grown:
            size = int(sizes[place])
            others[position] = replace(other, length=size) if isinstance(other, Scratch) else replace(other, size=size)
        return others


class OfFamily(Trace):
    """A family's trace, whose requests are worked out where they are read: a quick replay needs the length alone."""

    def __init__(self, family: Family, length: int) -> None:
        least = family.least
        self.name, self.streams, self.tags, self.plans = least.name, least.streams, least.tags, {}
        self.family, self.length = family, length

    @cached_property
    def ops(self) -> array[int]:  # type: ignore[override]
        """As of any trace."""
        return array("q", self.family.sizes_at(self.length)[: len(self)].tobytes())

    @cached_property
    def others(self) -> dict[int, Outside | Scratch | str]:  # type: ignore[override]
        """As of any trace."""
        return self.family.others_at(self.length)

    def __len__(self) -> int:
        return len(self.family.least)


def interpolated(known: Mapping[int, Trace]) -> Family | None:
    """Traces of the same work at any length, from those at some lengths; None unless they differ in sizes alone, and
    each size, and each length of scratch memory, is on one line through all of them.

    Sizes that never shrink as the length grows are then right at every length between. Tags are those of the least
    length, and so are the blocks that are freed of named traces.
    """
    lengths = sorted(known)
    least, most = known[lengths[0]], known[lengths[-1]]
    ops = _sizes(least)
    slopes, odd = np.divmod(_sizes(most) - ops, lengths[-1] - lengths[0]) if _alike(least, most) else (ops, True)
    if np.any(odd):
        return None
    for length, trace in known.items():
        if not _alike(least, trace) or np.any(_sizes(trace) != ops + slopes * (length - lengths[0])):
            return None
    return Family(least, lengths[0], ops, slopes)


def _outsides(trace: Trace) -> list[tuple[int, Outside | Scratch]]:
    """Operations that may differ by length beside mallocs: frees of unnamed traces' blocks, and scratch memory."""
    return [
        (at, other)
        for at, other in trace.others.items()
        if isinstance(other, Scratch) or (isinstance(other, Outside) and not other.trace)
    ]


def _sizes(trace: Trace) -> npt.NDArray[np.int64]:
    others = (other.length if isinstance(other, Scratch) else other.size for _, other in _outsides(trace))
    return np.array([*trace.ops, *others], dtype=np.int64)


def _bare(other: Outside | Scratch | str) -> object:
    if isinstance(other, Scratch):
        return other.sizes, other.stream
    if isinstance(other, Outside):
        return "named" if other.trace else (other.back, other.number)
    return other


def _alike(one: Trace, other: Trace) -> bool:
    """Whether two traces differ in sizes alone, and in which blocks of named traces they free."""

    def bare(trace: Trace) -> dict[int, object]:
        return {at: _bare(other) for at, other in trace.others.items()}

    ours, theirs = np.array(one.ops), np.array(other.ops)
    return (
        ours.shape == theirs.shape
        and bool(np.all(np.where((ours > 0) & (theirs > 0), 0, ours) == np.where((ours > 0) & (theirs > 0), 0, theirs)))
        and bare(one) == bare(other)
        and one.streams == other.streams
    )
