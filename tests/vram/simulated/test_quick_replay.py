"""Replays that skip what came before, against those that play every request: the same figures, errors and blocks."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from vram.simulated.allocator import CachingAllocator
from vram.simulated.numeric_pool import play
from vram.simulated.peak_blocks import in_use, watched
from vram.simulated.quick_replay import QuickReplay
from vram.simulated.trace import Played, Recorder, Replay, Scratch, Trace
from vram.simulated.trace_family import OfFamily, interpolated

KIB, MIB, GIB = 2**10, 2**20, 2**30
EDGES = [1, 512, 513, 100_000, MIB - 512, MIB, MIB + 1, 3 * MIB + 77, 10 * MIB - 512, 10 * MIB, 20 * MIB + 1]


@dataclass(frozen=True)
class Parts:
    """Scratch memory of two blocks, one of which grows."""

    def sizes_at(self, length: int) -> list[int]:
        return [700, 40 * KIB * length]


def setup_of(allocator: CachingAllocator, recorder: Recorder, chance: random.Random) -> tuple[Trace, list[Any]]:
    blocks = [allocator.malloc(chance.choice(EDGES), tag="weights") for _ in range(chance.randrange(1, 20))]
    return recorder.cut("setup"), blocks


def steps(seed: int, count: int) -> list[Trace]:
    """A set-up, then steps: most with the same requests in the same order, some sizes of which grow.

    Each step frees what the one before left, and some of what the set-up left.
    """
    chance = random.Random(seed)
    allocator = CachingAllocator(2**50)
    recorder = Recorder(allocator)
    setup, weights = setup_of(allocator, recorder, chance)
    plan = [
        (chance.random() < 0.55, chance.choice(EDGES), chance.choice([0, 0, 0, 1, 64, 8 * KIB]), chance.random())
        for _ in range(chance.randrange(5, 60))
    ]
    traces, kept = [setup], list[Any]()
    for length in range(count):
        if chance.random() < 0.1:
            plan[chance.randrange(len(plan))] = (True, chance.choice(EDGES), 0, chance.random())
        own, before, kept = list[Any](), kept, []
        for takes, size, slope, where in plan:
            if takes or not own:
                own.append(allocator.malloc(size + slope * length, tag=length))
            else:
                allocator.free(own.pop(int(where * len(own))))
            if before and where < 0.3:
                allocator.free(before.pop())
            if where > 0.97:
                scratch = Scratch(Parts(), length + 1, "scratch")
                allocator.take_scratch(scratch.sizes.sizes_at(scratch.length), scratch, "scratch")
            if weights and where > 0.995:
                allocator.free(weights.pop())
            if where > 0.999:
                allocator.empty_cache()
        for block in (*before, *own[3:]):
            allocator.free(block)
        kept = own[:3]
        traces.append(recorder.cut())
    return traces


def figures(played: Played) -> Any:
    left = [(number, block.requested, block.size, block.tag) for number, block in played.left.items()]
    return {**vars(played), "left": left, "oom": str(played.oom), "trace": None}


def compared(traces: list[Trace], capacity_bytes: int, seed: int = 0) -> QuickReplay:
    """The quick replay, after it did as the other: in every figure of every play, in what is in use at the peak, and in
    what is there then."""
    chance = random.Random(seed)
    plain, quick = Replay(CachingAllocator(capacity_bytes)), QuickReplay(CachingAllocator(capacity_bytes), named=True)
    for trace in traces:
        with watched(plain._allocator) as at_peak:
            expected = plain.play(trace)
        got = quick.play(trace)
        assert figures(got) == figures(expected)
        assert Counter(quick.at_peak()) == Counter(at_peak())
        assert sum(n_bytes for n_bytes, _ in quick.at_peak()) == got.allocated_peak_bytes
        for replay, played in ((plain, expected), (quick, got)):
            if expected.oom is not None or chance.random() < 0.05:
                replay.drop(played if expected.oom is not None else None)
                assert pieces(quick._allocator) == pieces(plain._allocator) or replay is plain
        if expected.oom is not None:
            break
    quick.drop(None)
    assert pieces(quick._allocator) == pieces(plain._allocator)
    assert quick._allocator.stats.allocated_bytes.current == plain._allocator.stats.allocated_bytes.current
    for name in ("allocations", "segments", "inactive_split_bytes", "inactive_split"):
        assert getattr(quick._allocator, name) == getattr(plain._allocator, name), name
    return quick


def pieces(allocator: CachingAllocator) -> Any:
    """Blocks of small and large segments, in the order of addresses."""
    kinds = [[segment for segment in allocator._segments.values() if segment.pool.small is small] for small in (0, 1)]
    return [
        [
            [(each.size, each.allocated, each.requested if each.allocated else 0) for each in segment.blocks()]
            for segment in kind
        ]
        for kind in kinds
    ]


@pytest.mark.parametrize("seed", range(24))
def test_the_same_as_request_by_request(seed: int) -> None:
    """Random steps on cards from roomy to full: every figure, message, and block that is left."""
    chance = random.Random(seed)
    traces = steps(seed, 20)
    most_bytes = max(played.reserved_peak_bytes for played in played_on(traces, 2**50))
    capacity_bytes = chance.choice([2**50, most_bytes, most_bytes - 2 * MIB, int(most_bytes * chance.uniform(0.5, 1))])
    compared(traces, capacity_bytes, seed)


def played_on(traces: list[Trace], capacity_bytes: int) -> Iterator[Played]:
    replay = Replay(CachingAllocator(capacity_bytes))
    return (replay.play(trace) for trace in traces)


def decoding(tokens: int, layers: int = 4, first: int = 500, *, scratch: bool = False) -> list[Trace]:
    """Steps of a decoder: a cache that is larger each time, in the place of the last; the rest as it always is, but for
    scratch memory, where that is wanted."""
    allocator = CachingAllocator(2**50)
    recorder = Recorder(allocator)
    allocator.malloc(300 * MIB)
    weights = [allocator.malloc(8 * KIB) for _ in range(40)]
    traces, cache = [recorder.cut("setup")], list[Any]()
    for length in range(first, first + tokens):
        for layer in range(layers):
            hidden = [allocator.malloc(8 * KIB) for _ in range(5)]
            longer = allocator.malloc(8 * KIB * length, tag=length)
            scores = allocator.malloc(64 * length)
            if scratch:
                why = Scratch(Parts(), length, "scratch")
                allocator.take_scratch(why.sizes.sizes_at(length), why, "scratch")
            if len(cache) == layers:
                allocator.free(cache.pop(0))
            cache.append(longer)
            allocator.free(scores)
            for block in hidden[::-1] if layer % 2 else hidden:
                allocator.free(block)
        token = allocator.malloc(8)
        allocator.free(weights.pop()) if length == first + 1 else None
        traces.append(recorder.cut())
        allocator.free(token)
    return traces


def played_small(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that gets how many small requests are played, each time that some are."""
    counts = list[int]()

    def counting(free: Any, codes: Any, numbered: Any, kept: int, new_segment: Any) -> None:
        if not kept:
            counts.append(len(codes))
        play(free, codes, numbered, kept, new_segment)

    monkeypatch.setattr("vram.simulated.quick_replay.play", counting)
    return counts


