"""Replays for figures alone, several times as fast: of small requests, those that came before are not played again.

Most requests are small, and the layers of a model make the same ones, one after the other. They are played on numbers
(`vram.simulated.small_pool`), in parts, and a part that comes again where the same is cached ends as it did. Large
requests are played on the allocator. Figures are those of `Replay`, to the byte: the sum over both, operation by
operation, has its peaks where it had them. Where segments would be given back, which both kinds share, the allocator
gets its small blocks back, and the rest is played as by `Replay`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from vram.simulated.allocator import SMALL_BYTES, Block, CachingAllocator, SimulatedOutOfMemory
from vram.simulated.small_pool import EARLIER, STRIDE, Outcome, Pool, give_back, lent, play
from vram.simulated.trace import NOTHING, Outside, Played, Replay, Scratch, Trace

_Ints = npt.NDArray[np.int64]
_UNIT = 512  # all blocks are so many bytes, or a multiple
_MOST_OUTCOMES = 2**14
_MOST_BYTES = 2**40  # of a request
_PART = 256  # requests, where no large malloc ends a part before


@dataclass
class _Steps:
    """A trace as single mallocs and frees, scratch memory too.

    By entry: `position` of the operation that it is part of; bytes that are taken, below 0 given back: `blocks` of
    small requests, `requested` of all. `large`: what to do for each large one, and at which entry. By small request:
    `entries`; `codes`, as `small_pool` has them; what is freed of `earlier` parts: at which request, and the malloc's
    order, or -1 - the place of another trace's block. `parts`: where parts begin, and the end.
    """

    position: _Ints
    blocks: _Ints
    requested: _Ints
    large: list[tuple[int, str, Any, Any]]  # entry, kind, which, bytes
    outside: list[tuple[int, dict[int, Block], int]] = field(default_factory=list)  # entry, owner, number
    entries: _Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    codes: _Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    earlier: tuple[_Ints, _Ints] = field(default_factory=lambda: (np.zeros(0, dtype=np.int64),) * 2)
    parts: list[int] = field(default_factory=list)
    orders: _Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))  # of the first malloc of each part


@dataclass
class _Levels:
    """Allocated bytes after large requests, with small ones as they were at the start, from the next entry on."""

    entries: list[int]
    allocated: list[int]


class QuickReplay(Replay):
    """A `Replay` on an allocator that nobody observes, and of which only the figures in `Played` are read.

    After a play `allocated_bytes`, `requested_bytes` and `reserved_bytes` of the allocator are right too. Blocks in
    `left` have no true address until `drop` is called.
    """

    def __init__(self, allocator: CachingAllocator) -> None:
        super().__init__(allocator)
        self._lent = False  # whether the small blocks are here, and no more the allocator's own
        self._cached: tuple[int, ...] = ()
        self._used: dict[int, Block] = {}
        self._segments = 0
        self._alive: dict[int, int] = {}  # places of this trace's small blocks, by order of mallocs
        self._outcomes: dict[tuple[bytes, tuple[int, ...], tuple[int, ...]], Outcome] = {}

    def drop(self, played: Played | None, which: Any = None) -> None:
        """Free what a play left, as `Replay` does."""
        self._settle()
        super().drop(played, which)

    def _settle(self) -> None:
        """Give the small blocks back to the allocator."""
        if self._lent:
            give_back(self._allocator, Pool(self._cached, self._used, self._segments))
            self._lent = False

    def _run(
        self, trace: Trace, end: int, left: dict[int, Block], start: int = 0, number: int = 0, peak_position: int = 0
    ) -> tuple[int, int, SimulatedOutOfMemory | None]:
        steps = self._steps(trace) if end == len(trace) > 0 and self._is_quick(trace) else None
        if steps is None:
            self._settle()
            return super()._run(trace, end, left)
        requested_bytes, self._alive = self._allocator.requested_bytes, {}
        levels = _Levels([0], [self._allocator.allocated_bytes])
        reached = self._play(trace, steps, levels, left)
        self._take_over(trace, steps, reached, left)
        peak_position = self._set_peaks(steps, reached, levels, requested_bytes)
        if reached == len(steps.position):
            return end, peak_position, None
        self._settle()
        start = int(steps.position[reached])
        return super()._run(trace, end, left, start, sum(op > 0 for op in trace.ops[:start]), peak_position)

    def _is_quick(self, trace: Trace) -> bool:
        """Whether all can be done here; the small blocks are then."""
        allocator = self._allocator
        if trace.streams or allocator.observer or allocator.on_scratch or not allocator.is_plain:
            return False
        if not self._lent:
            self._cached, self._used, self._segments = lent(allocator)
            self._lent = True
        return True

    def _play(self, trace: Trace, steps: _Steps, levels: _Levels, left: dict[int, Block]) -> int:
        """Play small and large requests in order; frees of large blocks wait for the next large malloc.

        Returns the entry before which all was played: the end, or an operation's first, where segments must be given
        back.
        """
        end, waiting, part = len(steps.position), list[Any](), 0
        scratch: dict[int, list[Block]] = {}
        for action in (*steps.large, (end, "end", 0, ())):
            entry, kind, which, sizes = action
            if kind in ("free", "outside", "give"):
                waiting.append(action)
                continue
            stopped = None
            while stopped is None and part < len(steps.parts) - 1 and steps.entries[steps.parts[part]] < entry:
                stopped = self._play_part(steps, part)
                part += 1
            for each in waiting:
                if stopped is None or each[0] < stopped:
                    self._give(each, left, scratch)
                    self._note(levels, each[0])
            waiting.clear()
            if stopped is not None:
                return stopped
            if kind == "end" or not self._allocator.fits(sizes):
                return entry
            if kind == "malloc":
                left[which] = self._allocator.malloc(sizes[0], 0, trace.tags[which])
            else:
                scratch[which] = [self._allocator.malloc(each) for each in sizes if each > SMALL_BYTES]
            self._note(levels, entry)
        return end

    def _note(self, levels: _Levels, entry: int) -> None:
        levels.entries.append(entry + 1)
        levels.allocated.append(self._allocator.allocated_bytes)

    def _give(self, action: tuple[int, str, Any, Any], left: dict[int, Block], scratch: dict[int, list[Block]]) -> None:
        _, kind, which, _ = action
        if kind == "free":
            self._allocator.free(left.pop(which))
        elif kind == "outside":
            owner, number = which
            self._allocator.free(owner.pop(number))
        else:
            for block in scratch.pop(which):
                self._allocator.free(block)

    def _play_part(self, steps: _Steps, part: int) -> int | None:
        """Play a part of the small requests; returns the first entry of the operation for which there is no room."""
        first, after = steps.parts[part : part + 2]
        codes, before = steps.codes[first:after], self._cached
        begin, stop = np.searchsorted(steps.earlier[0], (first, after)).tolist()
        freed = steps.earlier[1][begin:stop].tolist()
        places = tuple([self._alive[each] if each >= 0 else -1 - each for each in freed])
        key = codes.tobytes(), before, places
        known = self._outcomes.get(key)
        made: list[int] = []

        def new_segment() -> int | None:
            if not self._allocator.reserve_small():
                return None
            made.append((self._segments + len(made)) * STRIDE)
            return made[-1]

        found = known or play(before, codes.tolist(), places, new_segment)
        whole = found.played == len(codes)
        if known is None and whole and not made:
            if len(self._outcomes) >= _MOST_OUTCOMES:
                self._outcomes.clear()
            self._outcomes[key] = found
        stopped = None
        if not whole:  # what the operation has done until then is not done
            position = steps.position[steps.entries[first + found.played]]
            stopped = int(np.searchsorted(steps.position, position))
            codes = codes[: int(np.searchsorted(steps.entries, stopped)) - first]
            spare = list(made)
            found = play(before, codes.tolist(), places, lambda: spare.pop(0))
            self._allocator.reserve_small(-len(spare))
            del made[len(made) - len(spare) :]
        self._cached, self._segments = found.cached, self._segments + len(made)
        for each in freed[: int((codes <= EARLIER).sum())]:
            if each >= 0:
                del self._alive[each]
        mallocs_before = int(steps.orders[part])
        self._alive.update({mallocs_before + number: place for number, place in found.places.items()})
        return stopped

    def _steps(self, trace: Trace) -> _Steps | None:
        """The trace, while the small blocks are here; None where it must be played as it is."""
        ops = np.frombuffer(trace.ops, dtype=np.int64)
        mallocs, frees = np.flatnonzero(ops > 0), np.flatnonzero(ops < 0)
        sizes, numbers = ops[mallocs], -ops[frees] - 1
        scratch = _scratch_sizes(trace)
        if scratch is None or np.any(sizes >= _MOST_BYTES):
            return None
        counts = np.ones(len(ops), dtype=np.int64)
        for position, each in scratch.items():
            counts[position] = max(1, 2 * len(each))
        starts = np.cumsum(counts) - counts
        blocks, requested, owners = np.zeros((3, int(counts.sum())), dtype=np.int64)
        steps = _Steps(np.repeat(np.arange(len(ops)), counts), blocks, requested, [])
        rounded = -(-sizes // _UNIT) * _UNIT
        small, taken_at, freed_at = rounded <= SMALL_BYTES, starts[mallocs], starts[frees]
        small_frees = small[numbers]
        requested[taken_at], requested[freed_at] = sizes, -sizes[numbers]
        blocks[taken_at[small]] = rounded[small]
        blocks[freed_at[small_frees]] = -rounded[numbers[small_frees]]
        owners[freed_at[small_frees]] = taken_at[numbers[small_frees]]  # entries of the mallocs
        for position, each in scratch.items():
            _add_scratch(steps, owners, int(starts[position]), each)
        large = zip(taken_at[~small].tolist(), np.flatnonzero(~small).tolist(), sizes[~small].tolist(), strict=True)
        steps.large += [(entry, "malloc", number, (size,)) for entry, number, size in large]
        large_frees = zip(freed_at[~small_frees].tolist(), numbers[~small_frees].tolist(), strict=True)
        steps.large += [(entry, "free", number, ()) for entry, number in large_frees]
        if not self._add_outside(trace, steps, owners, starts):
            return None
        _cut(steps, owners, starts)
        return steps

    def _add_outside(self, trace: Trace, steps: _Steps, owners: _Ints, starts: _Ints) -> bool:
        """Add frees of other traces' blocks, and bring large requests into their order; False where one is not there,
        which `Replay` says."""
        seen = set()
        for position, other in trace.others.items():
            if not isinstance(other, Outside):
                continue
            owner, entry = self._owner(other), int(starts[position])
            block, which = owner.get(other.number), (id(owner), other.number)
            if block is None or block.requested != other.size or which in seen:
                return False
            seen.add(which)
            steps.requested[entry] = -block.requested
            if block.size <= SMALL_BYTES:
                steps.blocks[entry], owners[entry] = -block.size, -1 - block.address
                steps.outside.append((entry, owner, other.number))
            else:
                steps.large.append((entry, "outside", (owner, other.number), ()))
        steps.large.sort(key=lambda each: each[0])
        return True

    def _take_over(self, trace: Trace, steps: _Steps, reached: int, left: dict[int, Block]) -> None:
        """Let the small blocks in use be those after entry `reached`; `left` gets those that the trace has left."""
        for entry, owner, number in steps.outside:
            if entry < reached:
                block = owner.pop(number)
                block.allocated = False
                del self._used[block.address]
        if self._alive:
            entries = steps.entries[steps.codes > 0]
            mallocs = np.flatnonzero(np.frombuffer(trace.ops, dtype=np.int64) > 0)
            for order, place in self._alive.items():
                entry = int(entries[order])
                number = int(np.searchsorted(mallocs, steps.position[entry]))
                block = self._used[place] = left[number] = Block(place, int(steps.blocks[entry]), None)
                block.requested, block.allocated, block.tag = int(steps.requested[entry]), True, trace.tags[number]
            ordered = sorted(left.items())
            left.clear()
            left.update(ordered)
        small = steps.entries[: np.searchsorted(steps.entries, reached)]
        self._allocator.change_small(int(steps.blocks[small].sum()), int(steps.requested[small].sum()))

    def _set_peaks(self, steps: _Steps, reached: int, levels: _Levels, requested_bytes: int) -> int:
        """Set the allocator's peaks to those until entry `reached`; returns the operation of the first highest one."""
        small = np.concatenate(([0], np.cumsum(steps.blocks[:reached])))
        highest = np.maximum.reduceat(small, levels.entries) + levels.allocated
        interval = int(np.argmax(highest))
        first, after = [*levels.entries, reached + 1][interval : interval + 2]
        at = first + int(np.argmax(small[first:after]))
        requested = np.cumsum(steps.requested[:reached])
        requested_peak_bytes = requested_bytes + max(0, int(requested.max(initial=0)))
        self._allocator.set_peaks(int(highest[interval]), requested_peak_bytes)
        return int(steps.position[at - 1]) if at else 0


