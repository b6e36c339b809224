"""The caching allocator: PyTorch's rules at their edges, worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from vram.simulated import allocator as allocator_module
from vram.simulated.allocator import CachingAllocator, SimulatedOutOfMemory
from vram.simulated.allocator_figures import Stat

MIB, GIB = 2**20, 2**30
SOFTMAX_BYTES = 32 * 627**2 * 4  # one fp32 softmax of 32 heads over 627 tokens: 50,320,512 B


def allocator(capacity_bytes: int = GIB, context_bytes: int = 0, other_bytes: int = 0) -> CachingAllocator:
    return CachingAllocator(capacity_bytes, context_bytes, other_bytes)


# One request on an empty card: the block it gets, and the segment behind it.


@pytest.mark.parametrize(
    ("requested", "block_bytes", "segment_bytes"),
    [
        (1, 512, 2 * MIB),
        (511, 512, 2 * MIB),
        (512, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (MIB - 1, MIB, 2 * MIB),
        (MIB, MIB, 2 * MIB),  # the last small one
        (MIB + 1, MIB + 512, 20 * MIB),  # the first large one
        (2 * MIB, 2 * MIB, 20 * MIB),
        (10 * MIB - 512, 10 * MIB - 512, 20 * MIB),  # the last to share
        (10 * MIB - 511, 10 * MIB, 10 * MIB),  # rounded first, then its own segment
        (10 * MIB, 10 * MIB, 10 * MIB),
        (10 * MIB + 1, 10 * MIB + 512, 12 * MIB),  # 2 MiB less 512 B over: split off
        (11 * MIB, 12 * MIB, 12 * MIB),  # 1 MiB over: not more than 1 MiB, so it stays in the block
        (11 * MIB - 1, 12 * MIB, 12 * MIB),
        (11 * MIB - 512, 11 * MIB - 512, 12 * MIB),  # 1 MiB and 512 B over: split off
        (12 * MIB, 12 * MIB, 12 * MIB),
        (20 * MIB, 20 * MIB, 20 * MIB),
        (20 * MIB + 1, 20 * MIB + 512, 22 * MIB),
        (SOFTMAX_BYTES, 48 * MIB, 48 * MIB),
    ],
)
def test_a_first_request(requested: int, block_bytes: int, segment_bytes: int) -> None:
    """Rounding to 512 B, the two pools' segments, and the remainder that stays in the block or leaves it."""
    device = allocator()

    block = device.malloc(requested)

    assert (block.size, block.requested, device.reserved_bytes) == (block_bytes, requested, segment_bytes)
    assert (device.allocated_bytes, device.requested_bytes) == (block_bytes, requested)


def test_nothing_asked_nothing_taken() -> None:
    """Zero bytes give an empty block that no figure counts, and that can be freed once."""
    device = allocator()

    empty = device.malloc(0)

    assert (empty.address, empty.size, empty.requested, empty.stream) == (0, 0, 0, 0)
    assert device.stats.allocations == Stat(0, 0)
    assert device.reserved_bytes == 0
    device.free(empty)
    with pytest.raises(ValueError, match="freed once"):
        device.free(empty)


def test_less_than_nothing_is_refused() -> None:
    """A negative size is the caller's fault, said at the door."""
    with pytest.raises(ValueError, match="n_bytes must not be negative, got -1"):
        allocator().malloc(-1)


def test_a_card_must_hold_what_is_taken() -> None:
    """Context and other processes within the capacity: exactly full is a card, more is not."""
    assert CachingAllocator(10, 4, 6).free_bytes == 0
    with pytest.raises(ValueError, match=r"must hold context_bytes and other_bytes.* got 10, 5 and 6"):
        CachingAllocator(10, 5, 6)
    with pytest.raises(ValueError, match="none negative"):
        CachingAllocator(10, -1)


# Which cached block


def test_the_smallest_that_fits_is_taken() -> None:
    """A request of 2 MiB takes the hole of 2, not that of 3 MiB at a lower address."""
    device = allocator()
    first, _, second, _ = (device.malloc(n * MIB) for n in (3, 2, 2, 2))
    device.free(first)
    device.free(second)

    assert device.malloc(2 * MIB).address == second.address
    assert device.malloc(2 * MIB).address == first.address


