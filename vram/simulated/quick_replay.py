"""Replays for figures alone, many times as fast: what came before is not played again.

Most requests are small, and the layers of a model make the same ones, one after the other. Small ones are played in
parts, and a part that comes again where the same is cached ends as it did; large ones are played each time. Figures are
those of `Replay`, to the byte: the sum over small and large blocks, operation by operation, has its peaks where it had
them. Where segments would be given back, which both kinds share, or too many pieces are cached to be compared, the
allocator gets its blocks back, and the trace is played as by `Replay`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from vram.simulated.allocator import Block, CachingAllocator, SimulatedOutOfMemory, segment_bytes
from vram.simulated.numeric_pool import KEPT, UNIT, Located, NumericPool, give_back, lent, next_place, play
from vram.simulated.peak_blocks import Sized, in_use, watched
from vram.simulated.replay_plan import Ints, Plan, Requests, planned
from vram.simulated.trace import Played, Replay, Scratch, Trace

_MOST_CACHED = 512  # small pieces: with more, a part takes longer than its requests one by one
_MOST_KEPT = 2**20  # pieces, of all outcomes: some 50 MB
_NOWHERE = -1, 0  # of blocks that are not there yet
_Cached = tuple[int, ...]
_Key = tuple[bytes, _Cached, tuple[Located, ...]]


class _Freed(NamedTuple):
    """A block of another trace that is freed, with its owner and its number there."""

    owner: dict[int, Block]
    number: int
    block: Block

    @property
    def located(self) -> Located:
        """Its place and size."""
        return self.block.address, self.block.size // UNIT


class _Outcome(NamedTuple):
    """A pool after requests: cached pieces, the requests' blocks by number, and segments."""

    cached: _Cached
    blocks: list[Located]
    segments: list[Located]


