"""A bound of what segments come to while traces are played, without a play: a card with as much room is never full.

Before the allocator runs out of memory it gives back every segment without a block in use. So each segment that is left
has one, and is no larger than the largest request needs. Blocks are counted here; where they are does not matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from vram.simulated.allocator import SMALL_BYTES, SMALL_SEGMENT_BYTES, segment_bytes
from vram.simulated.numeric_pool import UNIT
from vram.simulated.trace import Outside, Scratch, Trace
from vram.simulated.trace_family import Family


@dataclass
class SegmentBound:
    """The most blocks in use while traces are played one after the other on an empty card with default settings: small
    ones, large ones, and those of scratch memory, which may be either; and the largest request."""

    alive: int = 0  # at the end
    small: int = 0
    large: int = 0
    scratch: int = 0
    request_bytes: int = 0

    def add(self, traces: Iterable[Trace]) -> None:
        """Count traces that come next."""
        for trace in traces:
            self._count(trace)

    def add_family(self, family: Family, lengths: Sequence[int]) -> bool:
        """Count a family's traces that come next, of ascending lengths. False where the first and the last do not say
        it of all: sizes shrink, or a trace does not leave as many blocks as it found."""
        before = self.alive
        self.add((family(lengths[0]), family(lengths[-1])))
        for place, rule, _ in family.growing_scratch:
            start, slope = int(family.sizes[place]), int(family.slopes[place])
            for length in lengths:
                self._count_scratch(rule.sizes_at(start + slope * (length - family.least_length)))
        return self.alive == before and not np.any(family.slopes < 0)

    def n_bytes(self, setup_bytes: int, large_segment_bytes: int) -> int:
        """All segments together: `setup_bytes` of those that were there before the traces, and one for each block."""
        most_bytes = segment_bytes(self.request_bytes + UNIT, large_segment_bytes)
        large_bytes = (self.large + self.scratch) * max(most_bytes, large_segment_bytes)
        return setup_bytes + large_bytes + (self.small + self.scratch) * SMALL_SEGMENT_BYTES

    def _count(self, trace: Trace) -> None:
        ops = np.frombuffer(trace.ops, dtype=np.int64)
        sizes = ops[ops > 0]
        change, is_large = np.sign(ops), ops > SMALL_BYTES
        is_large[ops < 0] = sizes[-ops[ops < 0] - 1] > SMALL_BYTES
        for position, other in trace.others.items():
            if isinstance(other, Outside):
                change[position], is_large[position] = -1, other.size > SMALL_BYTES
            elif isinstance(other, Scratch):
                self._count_scratch(other.sizes.sizes_at(other.length))
        large, small = np.cumsum(np.where(is_large, change, 0)), np.cumsum(np.where(is_large, 0, change))
        self.large = max(self.large, self.alive + int(large.max(initial=0)))
        self.small = max(self.small, self.alive + int(small.max(initial=0)))
        self.alive += int(change.sum())
        self.request_bytes = max(self.request_bytes, int(sizes.max(initial=0)))

    def _count_scratch(self, sizes: Sequence[int]) -> None:
        self.scratch = max(self.scratch, len(sizes))
        self.request_bytes = max(self.request_bytes, *sizes, 0)


def new_segments_bytes(trace: Trace, large_segment_bytes: int) -> int:
    """Bytes of segments that a trace's requests need at most: a new one for each."""
    scratch = (other.sizes.sizes_at(other.length) for other in trace.others.values() if isinstance(other, Scratch))
    sizes = [*(op for op in trace.ops if op > 0), *chain.from_iterable(scratch)]
    return sum(segment_bytes(-(-size // UNIT) * UNIT, large_segment_bytes) for size in sizes if size)
