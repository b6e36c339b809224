"""Replays for figures alone, many times as fast: of small requests, those that came before are not played again.

Most requests are small, and the layers of a model make the same ones, one after the other. They are played on numbers
(`vram.simulated.small_pool`), in parts, and a part that comes again where the same is cached ends as it did; so does a
whole trace. Large requests are played on the allocator. Figures are those of `Replay`, to the byte: the sum over both,
operation by operation, has its peaks where it had them. Where segments would be given back, which both kinds share, the
allocator gets its small blocks back, and the rest is played as by `Replay`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vram.simulated.allocator import SMALL_BYTES, Block, CachingAllocator, SimulatedOutOfMemory
from vram.simulated.replay_plan import WAITING, Ints, Plan, planned
from vram.simulated.small_pool import EARLIER, STRIDE, Outcome, Pool, give_back, lent, play
from vram.simulated.trace import Played, Replay, Trace

_MOST_OUTCOMES = 2**14


@dataclass
class _Playing:
    """A trace that is played: its plan, bytes by entry, and those of its large mallocs; the blocks of other traces that
    it frees, with their owners and numbers there; what it has left; allocated bytes, with small blocks as they were at
    the start, at each level of the plan."""

    trace: Trace
    plan: Plan
    requested: Ints
    large: list[int]
    outside: list[tuple[dict[int, Block], int, Block]]
    left: dict[int, Block]
    allocated: list[int]
    scratch: dict[int, list[Block]] = field(default_factory=dict)


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

    @classmethod
    def after(cls, replay: Replay) -> QuickReplay:
        """The replay that goes on where another is."""
        quick = cls(replay._allocator)
        quick._played, quick._named = replay._played, replay._named
        return quick

    def drop(self, played: Played | None, which: Callable[[Block], bool] | None = None) -> None:
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
        playing = self._playing(trace, left) if end == len(trace) > 0 else None
        if playing is None:
            self._settle()
            return super()._run(trace, end, left)
        requested_bytes, self._alive = self._allocator.requested_bytes, {}
        reached = self._play(playing)
        self._take_over(playing, reached)
        peak_position = self._set_peaks(playing, reached, requested_bytes)
        if reached == len(playing.plan.position):
            return end, peak_position, None
        self._settle()
        start = int(playing.plan.position[reached])
        return super()._run(trace, end, left, start, sum(op > 0 for op in trace.ops[:start]), peak_position)

    def _playing(self, trace: Trace, left: dict[int, Block]) -> _Playing | None:
        """The plan by which to play a trace here; None where it must be played as it is, or where a block that it frees
        is not there, which `Replay` says."""
        allocator = self._allocator
        if trace.streams or allocator.observer or allocator.on_scratch or not allocator.is_plain:
            return None
        if (known := planned(trace)) is None:
            return None
        plan, requested, large = known
        if not self._lent:
            self._cached, self._used, self._segments = lent(allocator)
            self._lent = True
        outside = list[tuple[dict[int, Block], int, Block]]()
        for entry, other, _ in plan.outside:
            owner = self._owner(other)
            block = owner.get(other.number)
            if block is None or block.requested != -requested[entry]:
                return None
            outside.append((owner, other.number, block))
        if len({id(block) for *_, block in outside}) < len(outside):
            return None
        return _Playing(trace, plan, requested, large, outside, left, [allocator.allocated_bytes])

    def _play(self, playing: _Playing) -> int:
        """Play a trace; returns the entry before which all was played: the end, or an operation's first, where segments
        must be given back."""
        plan, cached, segments = playing.plan, self._cached, self._segments
        kinds = zip(plan.outside, playing.outside, strict=True)
        places = tuple([block.address if is_small else 0 for (_, _, is_small), (_, _, block) in kinds])
        known = plan.outcomes.get((cached, places))
        if known is None:
            reached = self._play_both(playing, places)
            if reached == len(plan.position) and self._segments == segments:
                if len(plan.outcomes) >= _MOST_OUTCOMES:
                    plan.outcomes.clear()
                plan.outcomes[cached, places] = Outcome(self._cached, dict(self._alive), reached)
            return reached
        reached = self._play_large(playing)
        if reached == len(plan.position):
            self._cached, self._alive = known.cached, dict(known.places)
        else:
            self._play_parts(playing, places, 0, reached)
        return reached

    def _play_large(self, playing: _Playing) -> int:
        """Play large requests, where small ones need no segment; returns as `_play` does."""
        large = iter(playing.large)
        for action in playing.plan.large:
            if action[1] in WAITING:
                self._give(action, playing)
            elif not self._take(action, playing, large):
                return action[0]
        return len(playing.plan.position)

    def _play_both(self, playing: _Playing, places: tuple[int, ...]) -> int:
        """Play small and large requests in order; frees of large blocks wait for the next large malloc. Returns as
        `_play` does."""
        end, waiting, part, large = len(playing.plan.position), list[Any](), 0, iter(playing.large)
        for action in (*playing.plan.large, (end, "end", 0, ())):
            if action[1] in WAITING:
                waiting.append(action)
                continue
            part, stopped = self._play_parts(playing, places, part, action[0])
            for each in waiting:
                if stopped is None or each[0] < stopped:
                    self._give(each, playing)
            waiting.clear()
            if stopped is not None:
                return stopped
            if action[1] == "end" or not self._take(action, playing, large):
                return action[0]
        return end

    def _take(self, action: tuple[int, str, int, tuple[int, ...]], playing: _Playing, large: Any) -> bool:
        """Meet a large request; False, with nothing done, where segments must be given back."""
        _, kind, which, sizes = action
        allocator = self._allocator
        if kind == "malloc":
            size = next(large)
            if not allocator.fits((size,)):
                return False
            playing.left[which] = allocator.malloc(size, 0, playing.trace.tags[which])
        else:
            if not allocator.fits(sizes):
                return False
            playing.scratch[which] = [allocator.malloc(each) for each in sizes if each > SMALL_BYTES]
        playing.allocated.append(allocator.allocated_bytes)
        return True

    def _give(self, action: tuple[int, str, int, tuple[int, ...]], playing: _Playing) -> None:
        _, kind, which, _ = action
        if kind == "free":
            self._allocator.free(playing.left.pop(which))
        elif kind == "outside":
            owner, number, _ = playing.outside[which]
            self._allocator.free(owner.pop(number))
        else:
            for block in playing.scratch.pop(which):
                self._allocator.free(block)
        playing.allocated.append(self._allocator.allocated_bytes)

    def _play_parts(self, playing: _Playing, places: tuple[int, ...], part: int, entry: int) -> tuple[int, int | None]:
        """Play parts of the small requests that begin before an entry. Returns the next part, and the first entry of
        the operation for which there is no room."""
        plan, stopped = playing.plan, None
        while stopped is None and part < len(plan.parts) - 1 and plan.entries[plan.parts[part]] < entry:
            stopped = self._play_part(plan, places, part)
            part += 1
        return part, stopped

    def _play_part(self, plan: Plan, outside: tuple[int, ...], part: int) -> int | None:
        """Play a part of the small requests; returns the first entry of the operation for which there is no room."""
        first, after = plan.parts[part : part + 2]
        codes, before = plan.codes[first:after], self._cached
        begin, stop = np.searchsorted(plan.earlier[0], (first, after)).tolist()
        freed = plan.earlier[1][begin:stop].tolist()
        places = tuple([self._alive[each] if each >= 0 else outside[-1 - each] for each in freed])
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
            position = plan.position[plan.entries[first + found.played]]
            stopped = int(np.searchsorted(plan.position, position))
            codes = codes[: int(np.searchsorted(plan.entries, stopped)) - first]
            spare = list(made)
            found = play(before, codes.tolist(), places, lambda: spare.pop(0))
            self._allocator.reserve_small(-len(spare))
            del made[len(made) - len(spare) :]
        self._cached, self._segments = found.cached, self._segments + len(made)
        for each in freed[: int((codes <= EARLIER).sum())]:
            if each >= 0:
                del self._alive[each]
        mallocs_before = int(plan.orders[part])
        self._alive.update({mallocs_before + number: place for number, place in found.places.items()})
        return stopped

    def _take_over(self, playing: _Playing, reached: int) -> None:
        """Let the small blocks in use be those after entry `reached`; `left` gets those that the trace has left."""
        plan, trace, left = playing.plan, playing.trace, playing.left
        for (entry, _, is_small), (owner, number, block) in zip(plan.outside, playing.outside, strict=True):
            if is_small and entry < reached:
                del owner[number], self._used[block.address]
                block.allocated = False
        if self._alive:
            taken = plan.entries[plan.codes > 0]
            entries = taken[list(self._alive)]
            numbers = np.searchsorted(plan.mallocs, plan.position[entries]).tolist()
            sizes, requested = plan.blocks[entries].tolist(), playing.requested[entries].tolist()
            for place, number, size, n_bytes in zip(self._alive.values(), numbers, sizes, requested, strict=True):
                block = self._used[place] = left[number] = Block(place, size, None)
                block.requested, block.allocated, block.tag = n_bytes, True, trace.tags[number]
            ordered = sorted(left.items())
            left.clear()
            left.update(ordered)
        small = plan.entries[: np.searchsorted(plan.entries, reached)]
        self._allocator.change_small(int(plan.small[reached]), int(playing.requested[small].sum()))

    def _set_peaks(self, playing: _Playing, reached: int, requested_bytes: int) -> int:
        """Set the allocator's peaks to those until entry `reached`; returns the operation of the first highest one."""
        plan, allocated = playing.plan, playing.allocated
        small, highest = plan.small, plan.highest
        if reached < len(plan.position):
            small = small[: reached + 1]
            highest = np.maximum.reduceat(small, plan.levels[: len(allocated)])
        highest = highest + allocated
        interval = int(np.argmax(highest))
        first, after = [*plan.levels[: len(allocated)], reached + 1][interval : interval + 2]
        at = first + int(np.argmax(small[first:after]))
        requested = np.cumsum(playing.requested[:reached])
        requested_peak_bytes = requested_bytes + max(0, int(requested.max(initial=0)))
        self._allocator.set_peaks(int(highest[interval]), requested_peak_bytes)
        return int(plan.position[at - 1]) if at else 0
