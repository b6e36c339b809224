"""The timeline of a traced run: what is alive after each allocation and free, by category, at a bounded number of
moments."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple, TypeAlias

from vram.explanation.allocations import Allocation
from vram.explanation.categories import Categories
from vram.explanation.groups import shapes
from vram.explanation.traced import TracedRun
from vram.frames import Frame
from vram.summary.breakdown import CATEGORIES, Piece
from vram.summary.timeline import NONE, Made, Timeline

_MOST_MOMENTS = 150
_MOST_LINES = 40
_MOST_FRAMES = 4  # of libraries, and of the project itself
_MOST_TICKS = 40
_Change: TypeAlias = tuple[int, int]  # bytes more or less, key


class _Line(NamedTuple):
    """Allocations that one timeline takes together: those of one stack, operation, dtype, module and category."""

    stack: int
    op: str
    dtype: str
    dimensions: int
    module: str
    category: str


def timeline(traced: TracedRun, sample: int) -> Timeline:
    """The timeline of a run of `sample`."""
    replay = _Replay(traced)
    totals = list(accumulate((n_bytes for n_bytes, _ in replay.changes), initial=replay.start_bytes))
    at, merged = _moments(totals)
    states = replay.states(at)
    numbers = _numbered(states)
    ticks = traced.ticks
    every = max(1, -(-len(ticks) // _MOST_TICKS))
    names = sorted(replay.least, key=_rank)

    def column(of: Iterable[_Line | None]) -> tuple[int, ...]:
        return tuple(NONE if line is None else numbers.get(line, NONE) for line in of)

    return Timeline(
        sample=sample,
        operations=len(replay.changes),
        merged=merged,
        at=tuple(at),
        bytes={name: tuple(state.by_category.get(name, 0) for state in states) for name in names},
        least={name: replay.least[name] for name in names},
        largest={name: column(state.largest.get(name, _NOTHING)[0] for state in states) for name in names},
        largest_bytes={name: tuple(state.largest.get(name, _NOTHING)[1] for state in states) for name in names},
        began=column(state.began for state in states),
        ended=column(state.ended for state in states),
        made=tuple(replay.made(line) for line in numbers),
        ticks=tuple(ticks[::every]),
        ticks_left_out=len(ticks) - len(ticks[::every]),
    )


def _rank(category: str) -> int:
    return CATEGORIES.index(category) if category in CATEGORIES else len(CATEGORIES)


def _moments(totals: Sequence[int]) -> tuple[list[int], int]:
    """Indices to keep, and of how many each two are the lowest and the highest; 1 where all are kept."""
    if len(totals) <= _MOST_MOMENTS:
        return list(range(len(totals))), 1
    each = -(-len(totals) // (_MOST_MOMENTS // 2 - 1))
    kept = {0, len(totals) - 1}
    for begin in range(0, len(totals), each):
        of_bin = range(begin, min(begin + each, len(totals)))
        kept |= {min(of_bin, key=totals.__getitem__), max(of_bin, key=totals.__getitem__)}
    return sorted(kept), each


class _State(NamedTuple):
    """Everything at one moment. `largest` has a line and its bytes for each category."""

    by_category: Mapping[str, int]
    largest: Mapping[str, tuple[_Line, int]]
    began: _Line | None
    ended: _Line | None


_NOTHING: tuple[_Line | None, int] = (None, 0)


class _Replay:
    """Goes through a trace's log."""

    def __init__(self, traced: TracedRun) -> None:
        self._known = traced.known
        self._lines = {key: _line(key, one, traced.categories) for key, one in self._known.items()}
        self._alike: dict[_Line, dict[tuple[int, ...], Allocation]] = defaultdict(dict)  # one of each shape
        for key, one in self._known.items():
            self._alike[self._lines[key]].setdefault(one.shape, one)
        self._start = traced.start
        self.start_bytes = sum(one.n_bytes for one in traced.start.values())
        alive = set(traced.start)
        self.changes: list[_Change] = []
        for event in traced.log:
            n_bytes = self._known[event.key].n_bytes if event.key in self._known else 0
            if event.action == "alloc":
                alive.add(event.key)
                self.changes.append((n_bytes, event.key))
            elif event.key in alive:  # else nobody saw it begin
                alive.remove(event.key)
                self.changes.append((-n_bytes, event.key))
        self.least: dict[str, int] = {}

    def states(self, at: Sequence[int]) -> list[_State]:
        """The states after so many changes each, ascending; afterwards `least` is known."""
        sums: Counter[str] = Counter()
        by_line: dict[str, Counter[_Line]] = defaultdict(Counter)
        sums.update({one.category: 0 for one in self._lines.values()})
        for key, one in self._start.items():
            sums[self._lines[key].category] += one.n_bytes
            by_line[self._lines[key].category][self._lines[key]] += one.n_bytes
        self.least, states, wanted = dict(sums), [], set(at)
        changes: list[tuple[int, _Line | None]] = [(0, None)]
        changes += [(n_bytes, self._lines[key]) for n_bytes, key in self.changes]
        for index, (n_bytes, line) in enumerate(changes):
            if line is not None:
                sums[line.category] += n_bytes
                by_line[line.category][line] += n_bytes
                self.least[line.category] = min(self.least[line.category], sums[line.category])
            if index in wanted:
                largest = {name: max(lines.items(), key=_second) for name, lines in by_line.items() if lines}
                began, ended = (line, None) if n_bytes > 0 else (None, line)
                states.append(_State(dict(sums), {name: top for name, top in largest.items() if top[1]}, began, ended))
        return states

    def made(self, line: _Line) -> Made:
        """The text of a line, and its stack."""
        alike = list(self._alike[line].values())
        first = alike[0]
        piece = Piece(
            0,
            1,
            "" if first.line is None else str(first.line),
            line.op,
            line.dtype,
            shapes(alike),
            line.module,
            line.category,
        )
        outside = [frame for frame in first.frames if not frame.internal]
        kept = [*_few(outside, installed=True), *_few(outside, installed=False)]
        return Made(piece.text, tuple(str(frame) for frame in outside if frame in kept))


def _line(key: int, one: Allocation, categories: Categories) -> _Line:
    # Stacks are one object each, whose hash would take long.
    stack = id(one.frames)
    return _Line(stack, one.op, one.dtype, len(one.shape), categories.path(key, one), categories.of(key, one))


def _few(frames: Sequence[Frame], *, installed: bool) -> list[Frame]:
    return [frame for frame in frames if frame.installed == installed][:_MOST_FRAMES]


def _second(item: tuple[_Line, int]) -> int:
    return item[1]


def _numbered(states: Sequence[_State]) -> dict[_Line, int]:
    """Lines that some moment names, the largest first, with numbers; at most 40."""
    most: Counter[_Line] = Counter()
    for state in states:
        for line, n_bytes in state.largest.values():
            most[line] = max(most[line], n_bytes)
        for event in (state.began, state.ended):
            if event is not None:
                most[event] += 0
    return {line: number for number, (line, _) in enumerate(most.most_common(_MOST_LINES))}
