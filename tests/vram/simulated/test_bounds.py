"""The bound of what segments come to: never below what an allocator needs, by hand, and of a family by its ends."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.vram.simulated.test_quick_replay import MIB, decoding, steps
from vram.simulated.allocator import CachingAllocator
from vram.simulated.bounds import SegmentBound, new_segments_bytes
from vram.simulated.trace import Recorder, Replay, Scratch, Trace
from vram.simulated.trace_family import interpolated

LARGE = 20 * MIB  # of a segment that requests from 1 to 10 MiB share


@pytest.mark.parametrize("seed", range(12))
def test_a_card_with_so_much_room_is_never_full(seed: int) -> None:
    """Random requests, scratch memory and frees of what was there before; with much less room it is."""
    setup, *traces = steps(seed, 20)
    setup_bytes = Replay(CachingAllocator(2**50)).play(setup).reserved_bytes
    bound = SegmentBound()
    bound.add(traces)
    most_bytes = bound.n_bytes(setup_bytes, LARGE)
    replay = Replay(CachingAllocator(most_bytes))
    assert all(replay.play(trace).oom is None for trace in (setup, *traces))


def recorded(*blocks: tuple[int, bool], scratch: tuple[int, ...] = ()) -> Trace:
    """Requests of so many bytes, some of which stay, and scratch memory before these are gone."""
    allocator = CachingAllocator(2**50)
    recorder = Recorder(allocator)
    taken = [(allocator.malloc(n_bytes), stays) for n_bytes, stays in blocks]
    if scratch:
        allocator.take_scratch(scratch, Scratch(Fixed(scratch), 1))
    for block, stays in taken:
        if not stays:
            allocator.free(block)
    return recorder.cut()


@dataclass(frozen=True)
class Fixed:
    """Scratch memory that does not grow; with a length of 3 there is more of it."""

    sizes: tuple[int, ...]

    def sizes_at(self, length: int) -> list[int]:
        return [30 * MIB] * 3 if length == 3 else list(self.sizes)


def test_each_block_counts_as_a_segment() -> None:
    """At most 2 large and 3 small ones, scratch memory as either, beside what was there and what stays."""
    bound = SegmentBound()
    bound.add([recorded((3 * MIB, True), (512, False), (MIB, False), (MIB + 1, False), (7, False), scratch=(512,))])
    assert (bound.alive, bound.small, bound.large, bound.scratch) == (1, 3, 2, 1)
    assert bound.n_bytes(5, LARGE) == 5 + (2 + 1) * LARGE + (3 + 1) * 2 * MIB
    bound.add([recorded((25 * MIB, False))])
    assert (bound.alive, bound.small, bound.large) == (1, 3, 2)
    assert bound.n_bytes(5, LARGE) == 5 + (2 + 1) * 26 * MIB + (3 + 1) * 2 * MIB


def test_a_new_segment_for_each_request_is_the_most_that_a_trace_adds() -> None:
    """Whatever stays or is freed, scratch memory too; empty requests make none."""
    trace = recorded((3 * MIB, True), (512, False), (25 * MIB - 1, False), scratch=(MIB, 0, 11 * MIB + 1))
    assert new_segments_bytes(trace, LARGE) == LARGE + 2 * MIB + 26 * MIB + 2 * MIB + 12 * MIB


def test_a_family_counts_as_its_ends_do() -> None:
    """No less than all of its traces, of which the first have no large request."""
    traces = decoding(300)[1:]
    family = interpolated({500 + number: traces[number] for number in (2, 3, 298, 299)})
    assert family is not None
    whole, ends = SegmentBound(), SegmentBound()
    for each in (whole, ends):
        each.add(traces[:2])
    whole.add(map(family, range(502, 800)))
    assert ends.add_family(family, range(502, 800))
    assert (ends.alive, ends.request_bytes) == (whole.alive, whole.request_bytes)
    assert (ends.small, ends.large) >= (whole.small, whole.large)
    assert whole.large > 4 == whole.alive


def test_a_family_that_grows_otherwise_is_not_counted() -> None:
    """Blocks that stay each time, and sizes that shrink."""
    shrinks = interpolated({1: recorded((2000, False)), 2: recorded((1000, False))})
    stays = interpolated({1: recorded((1000, True)), 2: recorded((2000, True))})
    for family in (shrinks, stays):
        assert family is not None
        assert not SegmentBound().add_family(family, range(1, 3))


def test_scratch_memory_of_a_family_is_counted_at_every_length() -> None:
    """It need not grow with the length: there may be most of it in the middle."""

    def at(length: int) -> Trace:
        allocator = CachingAllocator(2**50)
        recorder = Recorder(allocator)
        allocator.take_scratch([512], Scratch(Fixed((512,)), length))
        return recorder.cut()

    family, bound = interpolated({1: at(1), 5: at(5)}), SegmentBound()
    assert family is not None
    assert bound.add_family(family, range(1, 6))
    assert (bound.scratch, bound.request_bytes) == (3, 30 * MIB)