def test_what_came_before_is_not_played_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the layers' small requests repeat, a token plays few of them; the allocator gets none."""
    traces = decoding(60, layers=40)
    compared(traces, 2**50)
    quick = QuickReplay(CachingAllocator(2**50))
    for trace in traces[:59]:
        quick.play(trace)
    counts = played_small(monkeypatch)
    monkeypatch.setattr(CachingAllocator, "malloc", None)
    quick.play(traces[59])
    quick.play(traces[60])
    small = sum(1 for trace in traces[59:61] for op in trace.ops if 0 < op <= MIB)
    assert sum(counts) < small / 2  # that is a quarter of mallocs and frees


def of_a_family(tokens: int, first: int = 500, *, scratch: bool = False) -> list[Trace]:
    """The same steps, but for the first ones all from four of them."""
    setup, *traces = decoding(tokens, first=first, scratch=scratch)
    family = interpolated({number: traces[number] for number in (3, 4, tokens - 2, tokens - 1)})
    assert family is not None
    return [setup, *traces[:3], *map(family, range(3, tokens))]


@pytest.mark.parametrize("capacity_bytes", [2**50, 352 * MIB, 340 * MIB])
def test_a_family_s_traces_are_played_as_each_by_itself(capacity_bytes: int) -> None:
    """With sizes that grow, small ones among them; on cards with room, and on full ones."""
    compared(of_a_family(70), capacity_bytes)


