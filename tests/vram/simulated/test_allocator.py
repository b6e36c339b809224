"""The caching allocator: PyTorch's rules at their edges by hand, and against a plain second implementation."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.vram.simulated.reference_allocator import Full, ReferenceAllocator
from vram.simulated import allocator as allocator_module
from vram.simulated.allocator import Block, CachingAllocator, SimulatedOutOfMemory, Stat, cuda_size

KIB, MIB, GIB = 2**10, 2**20, 2**30
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


# The card is full


def test_cached_segments_go_back_before_it_is_full() -> None:
    """30 MiB cached on a card of 40: 35 MiB fit after a retry, and the peak never was both."""
    device = allocator(40 * MIB)
    device.free(device.malloc(30 * MIB))

    device.malloc(35 * MIB)

    assert device.stats.reserved_bytes == Stat(36 * MIB, 36 * MIB)
    assert (device.stats.alloc_retries, device.stats.ooms) == (1, 0)


def test_exactly_full_is_not_over() -> None:
    """The last byte can be used; one page more cannot."""
    device = allocator(64 * MIB, 10 * MIB, 4 * MIB)
    device.malloc(50 * MIB)
    assert (device.free_bytes, device.stats.alloc_retries) == (0, 0)
    with pytest.raises(SimulatedOutOfMemory):
        device.malloc(1)
    assert (device.stats.alloc_retries, device.stats.ooms) == (1, 1)


def test_what_an_error_tells() -> None:
    """All figures as they are after the retry: the cached 12 MiB went back, the cached part of 20 MiB could not."""
    device = allocator(100 * MIB, 16 * MIB, 4 * MIB)
    device.malloc(3 * MIB)
    device.free(device.malloc(12 * MIB))

    with pytest.raises(SimulatedOutOfMemory) as caught:
        device.malloc(61 * MIB - 5, tag="softmax")

    error = caught.value
    assert (error.requested_bytes, error.segment_bytes, error.tag) == (61 * MIB - 5, 62 * MIB, "softmax")
    assert (error.free_bytes, error.total_bytes, error.process_bytes) == (60 * MIB, 100 * MIB, 36 * MIB)
    assert (error.allocated_bytes, error.reserved_bytes, error.reserved_unallocated_bytes) == (
        3 * MIB,
        20 * MIB,
        17 * MIB,
    )
    assert device.reserved_bytes == 20 * MIB
    device.malloc(60 * MIB)  # it goes on from there


def test_the_incident_asked_for_48_mib() -> None:
    """One fp32 softmax of 627 tokens, 50,320,512 B, is 48.00 MiB in the message, as from 614 on; 613 are 46.00."""
    for tokens, size in [(627, "48.00 MiB"), (614, "48.00 MiB"), (613, "46.00 MiB"), (628, "50.00 MiB")]:
        with pytest.raises(SimulatedOutOfMemory, match=f"Tried to allocate {size}. GPU 0 has"):
            allocator(40 * MIB).malloc(32 * tokens**2 * 4)


def test_cudas_words() -> None:
    """The message is that of torch 2.11 and later, letter by letter, with the figures of a public report of it."""
    error = SimulatedOutOfMemory(
        requested_bytes=4 * GIB,
        segment_bytes=4 * GIB,
        free_bytes=round(3.49 * GIB),
        total_bytes=round(10.56 * GIB),
        process_bytes=round(7.06 * GIB),
        allocated_bytes=round(6.78 * GIB),
        reserved_bytes=round(6.78 * GIB) + round(97.98 * MIB),
    )
    assert str(error) == error.message
    assert error.message == (
        "CUDA out of memory. Tried to allocate 4.00 GiB. GPU 0 has a total capacity of 10.56 GiB of which 3.49 GiB is "
        "free. Including non-PyTorch memory, this process has 7.06 GiB memory in use. Of the allocated memory 6.78 GiB "
        "is allocated by PyTorch, and 97.98 MiB is reserved by PyTorch but unallocated. If reserved but unallocated "
        "memory is large try setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation.  See "
        "documentation for Memory Management  (https://docs.pytorch.org/docs/stable/notes/cuda.html#optimizing-memory-"
        "usage-with-pytorch-cuda-alloc-conf)"
    )


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 bytes"),
        (1024, "1024 bytes"),
        (1025, "1.00 KiB"),
        (MIB, "1024.00 KiB"),
        (MIB + 1, "1.00 MiB"),
        (48 * MIB, "48.00 MiB"),
        (GIB, "1024.00 MiB"),
        (GIB + 1, "1.00 GiB"),
        (25_438_126_080, "23.69 GiB"),  # an RTX 3090, as reports of it say
        (5000 * GIB, "5000.00 GiB"),
    ],
)
def test_sizes_in_messages(n_bytes: int, text: str) -> None:
    """A unit ends after 1024 of it, and GiB never."""
    assert cuda_size(n_bytes) == text


# Settings


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "backend:native",
        "expandable_segments:False",
        "pinned_use_background_threads:True, backend:native",
        "pinned_num_register_threads:8,large_segment_size_mb:20,",
    ],
)
def test_settings_that_change_nothing_pass(text: str) -> None:
    """Default values, and settings of host memory."""
    CachingAllocator(GIB, settings=text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("expandable_segments:True", r"got expandable_segments:True \(segments that grow page by page"),
        (" expandable_segments : True ", "got expandable_segments:True"),
        ("backend:cudaMallocAsync", r"got backend:cudaMallocAsync \(only PyTorch's own"),
        ("max_split_size_mb:128", r"got max_split_size_mb:128 \(it is not modelled\)"),
        ("backend:native,garbage_collection_threshold:0.8", "got garbage_collection_threshold:0.8"),
        (
            "roundup_power2_divisions:[256:1,512:2,>:4],backend:native",
            r"got roundup_power2_divisions:\[256:1,512:2,>:4\]",
        ),
        ("large_segment_size_mb:40", "got large_segment_size_mb:40"),
        ("something_new:1", "got something_new:1"),
    ],
)
def test_settings_that_change_figures_are_refused(text: str, message: str) -> None:
    """The error has the name and the way out, wherever in the text the setting is."""
    with pytest.raises(ValueError, match=message + ".*: take it out of PYTORCH_ALLOC_CONF"):
        CachingAllocator(GIB, settings=text)


@pytest.mark.parametrize("text", ["expandable_segments", "a:1;b:2:3", "backend:native expandable_segments:True", ":"])
def test_settings_that_cannot_be_read_are_refused(text: str) -> None:
    """Half-read settings would be settings ignored."""
    with pytest.raises(ValueError, match="must"):
        CachingAllocator(GIB, settings=text)


# Snapshots


def test_a_snapshot_tells_every_block() -> None:
    """Segments tiled by blocks, in use or not, sized as PyTorch's own snapshots have it, with the tag's frames."""
    device = allocator()
    device.malloc(5 * MIB - 3, tag="weights")
    gone = device.malloc(2 * MIB, tag="gone")
    device.malloc(700, stream=3, tag="mask")
    device.free(gone)

    def frames(tag: str) -> list[dict[str, Any]]:
        return [{"filename": "model.py", "line": 7, "name": tag}]

    large, small = device.snapshot(frames)["segments"]

    assert (large["segment_type"], large["total_size"], large["stream"]) == ("large", 20 * MIB, 0)
    assert (large["allocated_size"], large["active_size"], large["requested_size"]) == (5 * MIB, 5 * MIB, 5 * MIB - 3)
    assert (small["segment_type"], small["total_size"], small["stream"]) == ("small", 2 * MIB, 3)
    assert [(b["address"] - large["address"], b["size"], b["requested_size"], b["state"]) for b in large["blocks"]] == [
        (0, 5 * MIB, 5 * MIB - 3, "active_allocated"),
        (5 * MIB, 15 * MIB, 0, "inactive"),
    ]
    assert [b["frames"] for b in large["blocks"]] == [frames("weights"), []]
    assert small["blocks"][0]["frames"] == frames("mask")
    assert device.snapshot()["segments"][0]["blocks"][0]["frames"] == []


def test_pytorchs_own_reader_understands_a_snapshot() -> None:
    """torch.cuda._memory_viz counts the segments and bytes that the allocator says."""
    viz = pytest.importorskip("torch.cuda._memory_viz")
    device = allocator()
    kept = [device.malloc(n) for n in (700, 3 * MIB, 30 * MIB)]
    device.free(kept[1])

    text = viz.segsum(device.snapshot())

    assert "segments: 3" in text
    assert "total_reserved: 52.0MiB" in text
    assert f"total_allocated: {(30 * MIB + 1024) / MIB:.1f}MiB" in text


# Against a second implementation

EDGES = [
    1, 511, 512, 513, 1024, 100_000, MIB - 512, MIB - 1, MIB, MIB + 1, 2 * MIB, 3 * MIB + 77, 5 * MIB, 9 * MIB,
    10 * MIB - 512, 10 * MIB - 511, 10 * MIB, 10 * MIB + 1, 11 * MIB - 512, 11 * MIB, 12 * MIB, 19 * MIB, 20 * MIB,
    20 * MIB + 1, SOFTMAX_BYTES,
]  # fmt: skip


class Pair:
    """The allocator and the plain one with the same requests; every answer and figure must be the same."""

    def __init__(self, capacity_bytes: int, context_bytes: int = 0, other_bytes: int = 0) -> None:
        self.ours = CachingAllocator(capacity_bytes, context_bytes, other_bytes)
        self.plain = ReferenceAllocator(capacity_bytes, context_bytes, other_bytes)
        self.first: int | None = None  # the address of our first segment
        self.alive: list[tuple[Block, tuple[int, int]]] = []
        self.refusals = 0

    def malloc(self, n_bytes: int, stream: int = 0) -> None:
        try:
            block: Block | str = self.ours.malloc(n_bytes, stream)
        except SimulatedOutOfMemory as full:
            block = full.message
        try:
            answer: tuple[int, int, int] | str = self.plain.malloc(n_bytes, stream)
        except Full as full:
            answer = str(full)
        if isinstance(block, str) or isinstance(answer, str):
            assert block == answer
            self.refusals += 1
            return
        base, offset, length = answer
        if self.first is None:
            self.first = block.address
        assert (block.address - self.first, block.size, block.requested) == (base + offset, length, n_bytes)
        self.alive.append((block, (base, offset)))

    def free(self, index: int) -> None:
        self.alive[index], self.alive[-1] = self.alive[-1], self.alive[index]
        block, (base, offset) = self.alive.pop()
        self.ours.free(block)
        self.plain.free(base, offset)

    def empty_cache(self) -> None:
        self.ours.empty_cache()
        self.plain.empty_cache()

    def reset_peak(self) -> None:
        self.ours.reset_peak()
        self.plain.reset_peak()

    def compare(self) -> None:
        ours, now = self.ours, self.plain.now
        assert now == {name: getattr(ours, name) for name in now}
        assert ours.free_bytes == self.plain.left()

    def compare_all(self) -> None:
        stats = self.ours.stats
        for name, figure in self.plain.now.items():
            assert getattr(stats, name) == Stat(figure, self.plain.peaks[name]), name
        assert (stats.alloc_retries, stats.ooms) == (self.plain.retries, self.plain.ooms)
        ours = [(block.address - (self.first or 0), block.size, block.allocated) for block in self.ours.blocks()]
        assert ours == self.plain.layout()


@pytest.mark.parametrize("seed", range(16))
def test_the_same_as_a_plain_implementation(seed: int) -> None:
    """3,200 random operations a seed, 51,200 in all: the same blocks, figures and errors after each of them.

    Peaks and layout too, every 40 and before each reset. Cards from roomy to always full, odd capacities too; one
    stream or three; sizes at every edge, random ones, or few that recur as a model's do.
    """
    chance = random.Random(seed)
    capacity_bytes = chance.choice([64 * MIB, 150 * MIB + 12_345, 400 * MIB, 4 * GIB])
    pair = Pair(capacity_bytes, chance.choice([0, 3 * MIB + 5]), chance.choice([0, MIB]))
    streams = chance.choice([[0], [0, 0, 0, 5, 9]])
    few = chance.sample(EDGES, 5)
    most = chance.choice([8, 20, 45])
    for step in range(3200):
        share = chance.random()
        if share < 0.004:
            pair.empty_cache()
        elif share < 0.008:
            pair.compare_all()
            pair.reset_peak()
        elif len(pair.alive) >= most or (pair.alive and share < 0.48):
            pair.free(chance.randrange(len(pair.alive)))
        else:
            kind = chance.random()
            size = (
                chance.choice(few) if kind < 0.4 else chance.choice(EDGES) if kind < 0.7 else chance.randrange(1, 2**24)
            )
            pair.malloc(size if kind < 0.95 else chance.randrange(1, 2 * MIB), chance.choice(streams))
        pair.compare()
        if step % 40 == 39:
            pair.compare_all()
    if capacity_bytes < 100 * MIB and most > 8:
        assert pair.refusals > 0  # such a card was full at times, and said so in the same words


class Machine(RuleBasedStateMachine):
    """The same comparison, steered by hypothesis, which shrinks what it finds."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair(90 * MIB + 1, 5 * MIB)

    @rule(size=st.sampled_from(EDGES) | st.integers(1, 30 * MIB), stream=st.sampled_from([0, 0, 3]))
    def malloc(self, size: int, stream: int) -> None:
        self.pair.malloc(size, stream)

    @precondition(lambda self: self.pair.alive)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        self.pair.free(data.draw(st.integers(0, len(self.pair.alive) - 1)))

    @rule()
    def empty_cache(self) -> None:
        self.pair.empty_cache()

    @rule()
    def reset_peak(self) -> None:
        self.pair.reset_peak()

    @invariant()
    def same(self) -> None:
        self.pair.compare()
        self.pair.compare_all()


Machine.TestCase.settings = settings(max_examples=25, stateful_step_count=40, deadline=None, derandomize=True)
TestMachine = Machine.TestCase