def _scratch_sizes(trace: Trace) -> dict[int, list[int]] | None:
    """Bytes of scratch memory by position; None for a trace with what is neither that nor a free."""
    sizes = {}
    for position, other in trace.others.items():
        if isinstance(other, Scratch):
            sizes[position] = [each for each in other.sizes.sizes_at(other.length) if each]
            if other.stream or any(not 0 < each < _MOST_BYTES for each in sizes[position]):
                return None
        elif not isinstance(other, Outside) and other != NOTHING:
            return None
    return sizes


def _add_scratch(steps: _Steps, owners: _Ints, start: int, sizes: list[int]) -> None:
    """Add mallocs of scratch memory from entry `start` on, and after them the frees; all large ones are taken first,
    which leaves the sum of all as it is."""
    for entry, size in enumerate(sizes, start=start):
        steps.requested[entry], steps.requested[entry + len(sizes)] = size, -size
        rounded = -(-size // _UNIT) * _UNIT
        if rounded <= SMALL_BYTES:
            steps.blocks[entry], steps.blocks[entry + len(sizes)] = rounded, -rounded
            owners[entry + len(sizes)] = entry
    if max(sizes, default=0) > SMALL_BYTES:
        steps.large += (start, "take", start, tuple(sizes)), (start + len(sizes), "give", start, ())


def _cut(steps: _Steps, owners: _Ints, starts: _Ints) -> None:
    """Number the small requests, in parts that end where memory for large ones is taken.

    `owners`: entries of the mallocs that frees belong to; below 0: -1 - the place of another trace's block.
    """
    entries = steps.entries = np.flatnonzero(steps.blocks)
    sizes, owner = steps.blocks[entries], owners[entries]
    taken, count = sizes > 0, len(entries)
    large = np.array([entry for entry, kind, *_ in steps.large if kind in ("malloc", "take")], dtype=np.int64)
    long = starts[steps.position[entries[_PART::_PART]]]  # whole operations
    cuts = np.unique(np.searchsorted(entries, np.concatenate((large, long))))
    parts = np.concatenate(([0], cuts[(cuts > 0) & (cuts < count)], [count])) if count else np.zeros(1, dtype=np.int64)
    steps.parts = parts.tolist()
    part = np.searchsorted(parts, np.arange(count), side="right") - 1
    order = np.cumsum(taken) - 1
    steps.orders = np.concatenate(([0], order + 1))[parts]  # of the first malloc of each part
    own = ~taken & (owner >= 0)
    malloc = np.searchsorted(entries, owner[own])
    within = np.zeros(count, dtype=bool)
    within[own] = part[malloc] == part[own]
    freed = np.where(owner < 0, owner, 0)
    freed[own] = order[malloc]
    steps.codes = np.where(taken, sizes, np.where(within, steps.orders[part] - freed - 1, EARLIER + sizes))
    steps.earlier = np.flatnonzero(~taken & ~within), freed[~taken & ~within]
