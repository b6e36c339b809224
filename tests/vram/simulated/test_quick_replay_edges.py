"""Replays that skip what came before, where random steps seldom come: the ends of what is skipped, and of sizes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.vram.simulated.test_quick_replay import MIB, Parts, compared, decoding, figures, of_a_family, pieces
from vram.simulated.allocator import CachingAllocator
from vram.simulated.quick_replay import QuickReplay
from vram.simulated.trace import Outside, Recorder, Replay, Scratch, Trace
from vram.simulated.trace_family import interpolated

TIB = 2**40


def recorded(work: Callable[[CachingAllocator, Recorder], None]) -> list[Trace]:
    """The traces that `work` cuts, and what it does after."""
    allocator = CachingAllocator(2**55)
    recorder = Recorder(allocator)
    work(allocator, recorder)
    return [recorder.cut()]


def taken(*sizes: int, stream: int = 0) -> Trace:
    """A trace that leaves blocks of these sizes."""
    return recorded(lambda allocator, _: [allocator.malloc(size, stream) for size in sizes] and None)[0]


@pytest.mark.parametrize("sizes", [(MIB, MIB), (512,), (10 * MIB,), (3 * MIB, 17 * MIB), (MIB, MIB, 2 * MIB)])
def test_what_fills_segments_takes_new_ones_each_time(sizes: tuple[int, ...]) -> None:
    """Nothing is cached before the first play, and nothing before the next: segments are new all the same."""
    trace = taken(*sizes)
    compared([trace] * 5, 2**50)


def test_a_trace_that_frees_has_its_peak_at_its_start() -> None:
    """Nothing but frees; and less taken than was freed: peaks are what there was, reached before all."""
    setup = taken(700, 5 * MIB, 3 * MIB, 600)
    frees = [Outside("", back, number, setup.ops[number]) for back, number in ((1, 0), (1, 1), (2, 2), (2, 3))]
    first, second = Trace(), Trace()
    for trace, others in ((first, frees[:2]), (second, frees[2:])):
        for other in others:
            trace.others[len(trace)] = other
            trace.ops.append(0)
    second.ops.append(2 * MIB)
    second.tags.append("new")
    compared([setup, first, second], 2**50)


def test_a_block_that_is_freed_twice_is_refused_alike() -> None:
    """In the words of any replay, after what came before."""
    setup, twice = taken(700, 512), Trace()
    for position in range(2):
        twice.others[position] = Outside("", 1, 0, 700)
        twice.ops.append(0)
    plain, quick = Replay(CachingAllocator(2**50)), QuickReplay(CachingAllocator(2**50))
    for replay in (plain, quick):
        replay.play(setup)
        with pytest.raises(ValueError, match="operation 1 frees block 0 of the trace played 1 before"):
            replay.play(twice)
    assert pieces(quick._allocator) == pieces(plain._allocator)


@pytest.mark.parametrize("until", [0, 1, 17, 10**6])
def test_a_trace_is_played_until_an_operation(until: int) -> None:
    """Its first operations alone; and an empty trace."""
    traces = [*decoding(3)[:3], Trace(), taken(512)]
    plain, quick = Replay(CachingAllocator(2**50)), QuickReplay(CachingAllocator(2**50))
    for trace in traces[:2]:
        plain.play(trace)
        quick.play(trace)
    for trace in (traces[3], traces[4]):
        assert figures(quick.play(trace, until)) == figures(plain.play(trace, until))
    setup = traces[0]
    assert figures(quick.play(setup, until)) == figures(plain.play(setup, until))
    quick.drop(None)
    assert pieces(quick._allocator) == pieces(plain._allocator)


def test_an_emptied_cache_gives_segments_back() -> None:
    """Inside a trace: what was cached before it and in it."""

    def work(allocator: CachingAllocator, _: Recorder) -> None:
        for size in (5 * MIB, 700, 30 * MIB):
            allocator.free(allocator.malloc(size))
        kept = allocator.malloc(900)
        allocator.empty_cache()
        allocator.malloc(3 * MIB)
        allocator.free(kept)

    (trace,) = recorded(work)
    compared([decoding(2)[0], trace, taken(512), trace], 2**50)


def test_other_streams_have_segments_of_their_own() -> None:
    """Blocks and scratch memory of a stream, and what comes after them."""
    scratch = Trace(others={0: Scratch(Parts(), 3, "scratch", stream=1)})
    scratch.ops.append(0)
    for trace in (scratch, taken(700, 3 * MIB, stream=1)):
        compared([taken(700, 3 * MIB), trace, taken(MIB, MIB, 3 * MIB, 17 * MIB), trace], 2**50)


@pytest.mark.parametrize("sizes", [(TIB - 512, TIB - 1, 3 * TIB // 4), (TIB,), (5 * TIB, 700)])
def test_requests_of_about_a_tebibyte(sizes: tuple[int, ...]) -> None:
    """On a card with room, and on one without."""
    for capacity_bytes in (2**50, 2 * TIB):
        compared([taken(512), taken(*sizes), taken(700)], capacity_bytes)


def test_an_observer_sees_every_request() -> None:
    """As many as a trace has, also after plays that nobody observed; scratch memory as a whole too."""
    traces = decoding(6, scratch=True)
    quick, actions, scratch = QuickReplay(CachingAllocator(2**50), named=True), list[str](), list[object]()
    for trace in traces[:4]:
        quick.play(trace)
    quick._allocator.on_scratch = scratch.append
    quick.play(traces[4])
    assert len(scratch) == 4
    quick._allocator.on_scratch, quick._allocator.observer = None, lambda action, _: actions.append(action)
    quick.play(traces[5])
    assert len(actions) == len(traces[5]) + 3 * 4  # a scratch is two mallocs and two frees


def test_a_family_s_traces_are_played_without_the_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also frees of blocks of the trace before, whose sizes grow."""
    traces = of_a_family(40, scratch=True)
    quick = QuickReplay(CachingAllocator(2**50))
    for trace in traces[:5]:
        quick.play(trace)
    monkeypatch.setattr(CachingAllocator, "malloc", None)
    for trace in traces[5:]:
        quick.play(trace)