def test_of_equals_the_lowest_address_is_taken() -> None:
    """Two holes of one size: the one at the lower address, whichever was freed last."""
    device = allocator()
    blocks = [device.malloc(2 * MIB) for _ in range(5)]
    device.free(blocks[3])
    device.free(blocks[1])

    assert device.malloc(2 * MIB).address == blocks[1].address


def test_small_and_large_do_not_share() -> None:
    """A small request opens a segment of its own while 18 MiB lie cached in the large pool, and the reverse."""
    device = allocator()
    device.malloc(2 * MIB)
    device.malloc(512)
    assert device.reserved_bytes == 22 * MIB

    other = allocator()
    other.free(other.malloc(MIB))
    other.malloc(MIB + 1)
    assert other.reserved_bytes == 22 * MIB


def test_streams_do_not_share() -> None:
    """A block cached on one stream is not for another, and comes back to its own."""
    device = allocator()
    first = device.malloc(4 * MIB, stream=0)
    address = first.address
    device.free(first)

    other = device.malloc(4 * MIB, stream=7)

    assert (other.stream, device.reserved_bytes) == (7, 40 * MIB)
    assert device.malloc(4 * MIB, stream=0).address == address


def test_a_whole_block_reused_keeps_what_is_over() -> None:
    """48 MiB cached, 47 requested: 1 MiB is not more than 1 MiB, so it stays, and allocated counts it."""
    device = allocator()
    device.free(device.malloc(48 * MIB))

    block = device.malloc(47 * MIB)

    assert (block.size, device.allocated_bytes, device.requested_bytes) == (48 * MIB, 48 * MIB, 47 * MIB)
    assert device.reserved_bytes == 48 * MIB
    device.free(block)
    assert (device.allocated_bytes, device.requested_bytes) == (0, 0)


def test_a_small_remainder_of_512_bytes_is_split_off() -> None:
    """In the small pool even 512 B are a block; nothing smaller can remain."""
    device = allocator()
    device.malloc(MIB)
    device.malloc(MIB - 512)

    assert device.stats.inactive_split == Stat(1, 1)
    assert device.inactive_split_bytes == 512
    device.malloc(512)
    assert (device.inactive_split_bytes, device.inactive_split, device.reserved_bytes) == (0, 0, 2 * MIB)


# Freeing


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (0, 2, 1), (1, 0, 2)])
def test_neighbours_join_in_any_order(order: tuple[int, ...]) -> None:
    """Three blocks and the rest, freed in any order, are one whole segment again."""
    device = allocator()
    blocks = [device.malloc(5 * MIB) for _ in range(3)]
    for index in order:
        device.free(blocks[index])

    assert [(block.size, block.allocated) for block in device.blocks()] == [(20 * MIB, False)]
    assert (device.inactive_split, device.inactive_split_bytes, device.reserved_bytes) == (0, 0, 20 * MIB)


def test_segments_do_not_join() -> None:
    """Two cached segments side by side stay two: 24 MiB are not one request's 20."""
    device = allocator()
    for block in [device.malloc(12 * MIB), device.malloc(12 * MIB)]:
        device.free(block)

    device.malloc(20 * MIB)

    assert device.reserved_bytes == 44 * MIB


def test_a_block_is_freed_once() -> None:
    """Freeing again is refused, also when its bytes are another block by then."""
    device = allocator()
    block = device.malloc(4 * MIB)
    address = block.address
    device.free(block)
    assert device.malloc(4 * MIB).address == address

    with pytest.raises(ValueError, match="freed once"):
        device.free(block)
    assert device.allocations == 1


