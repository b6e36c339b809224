"""The blocks of an allocator's pool as plain numbers, and requests played on them.

Small and large requests never share a segment. So what is cached in a pool decides where its requests end, whatever is
in use and whatever the other pool has; a cached piece is a number here.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from vram.simulated.allocator import SMALL_BYTES, Block, CachingAllocator, Segment
from vram.simulated.allocator_figures import FIGURES

# All sizes here are units: each block is so many bytes, or a multiple.
UNIT = 512
# A place is an address in units, counted from 0, with one unit between two segments, so that their pieces never touch.
# A piece is size << SHIFT | place: ascending, pieces are in the order in which the allocator takes them.
SHIFT = 60
PLACE = (1 << SHIFT) - 1
KEPT = SMALL_BYTES // UNIT, 0  # of a piece, large or small: the most that is left over and not split off

Located = tuple[int, int]  # a block or a segment: its place, and its size in units


@dataclass
class NumericPool:
    """Cached pieces, ascending; blocks in use, by place; segments, ascending, of which the allocator has the first."""

    small: bool
    cached: tuple[int, ...]
    used: dict[int, Block]
    segments: list[Located]


def next_place(segments: Sequence[Located]) -> int:
    """Where the next segment begins."""
    return sum(segments[-1]) + 1 if segments else 0


def play(
    free: list[int], codes: Iterable[int], numbered: list[Located], kept: int, new_segment: Callable[[int], Located]
) -> None:
    """Play requests, in units; a free is ~number of the block in `numbered`, where those of the requests come to be.

    `free`: the cached pieces. `kept`: the most that is left over of a piece and not split off. `new_segment` makes one
    for a request.
    """
    sizes = {piece & PLACE: piece >> SHIFT for piece in free}
    starts = {place + size: place for place, size in sizes.items()}  # by end
    for code in codes:
        if code > 0:
            at = bisect_left(free, code << SHIFT)
            if at < len(free):
                piece = free.pop(at)
                place, size = piece & PLACE, piece >> SHIFT
                del sizes[place]
            else:
                place, size = new_segment(code)
                starts[place + size] = place
            if size - code > kept:
                rest = place + code
                sizes[rest] = size - code
                starts[place + size] = rest
                insort(free, (size - code) << SHIFT | rest)
                size = code
            else:
                del starts[place + size]
            numbered.append((place, size))
            continue
        place, size = numbered[~code]
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


def lent(allocator: CachingAllocator, *, small: bool) -> NumericPool:
    """A pool of an allocator that has one stream; its blocks in use have their places as addresses."""
    cached, used, segments = list[int](), dict[int, Block](), list[Located]()
    for segment in allocator.segments_of(small):
        start = next_place(segments)
        segments.append((start, segment.size // UNIT))
        for block in segment.blocks():
            place = start + (block.address - segment.address) // UNIT
            if block.allocated:
                used[place] = block
            else:
                cached.append(block.size // UNIT << SHIFT | place)
    for place, block in used.items():
        block.address = place
    return NumericPool(small, tuple(sorted(cached)), used, segments)


def give_back(allocator: CachingAllocator, pool: NumericPool) -> None:
    """Let the allocator's pool be this; it has as many segments, or fewer.

    Current figures are right then. Peaks are not.
    """
    blocks = dict(pool.used)
    for piece in pool.cached:
        blocks[piece & PLACE] = Block(0, (piece >> SHIFT) * UNIT, None)
    ordered = sorted(blocks)
    segments, cached, figures = iter(allocator.segments_of(pool.small)), [], dict.fromkeys(FIGURES, 0)
    first = 0
    for place, size in pool.segments:
        after = bisect_left(ordered, place + size, first)
        content = [blocks[each] for each in ordered[first:after]]
        first = after
        segment = next(segments, None) or allocator.new_segment_of(pool.small, size * UNIT)
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
    allocator.set_pool(pool.small, cached, figures)


def _link(segment: Segment, blocks: Sequence[Block]) -> None:
    address = segment.address
    for before, block, after in zip([None, *blocks], blocks, [*blocks[1:], None], strict=False):
        block.address, block.segment, block.previous, block.next = address, segment, before, after
        address += block.size
    segment.first = blocks[0]