def test_a_family_s_sizes_pass_what_is_small_and_what_is_planned() -> None:
    """Exactly 1 MiB is small still, and exactly 1 TiB is played request by request."""
    for middle, step in ((MIB, 512), (MIB, 1), (TIB, 512), (10 * MIB, 512)):
        known = {length: taken(700, middle + step * length, 2 * MIB) for length in (-4, -3, 3, 4)}
        family = interpolated(known)
        assert family is not None
        for lengths in (range(-4, 5), range(4, -5, -1)):
            compared([taken(512), *map(family, lengths)], 2**50)


def test_scratch_memory_of_one_rule_and_several_lengths_in_a_family() -> None:
    """Lengths that begin alike, and that grow alike."""

    def trace(length: int) -> Trace:
        found = Trace()
        for position, each in enumerate((length, 2 * length - 10, length + 7, length)):
            found.others[position] = Scratch(Parts(), each, position)
            found.ops.append(0)
        return found

    family = interpolated({length: trace(length) for length in (10, 11, 59, 60)})
    assert family is not None
    compared([taken(512), *map(family, range(10, 61))], 2**50)


@pytest.mark.parametrize("settings", ["per_process_memory_fraction:0.5", "large_segment_size_mb:64"])
@pytest.mark.parametrize("collecting", ["", ",garbage_collection_threshold:0.2"])
def test_settings_of_the_card_s_share_and_of_segments(settings: str, collecting: str) -> None:
    """Limits of use, the size of segments, and when unused ones are given back."""
    for traces in (decoding(20), [taken(30 * MIB)] * 12):
        plain, quick = (
            kind(CachingAllocator(640 * MIB, settings=settings + collecting)) for kind in (Replay, QuickReplay)
        )
        before = None
        for trace in traces:
            expected, got = plain.play(trace), quick.play(trace)
            assert figures(got) == figures(expected)
            if expected.oom is not None:
                break
            if len(trace) == 1:
                for replay, played in ((plain, before and before[0]), (quick, before and before[1])):
                    replay.drop(played)
                before = expected, got


def test_places_are_as_far_apart_as_any_card_is_large() -> None:
    """More than 512 TiB of segments, half of which are cached."""

    def work(allocator: CachingAllocator, _: Recorder) -> None:
        blocks = [allocator.malloc(TIB - 512) for _ in range(520)]
        for block in blocks[::2]:
            allocator.free(block)
        for _ in range(10):
            allocator.malloc(TIB - 2**22)

    (trace,) = recorded(work)
    compared([trace, taken(512)], 2**50)


def test_many_small_pieces_are_played_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As comparing all that is cached would take longer: where there are many before a trace, or come to be in it."""

    def many(allocator: CachingAllocator, _: Recorder) -> None:
        blocks = [allocator.malloc(512 * (1 + number % 7)) for number in range(1200)]
        for block in blocks[::2]:
            allocator.free(block)

    (setup,), step = recorded(many), taken(700, 3 * MIB, 900)
    compared([setup, step, step, setup, step], 2**50)
    mallocs, own = list[int](), CachingAllocator.malloc

    def malloc(allocator: CachingAllocator, n_bytes: int, *rest: object) -> object:
        mallocs.append(n_bytes)
        return own(allocator, n_bytes, *rest)

    monkeypatch.setattr(CachingAllocator, "malloc", malloc)
    quick = QuickReplay(CachingAllocator(2**50))
    for trace in (setup, step):
        quick.play(trace)
    assert len(mallocs) == 1200 + 3


def test_a_recorder_s_own_trace_is_planned_as_long_as_it_is() -> None:
    """Played, recorded further, and played again."""
    allocator = CachingAllocator(2**50)
    recorder = Recorder(allocator)
    plain, quick = Replay(CachingAllocator(2**50)), QuickReplay(CachingAllocator(2**50))
    for size in (700, 5 * MIB):
        allocator.malloc(size)
        assert figures(quick.play(recorder.trace)) == figures(plain.play(recorder.trace))
