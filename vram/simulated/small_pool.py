"""The small blocks of an allocator as plain numbers, and requests played on them.

Small and large requests never share a segment, and a small block is as large as its request, rounded. So what is cached
decides where small requests end, whatever is in use and whatever is large; a cached piece is a number here.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from vram.simulated.allocator import SMALL_SEGMENT_BYTES, Block, CachingAllocator, Segment
from vram.simulated.allocator_figures import FIGURES

# A place is an address: each segment has twice its bytes, so that pieces of two segments never touch. A piece is
# size << SHIFT | place: ascending, pieces are in the order in which the allocator takes them.
STRIDE = 2 * SMALL_SEGMENT_BYTES
SHIFT = 40
_PLACE = (1 << SHIFT) - 1
EARLIER = -(1 << 50)


class Pool(NamedTuple):
    """Cached pieces, ascending, blocks in use by place, and how many segments there are."""

    cached: tuple[int, ...]
    used: dict[int, Block]
    segments: int


class Outcome(NamedTuple):
    """State after requests: cached pieces; the places of those blocks of theirs that are still there, by number; and
    how many of them were played, which is all unless there was no room for a segment."""

    cached: tuple[int, ...]
    places: dict[int, int]
    played: int


def play(
    cached: Iterable[int], codes: Sequence[int], earlier: Iterable[int], new_segment: Callable[[], int | None]
) -> Outcome:
    """Play requests, as rounded bytes; a free is -number - 1 of the request, or EARLIER - bytes: then `earlier` has the
    place of the block. `new_segment` returns the place of one; None where there is no room."""
    free, others = list(cached), iter(earlier)
    sizes = {piece & _PLACE: piece >> SHIFT for piece in free}
    starts = {place + size: place for place, size in sizes.items()}  # by end
    numbered: list[tuple[int, int]] = []
    alive: dict[int, int] = {}
    for played, code in enumerate(codes):
        if code > 0:
            at = bisect_left(free, code << SHIFT)
            if at < len(free):
                piece = free.pop(at)
                place, size = piece & _PLACE, piece >> SHIFT
                del sizes[place]
            elif (segment := new_segment()) is not None:
                place, size = segment, SMALL_SEGMENT_BYTES
                starts[place + size] = place
            else:
                return Outcome(tuple(free), alive, played)
            if size > code:
                rest = place + code
                sizes[rest] = size - code
                starts[place + size] = rest
                insort(free, (size - code) << SHIFT | rest)
            else:
                del starts[place + size]
            alive[len(numbered)] = place
            numbered.append((place, code))
            continue
        if code <= EARLIER:
            place, size = next(others), EARLIER - code
        else:
            place, size = numbered[-code - 1]
            del alive[-code - 1]
        after = sizes.pop(place + size, 0)
        if after:
            del free[bisect_left(free, after << SHIFT | (place + size))]
            size += after
        before = starts.pop(place, None)
        if before is not None:
            del free[bisect_left(free, sizes[before] << SHIFT | before)]
            place, size = before, size + place - before
        sizes[place] = size
        starts[place + size] = place
        insort(free, size << SHIFT | place)
    return Outcome(tuple(free), alive, len(codes))


def lent(allocator: CachingAllocator) -> Pool:
    """The small blocks of an allocator that has one stream."""
    cached: list[int] = []
    used: dict[int, Block] = {}
    segments = allocator.small_segments()
    for number, segment in enumerate(segments):
        for block in segment.blocks():
            place = number * STRIDE + block.address - segment.address
            if block.allocated:
                used[place] = block
            else:
                cached.append(block.size << SHIFT | place)
    for place, block in used.items():
        block.address = place
    return Pool(tuple(sorted(cached)), used, len(segments))


def give_back(allocator: CachingAllocator, pool: Pool) -> None:
    """Let the allocator's small blocks be these; it has as many segments, or fewer.

    Current figures are right then. Peaks are not.
    """
    blocks = dict(pool.used)
    for piece in pool.cached:
        blocks[piece & _PLACE] = Block(0, piece >> SHIFT, None)
    by_segment: list[list[Block]] = [[] for _ in range(pool.segments)]
    for place in sorted(blocks):
        by_segment[place // STRIDE].append(blocks[place])
    segments, cached, figures = iter(allocator.small_segments()), [], dict.fromkeys(FIGURES, 0)
    for content in by_segment:
        segment = next(segments, None) or allocator.new_small_segment()
        _link(segment, content)
        free = [block for block in content if not block.allocated]
        in_use = [block for block in content if block.allocated]
        cached += free
        figures["allocated_bytes"] += sum(block.size for block in in_use)
        figures["requested_bytes"] += sum(block.requested for block in in_use)
        figures["allocations"] += len(in_use)
        figures["reserved_bytes"] += segment.size
        figures["segments"] += 1
        figures["inactive_split_bytes"] += sum(block.size for block in free) if in_use else 0
        figures["inactive_split"] += len(free) if in_use else 0
    allocator.set_small(cached, figures)


def _link(segment: Segment, blocks: list[Block]) -> None:
    address = segment.address
    for before, block, after in zip([None, *blocks], blocks, [*blocks[1:], None], strict=False):
        block.address, block.segment, block.previous, block.next = address, segment, before, after
        address += block.size
    segment.first = blocks[0]