@pytest.mark.parametrize("first", [3, 20, 250])
def test_scratch_memory_that_grows_in_a_family(first: int) -> None:
    """One of its two blocks is small at first, and large in the end, where the traces have another plan."""
    traces = of_a_family(40, first, scratch=True)
    compared(traces, 2**50)
    compared(traces, 310 * MIB)
    assert isinstance(traces[-1], OfFamily)
    assert len(traces[-1].family.plans) == (1 if first == 250 else 2)


def test_traces_of_a_family_have_one_plan() -> None:
    """Also where small sizes grow; another only where a small request has become a large one."""
    traces = of_a_family(400, first=1000)  # 64 B for each length, and 8 KiB
    compared(traces, 2**50)
    assert isinstance(traces[-1], OfFamily)
    assert len(traces[-1].family.plans) == 1


def test_a_card_that_is_full_in_a_trace_that_came_before() -> None:
    """Its large requests stop where there is no room, as blocks of 10 MiB need segments of their own; its small ones,
    known to the end, are played until there."""
    traces = of_a_family(60, first=1250)
    roomy = QuickReplay(CachingAllocator(2**50))
    reserved = [roomy.play(trace).reserved_bytes for trace in traces]
    assert reserved[20] < reserved[-1]
    full = compared(traces, reserved[20])
    assert full._allocator.stats.ooms == 1


def test_what_it_plays_as_any_replay_is_known_to_the_next() -> None:
    """Named blocks, those of the traces before, and what is free, after plays that somebody observed."""
    traces = decoding(30)
    quick, other = QuickReplay(CachingAllocator(2**50)), Replay(CachingAllocator(2**50))
    for number, trace in enumerate(traces):
        quick._allocator.observer = None if number % 4 else observer
        assert figures(quick.play(trace)) == figures(other.play(trace))
        assert sorted(quick.in_use(), key=str) == sorted(in_use(other._allocator), key=str)


def observer(*_: object) -> None:
    """An observer."""


@pytest.mark.parametrize("capacity_mib", range(302, 380, 13))
def test_a_card_is_full_where_it_would_be(capacity_mib: int) -> None:
    """At the same operation, in the same words, after the same segments were given back."""
    compared(decoding(40), capacity_mib * MIB)


def test_what_a_trace_can_t_free_is_refused_alike() -> None:
    """The same words, and no block is freed of which the replay did not know."""
    traces = decoding(4)
    replay = QuickReplay(CachingAllocator(2**50))
    for trace in (*traces[:3], *traces[:1]):
        replay.play(trace)
    with pytest.raises(ValueError, match="of the trace played 1 before, which must have left"):
        replay.play(traces[4])


def test_with_settings_that_both_kinds_share_all_is_played(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is skipped where small requests are rounded otherwise, or segments given back early."""
    monkeypatch.setattr("vram.simulated.quick_replay.planned", None)
    for settings in ("roundup_power2_divisions:4", "max_split_size_mb:32"):
        plain, quick = (kind(CachingAllocator(GIB, settings=settings)) for kind in (Replay, QuickReplay))
        for trace in decoding(5):
            assert figures(quick.play(trace)) == figures(plain.play(trace))
