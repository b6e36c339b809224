"""Traces: requests to an allocator, replayed."""

from __future__ import annotations

import random

import pytest
import torch

from vram.simulated.allocator import Block, CachingAllocator
from vram.simulated.context import SimulatedCuda
from vram.simulated.trace import Played, Recorder, Replay, Trace
from vram.simulated.trace_family import interpolated

MIB, GIB = 2**20, 2**30


def figures(allocator: CachingAllocator) -> tuple[int, int, int]:
    return allocator.allocated_bytes, allocator.requested_bytes, allocator.reserved_bytes


def recorded_sample(*sizes_mib: int, keep_mib: int) -> tuple[Trace, Trace]:
    """A model of 30 MiB, and a sample that takes and frees those sizes in turn and keeps one more block."""
    allocator = CachingAllocator(GIB)
    recorder = Recorder(allocator)
    allocator.malloc(30 * MIB, tag="weights")
    setup = recorder.cut("setup")
    for size in sizes_mib:
        block = allocator.malloc(size * MIB, tag="scratch")
        if size == max(sizes_mib):
            allocator.malloc(keep_mib * MIB, tag="output")
        allocator.free(block)
    return setup, recorder.cut()


def test_the_same_again_on_the_same_card() -> None:
    """A random recording of 4,000 operations, cut in 8, played elsewhere: the same figures and layout at each cut."""
    chance = random.Random(5)
    original = CachingAllocator(512 * MIB)
    recorder = Recorder(original)
    alive: list[Block] = []
    replay = Replay(CachingAllocator(512 * MIB))
    for cut in range(8):
        original.reset_peak()
        for _ in range(500):
            if chance.random() < 0.01:
                original.empty_cache()
            if len(alive) > 20 or (alive and chance.random() < 0.45):
                original.free(alive.pop(chance.randrange(len(alive))))
            else:
                alive.append(original.malloc(chance.randrange(0, 12 * MIB), chance.choice([0, 0, 4])))
        stats = original.stats

        played = replay.play(recorder.cut("setup" if cut == 0 else ""))

        assert played.oom is None
        assert (played.allocated_bytes, played.requested_bytes, played.reserved_bytes) == figures(original)
        assert played.allocated_peak_bytes == stats.allocated_bytes.peak
        assert played.requested_peak_bytes == stats.requested_bytes.peak
        assert played.reserved_peak_bytes == stats.reserved_bytes.peak
        assert [(b.address, b.size, b.stream) for b in replay._allocator.blocks()] == [
            (b.address, b.size, b.stream) for b in original.blocks()
        ]


def test_what_a_play_tells() -> None:
    """Peaks of this play alone, where the peak was, and what is left alive, by hand."""
    setup, sample = recorded_sample(12, 40, 16, keep_mib=14)
    replay = Replay(CachingAllocator(GIB))
    assert replay.play(setup).allocated_bytes == 30 * MIB

    first = replay.play(sample)
    replay.drop(first)
    again = replay.play(sample)

    # 12, free, 40 and 14 for the output: 84 with the weights, at operation 3.
    assert (first.allocated_peak_bytes, first.peak_position, first.position) == (84 * MIB, 3, len(sample))
    assert (first.allocated_bytes, first.reserved_peak_bytes) == (44 * MIB, (30 + 12 + 40 + 14) * MIB)
    # The last 16 come from the 40: nothing more is reserved. Again, everything is there.
    assert [(block.requested, block.tag) for block in again.left.values()] == [(14 * MIB, "output")]
    assert (again.allocated_peak_bytes, again.reserved_bytes) == (84 * MIB, 96 * MIB)