@pytest.mark.parametrize(("function", "amid"), [("Block", "malloc"), ("insort", "free")])
def test_a_tensor_may_end_at_any_time(monkeypatch: pytest.MonkeyPatch, function: str, amid: str) -> None:
    """The collector can free a neighbour while a block is being cut or put back: as if it had come right after."""
    device = allocator()
    _, ending, hole, _ = (device.malloc(4 * MIB) for _ in range(4))
    doomed = [ending]
    theirs = getattr(allocator_module, function)

    def collecting(*args: Any) -> Any:
        while doomed:
            device.free(doomed.pop())
        return theirs(*args)

    if amid == "malloc":
        device.free(hole)
        monkeypatch.setattr(allocator_module, function, collecting)
        device.malloc(2 * MIB)  # from the hole
        expected = [(4, True), (4, False), (2, True), (2, False), (4, True), (4, False)]
    else:
        monkeypatch.setattr(allocator_module, function, collecting)
        device.free(hole)
        expected = [(4, True), (8, False), (4, True), (4, False)]

    assert [(block.size // MIB, block.allocated) for block in device.blocks()] == expected
    assert device.allocated_bytes == sum(size * MIB for size, used in expected if used)
    cached = [block.address for block in device.blocks() if not block.allocated]
    monkeypatch.undo()
    taken = [device.malloc(size * MIB).address for size, used in expected if not used]
    assert sorted(taken) == cached  # each can be found, and nothing else


def test_what_ends_amid_a_failing_malloc_is_freed() -> None:
    """The frees that waited are made up for after the error too."""
    device = allocator(40 * MIB)
    kept = device.malloc(4 * MIB)

    class Greedy(int):
        def __neg__(self) -> int:  # the first thing that a malloc does with its size
            device.free(kept)
            return -int(self)

    with pytest.raises(SimulatedOutOfMemory):
        device.malloc(Greedy(30 * MIB))
    assert device.allocated_bytes == 0


def test_a_malloc_amid_a_malloc_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """From a finalizer or another thread: an error, not a broken list."""
    device = allocator()
    monkeypatch.setattr(allocator_module, "Block", lambda *_: device.malloc(1))
    with pytest.raises(RuntimeError, match="while one is under way"):
        device.malloc(1)


# Figures


def test_peaks_are_kept_and_reset() -> None:
    """A peak stays after the free, and starts from what is alive when it is reset."""
    device = allocator()
    kept = device.malloc(3 * MIB)
    device.free(device.malloc(30 * MIB))
    assert device.stats.allocated_bytes == Stat(3 * MIB, 33 * MIB)
    assert device.stats.requested_bytes == Stat(3 * MIB, 33 * MIB)
    assert device.stats.reserved_bytes == Stat(50 * MIB, 50 * MIB)
    assert device.stats.segments == Stat(2, 2)

    device.empty_cache()
    device.reset_peak()

    assert device.stats.allocated_bytes == Stat(3 * MIB, 3 * MIB)
    assert device.stats.reserved_bytes == Stat(20 * MIB, 20 * MIB)
    assert device.stats.allocations == Stat(1, 1)
    assert device.stats.segments == Stat(1, 1)
    device.free(kept)
    assert device.stats.allocated_bytes == Stat(0, 3 * MIB)


def test_active_is_allocated() -> None:
    """Where no other stream waits for a block, active is allocated."""
    device = allocator()
    device.malloc(3 * MIB)
    assert device.stats.active_bytes == device.stats.allocated_bytes == Stat(3 * MIB, 3 * MIB)
    assert device.stats.active == device.stats.allocations == Stat(1, 1)


def test_what_is_cached_beside_what_is_used() -> None:
    """inactive_split is cached memory that cannot go back: not a whole cached segment."""
    device = allocator()
    device.free(device.malloc(12 * MIB))
    assert device.inactive_split_bytes == 0

    a, b = device.malloc(5 * MIB), device.malloc(5 * MIB)  # both from the 12 MiB

    assert (device.inactive_split, device.inactive_split_bytes) == (1, 2 * MIB)
    device.free(a)
    assert (device.inactive_split, device.inactive_split_bytes) == (2, 7 * MIB)
    device.free(b)
    assert device.stats.inactive_split == Stat(0, 2)
    assert device.stats.inactive_split_bytes == Stat(0, 7 * MIB)


def test_emptying_the_cache() -> None:
    """Whole cached segments go back to the card; one with a block in use stays, with its cached part."""
    device = allocator(100 * MIB, 10 * MIB, 5 * MIB)
    used = device.malloc(2 * MIB)
    device.free(device.malloc(30 * MIB))
    device.free(device.malloc(512))
    assert device.free_bytes == (100 - 15 - 52) * MIB

    device.empty_cache()

    assert (device.reserved_bytes, device.segments, device.free_bytes) == (20 * MIB, 1, 65 * MIB)
    device.free(used)
    device.empty_cache()
    assert (device.reserved_bytes, device.segments, device.free_bytes) == (0, 0, 85 * MIB)