class QuickReplay(Replay):
    """A `Replay` on an allocator that nobody observes, and of which only the figures in `Played` are read.

    After a play `allocated_bytes`, `requested_bytes` and `reserved_bytes` of the allocator are right too. Blocks in
    `left` have no true address until `drop` is called.
    """

    def __init__(self, allocator: CachingAllocator, *, named: bool = False) -> None:
        """`named`: `at_peak` is wanted."""
        super().__init__(allocator)
        self.named = named
        # Bytes and tags of all blocks in use at the peak of the last play; to be called before the next, or a drop.
        self.at_peak: Callable[[], list[Sized]] = list
        self._pools: tuple[NumericPool, NumericPool] | None = None  # large and small, while they are lent
        # Keys: a part of small requests, what is cached, and the earlier blocks that it frees. Values: what is cached
        # then, and the blocks that the part keeps.
        self._outcomes: dict[_Key, tuple[_Cached, list[Located]]] = {}
        self._n_kept = 0  # pieces and blocks in them

    def drop(self, played: Played | None, which: Callable[[Block], bool] | None = None) -> None:
        """Free what a play left, as `Replay` does."""
        self._settle()
        super().drop(played, which)

    def _settle(self) -> None:
        """Give the blocks back to the allocator."""
        if self._pools is not None:
            for pool in self._pools:
                give_back(self._allocator, pool)
            self._pools = None

    def in_use(self) -> list[Sized]:
        """Bytes and tags of all blocks that are in use now."""
        pools = self._pools
        if pools is None:
            return in_use(self._allocator)
        return [(block.size, block.tag) for pool in pools for block in pool.used.values()]

    def _run(self, trace: Trace, end: int, left: dict[int, Block]) -> tuple[int, int, SimulatedOutOfMemory | None]:
        peak_position = self._play(trace, left) if end == len(trace) > 0 else None
        if peak_position is not None:
            return end, peak_position, None
        self._settle()
        with watched(self._allocator) if self.named else nullcontext(list) as self.at_peak:
            return super()._run(trace, end, left)

    def _play(self, trace: Trace, left: dict[int, Block]) -> int | None:
        """Play a whole trace; returns where its peak was. None, with nothing done, where `Replay` must play it, or must
        say what it can't free."""
        known = planned(trace) if self._can_lend(trace) else None
        if known is None:
            return None
        plan, requested = known
        if self._pools is None:
            self._pools = lent(self._allocator, small=False), lent(self._allocator, small=True)
        freed = self._freed(plan, requested)
        if freed is None:
            return None
        units = -(-np.abs(requested) // UNIT)
        outcomes = list[_Outcome]()
        for pool, requests in zip(self._pools, plan.pools, strict=True):
            if (outcome := self._play_pool(pool, requests, units, freed)) is None:
                return None
            outcomes.append(outcome)
        new = [each.segments[len(pool.segments) :] for pool, each in zip(self._pools, outcomes, strict=True)]
        reserved_bytes = sum(size for segments in new for _, size in segments) * UNIT
        if not self._allocator.has_room(reserved_bytes):
            return None
        large = plan.pools[0]
        units[large.entries] = np.array([size for _, size in outcomes[0].blocks], dtype=np.int64)[large.blocks]
        self._take_over(trace, plan, requested, outcomes, freed, left)
        top = self._count(requested, np.sign(requested) * units * UNIT, reserved_bytes)
        if self.named:
            self.at_peak = partial(self._at_peak, trace, plan, units * UNIT, freed, set(left.values()), top)
        return int(plan.position[top]) if top >= 0 else 0

    def _can_lend(self, trace: Trace) -> bool:
        allocator = self._allocator
        return not trace.streams and not allocator.observer and not allocator.on_scratch and allocator.is_plain

    def _freed(self, plan: Plan, requested: Ints) -> list[_Freed] | None:
        """Blocks of other traces that a trace frees; None where one is not there."""
        freed = list[_Freed]()
        for other, n_bytes in zip(plan.outside, requested[plan.outside_entries].tolist(), strict=True):
            owner = self._owner(other)
            block = owner.get(other.number)
            if block is None or block.requested != -n_bytes:
                return None
            freed.append(_Freed(owner, other.number, block))
        return freed if len({id(each.block) for each in freed}) == len(freed) else None

    def _play_pool(self, pool: NumericPool, requests: Requests, units: Ints, freed: list[_Freed]) -> _Outcome | None:
        """Play the requests of one pool, as if there were room for all segments that they need. None where too many
        small pieces are cached."""
        codes, cached, segments = requests.codes.copy(), pool.cached, list(pool.segments)
        codes[requests.taken] = units[requests.entries[requests.taken]]
        data, large_bytes = codes.tobytes(), self._allocator.settings.large_segment_bytes
        blocks: list[Located] = [freed[each].located for each in requests.outside]
        blocks += [_NOWHERE] * len(requests.taken)

        def new_segment(size: int) -> Located:
            segments.append((next_place(segments), segment_bytes(size * UNIT, large_bytes) // UNIT))
            return segments[-1]

        for first, after, earlier, kept, numbers in requests.parts:
            if pool.small and len(cached) > _MOST_CACHED:
                return None
            before = tuple([blocks[number] for number in earlier])
            key = data[8 * first : 8 * after], cached, before
            known = self._outcomes.get(key)
            if known is None:
                free, numbered, count = list(cached), list(before), len(segments)
                play(free, codes[first:after].tolist(), numbered, KEPT[pool.small], new_segment)
                known = tuple(free), [numbered[each] for each in kept]
                if pool.small and len(segments) == count:
                    self._keep(key, known)
            cached, there = known
            for number, block in zip(numbers, there, strict=True):
                blocks[number] = block
        return _Outcome(cached, blocks, segments)

    def _keep(self, key: _Key, outcome: tuple[_Cached, list[Located]]) -> None:
        self._n_kept += len(key[1]) + len(outcome[0]) + len(outcome[1])
        if self._n_kept > _MOST_KEPT:
            self._outcomes.clear()
            self._n_kept = 0
        self._outcomes[key] = outcome

    def _take_over(
        self,
        trace: Trace,
        plan: Plan,
        requested: Ints,
        outcomes: list[_Outcome],
        freed: list[_Freed],
        left: dict[int, Block],
    ) -> None:
        """Let the pools be as they are after the trace; `left` gets the blocks that it leaves."""
        assert self._pools is not None
        kept: list[tuple[int, Block]] = []
        for pool, requests, outcome in zip(self._pools, plan.pools, outcomes, strict=True):
            pool.cached, pool.segments = outcome.cached, outcome.segments
            for each in requests.outside:
                del pool.used[freed[each].block.address]
            n_bytes = requested[requests.left_entries].tolist()
            for number, in_trace, requested_bytes in zip(requests.left, requests.numbers, n_bytes, strict=True):
                place, size = outcome.blocks[number]
                block = pool.used[place] = Block(place, size * UNIT, None)
                block.requested, block.allocated, block.tag = requested_bytes, True, trace.tags[in_trace]
                kept.append((in_trace, block))
        for owner, number, block in freed:
            del owner[number]
            block.allocated = False
        left.update(sorted(kept))

    def _count(self, requested: Ints, allocated: Ints, reserved_bytes: int) -> int:
        """Count bytes that a trace has taken, below 0 given back, by entry, and those of new segments; returns the
        entry that led to the peak, -1 where that was before all."""
        allocator = self._allocator
        allocated_sums, requested_sums = np.cumsum(allocated), np.cumsum(requested)
        top = int(np.argmax(allocated_sums))
        added_bytes, requested_bytes = max(0, int(allocated_sums[top])), max(0, int(requested_sums.max()))
        peaks = allocator.allocated_bytes + added_bytes, allocator.requested_bytes + requested_bytes
        allocator.count(int(allocated_sums[-1]), int(requested_sums[-1]), reserved_bytes)
        allocator.set_peaks(*peaks)
        return top if added_bytes else -1

    def _at_peak(
        self, trace: Trace, plan: Plan, n_bytes: Ints, freed: list[_Freed], left: set[Block], top: int
    ) -> list[Sized]:
        """Bytes and tags of the blocks in use after entry `top` of the last play."""
        assert self._pools is not None
        there = [(each.size, each.tag) for pool in self._pools for each in pool.used.values() if each not in left]
        there += [
            (each.block.size, each.block.tag)
            for each, entry in zip(freed, plan.outside_entries.tolist(), strict=True)
            if entry > top
        ]
        for requests in plan.pools:
            taken, given = requests.lives
            entries = taken[(taken <= top) & (given > top)]
            numbers, positions = plan.numbers[entries].tolist(), plan.position[entries].tolist()
            tags = (_tag(trace, *place) for place in zip(numbers, positions, strict=True))
            there += zip(n_bytes[entries].tolist(), tags, strict=True)
        return there


def _tag(trace: Trace, number: int, position: int) -> Any:
    """The tag of a malloc, by its number, -1 for one of scratch memory, and the operation that it is part of."""
    if number >= 0:
        return trace.tags[number]
    scratch = trace.others[position]
    assert isinstance(scratch, Scratch)
    return scratch.tag