def test_previous_outputs_stay_until_they_are_dropped() -> None:
    """Samples of two lengths in any order: with the previous output alive a peak is higher by just that output."""
    setup, short = recorded_sample(40, keep_mib=10)
    _, long = recorded_sample(40, keep_mib=24)  # another recording, with the same set-up
    replay = Replay(CachingAllocator(GIB))
    replay.play(setup)
    peaks = []
    previous: Played | None = None
    for trace in (short, short, long, long, short):
        played = replay.play(trace)
        peaks.append(played.allocated_peak_bytes // MIB)
        replay.drop(previous)
        previous = played

    assert peaks == [80, 90, 104, 118, 104]


def test_only_what_is_picked_is_dropped() -> None:
    """`which` sees the blocks; the others stay alive, and are there for a later drop."""
    setup, sample = recorded_sample(40, keep_mib=10)
    replay = Replay(CachingAllocator(GIB))
    built = replay.play(setup)
    played = replay.play(sample)

    replay.drop(built, lambda block: block.tag == "output")
    replay.drop(played, lambda block: block.tag == "output")

    assert (len(built.left), len(played.left)) == (1, 0)
    assert replay._allocator.allocated_bytes == 30 * MIB


def test_blocks_of_a_named_trace_are_freed_from_any_later_one() -> None:
    """A sample that frees what the set-up made does so however many other traces were played between."""
    allocator = CachingAllocator(GIB)
    recorder = Recorder(allocator)
    warm_up = allocator.malloc(50 * MIB)
    setup = recorder.cut("setup")
    allocator.free(allocator.malloc(12 * MIB))
    plain = recorder.cut()
    allocator.free(warm_up)
    freeing = recorder.cut()

    replay = Replay(CachingAllocator(GIB))
    for trace in (setup, plain, plain, plain):
        replay.play(trace)
    assert replay.play(freeing).allocated_bytes == 0
    with pytest.raises(ValueError, match="frees block 0 of trace 'setup', which must have left 52428800 B, got none"):
        replay.play(freeing)


def test_a_sample_frees_what_the_one_before_left() -> None:
    """The recording's free of the previous output means, in a replay, the output that the play before left."""
    allocator = CachingAllocator(GIB)
    recorder = Recorder(allocator)
    previous = allocator.malloc(11 * MIB - 512)
    start = recorder.cut()
    new = allocator.malloc(11 * MIB - 512)
    allocator.free(previous)
    sample = recorder.cut()
    replay = Replay(CachingAllocator(GIB))
    replay.play(start)

    live = [replay.play(sample).allocated_bytes for _ in range(100)]

    assert new.allocated
    assert live == [11 * MIB - 512] * 100


def test_a_free_that_does_not_fit_is_refused() -> None:
    """Played after a trace that left something else there: an error that says so, not another block's free."""
    allocator = CachingAllocator(GIB)
    recorder = Recorder(allocator)
    previous = allocator.malloc(5 * MIB)
    first = recorder.cut()
    allocator.free(previous)
    second = recorder.cut()
    _, other = recorded_sample(40, keep_mib=10)
    replay = Replay(CachingAllocator(GIB))

    with pytest.raises(
        ValueError, match="block 0 of the trace played 1 before, which must have left 5242880 B, got none"
    ):
        replay.play(second)
    replay.play(first)
    replay.play(other)
    with pytest.raises(ValueError, match="got none: cut the recording around that free, and drop"):
        replay.play(second)
    allocator.malloc(6 * MIB)
    replay.play(recorder.cut())
    with pytest.raises(ValueError, match="must have left 5242880 B, got 6291456 B"):
        replay.play(second)


def test_a_smaller_card_is_full_at_the_operation_that_asks_too_much() -> None:
    """On 100 MiB the sample's 40 MiB still fit and its output does not; what it had stays in `left`, to be dropped."""
    setup, sample = recorded_sample(12, 40, 16, keep_mib=32)
    replay = Replay(CachingAllocator(100 * MIB))
    replay.play(setup)

    played = replay.play(sample)

    assert played.oom is not None
    assert (played.position, played.oom.tag, played.oom.segment_bytes) == (3, "output", 32 * MIB)
    assert [block.tag for block in played.left.values()] == ["scratch"]
    assert played.allocated_bytes == 70 * MIB
    replay.drop(played)
    assert replay._allocator.allocated_bytes == 30 * MIB


def test_until_shows_what_was_alive_at_the_peak() -> None:
    """Played up to the peak and no further, the blocks alive are the peak's holders."""
    setup, sample = recorded_sample(12, 40, 16, keep_mib=14)
    peak = Replay(CachingAllocator(GIB))
    peak.play(setup)
    position = peak.play(sample).peak_position
    replay = Replay(CachingAllocator(GIB))
    replay.play(setup)

    played = replay.play(sample, until=position + 1)

    assert played.position == position + 1
    alive = [block for block in replay._allocator.blocks() if block.allocated]
    assert sorted((block.tag, block.requested // MIB) for block in alive) == [
        ("output", 14),
        ("scratch", 40),
        ("weights", 30),
    ]


def test_an_emptied_cache_is_played_too() -> None:
    """Otherwise a replay would keep segments that the recording gave back."""
    allocator = CachingAllocator(GIB)
    recorder = Recorder(allocator)
    allocator.free(allocator.malloc(40 * MIB))
    allocator.empty_cache()
    allocator.malloc(2 * MIB)
    replay = Replay(CachingAllocator(GIB))

    assert replay.play(recorder.cut()).reserved_bytes == allocator.reserved_bytes == 20 * MIB


def test_positions_and_the_end_of_a_recording() -> None:
    """`position` counts the operations since the cut; after `stop` nothing is written, and another may begin."""
    allocator = CachingAllocator(GIB)
    recorder = Recorder(allocator)
    block = allocator.malloc(MIB)
    allocator.malloc(0)
    assert recorder.position == 1
    recorder.cut()
    assert recorder.position == 0
    allocator.free(block)
    recorder.stop()
    allocator.free(allocator.malloc(MIB))
    assert recorder.position == 1
    Recorder(allocator)


def test_a_recording_begins_with_nothing_allocated() -> None:
    """Blocks from before could be freed and never found; a second recorder would silence the first."""
    allocator = CachingAllocator(GIB)
    Recorder(allocator)
    with pytest.raises(ValueError, match="got one with an observer"):
        Recorder(allocator)
    other = CachingAllocator(GIB)
    other.malloc(1)
    with pytest.raises(ValueError, match="got one with 1 blocks"):
        Recorder(other)


def test_a_name_is_given_once() -> None:
    """Two set-ups of one name would be taken for each other."""
    recorder = Recorder(CachingAllocator(GIB))
    recorder.cut("setup")
    with pytest.raises(ValueError, match="must be new in its recording, got 'setup' again"):
        recorder.cut("setup")


def step(length: int, *, odd: bool = False) -> Trace:
    """The requests of a token: a cache 4 KiB longer than the last one, in its place; and fixed scratch."""
    allocator = CachingAllocator(GIB)
    recorder = Recorder(allocator)
    prompt = allocator.malloc(MIB)
    recorder.cut(f"start {length}")
    before = allocator.malloc(4096 * (length - 1))
    recorder.cut()
    scratch = allocator.malloc(512 if odd else 700, tag=length)
    allocator.malloc(4096 * length, tag=length)
    if length < 100:  # of a named trace: which block is the first recording's affair
        allocator.free(prompt)
    allocator.free(before)
    allocator.free(scratch)
    return recorder.cut()


def test_a_step_between_two_is_what_it_would_be() -> None:
    """Sizes lie on lines: those of the step's own blocks, and those of the last step's that it frees."""
    at = interpolated({length: step(length) for length in (3, 4, 50, 51)})
    assert at is not None
    for length in (3, 17, 51):
        expected, got = step(length), at(length)
        assert got.ops == expected.ops
        assert [getattr(other, "size", None) for other in got.others.values()] == [
            getattr(other, "size", None) for other in expected.others.values()
        ]
        assert got.tags == [3, 3]


@pytest.mark.parametrize(
    "known",
    [
        {3: step(3), 4: step(4), 50: step(50, odd=True)},  # a size that is not on the line through the others
        {3: step(3), 6: step(4)},  # a slope that is no whole number of bytes
        {3: step(3), 4: step(4), 100: step(100)},  # an operation fewer
        {3: step(3), 4: step(4), 50: step(50).alone(0, ())},  # a free of another trace's block fewer
    ],
)
def test_what_is_not_linear_is_not_interpolated(known: dict[int, Trace]) -> None:
    """None, and no guess."""
    assert interpolated(known) is None


def test_alone_a_trace_leaves_the_blocks_of_others() -> None:
    """But those of the named traces and of the last so many."""
    allocator = CachingAllocator(GIB)
    recorder = Recorder(allocator)
    blocks = []
    for name in ("setup", "other", "", ""):
        blocks.append(allocator.malloc(2 * MIB))
        recorder.cut(name)
    for block in blocks:
        allocator.free(block)
    freeing = recorder.cut().alone(1, ("setup",))
    assert recorder.alive(0, 4) == []

    again = CachingAllocator(GIB)
    replay = Replay(again)
    for name in ("setup", "other", "", ""):
        trace = Trace(name)
        trace.ops.append(2 * MIB)
        trace.tags.append(name)
        replay.play(trace)
    assert replay.play(freeing).allocated_bytes == 4 * MIB  # of "other" and of the one two before


def test_blocks_that_are_alive_are_known_by_their_cut() -> None:
    """So that what a sample leaves for good is noticed."""
    allocator = CachingAllocator(GIB)
    recorder = Recorder(allocator)
    first = allocator.malloc(MIB)
    recorder.cut()
    second = allocator.malloc(MIB)
    recorder.cut()
    assert recorder.alive(0, 2) == [first, second]
    assert recorder.alive(1, 2) == [second]
    allocator.free(second)
    assert recorder.alive(1, 2) == []


def test_parts_of_attention_are_as_many_at_each_length_as_the_card_makes() -> None:
    """Flash attention takes the keys in parts, whose number does not grow in a line with them."""
    key_bytes = 4 * 64 * 2
    cuda, recorded, alone = SimulatedCuda("A100-80"), {}, {}
    recorder = Recorder(cuda.allocator)
    with cuda, torch.inference_mode():
        query = torch.zeros(1, 4, 1, 64, dtype=torch.float16, device="cuda")
        recorder.cut("query")
        for keys in range(100, 1100, 25):
            cuda.allocator.reset_peak()
            key = torch.zeros(1, 4, keys, 64, dtype=torch.float16, device="cuda")
            out = torch.nn.functional.scaled_dot_product_attention(query, key, key)
            del key, out
            recorded[keys] = recorder.cut()
            alone[keys] = cuda.allocator.stats.requested_bytes.peak - query.nbytes
    at = interpolated({keys: recorded[keys] for keys in (100, 125, 1050, 1075)})

    assert at is not None
    beside = {}
    for keys, trace in recorded.items():
        peaks = [Replay(CachingAllocator(2**30)).play(each).requested_peak_bytes for each in (trace, at(keys))]
        assert peaks == [alone[keys]] * 2
        beside[keys] = alone[keys] - keys * key_bytes
    assert len(set(beside.values())) > 3  # none, and several numbers of parts
