"""Requests to an allocator, recorded so that they can be replayed: on another card, or a hundred times.

    recorder = Recorder(allocator)              # before anything is allocated
    model = build()
    setup = recorder.cut("setup")
    for length, sample in one_sample_of_each_length:
        output = step(sample)
        traces[length] = recorder.cut()         # `output` is still alive
        del output
        recorder.cut()                          # what that freed is no part of a sample

    replay = Replay(CachingAllocator(card.total_bytes, card.context_bytes))
    replay.play(setup)
    previous = None
    for length in lengths:
        played = replay.play(traces[length])
        replay.drop(previous)                   # as in `output = step(sample)`: the old one goes after the new one came
        previous = played

Blocks are known by the trace that allocated them and their number in it, never by address. A trace may free blocks of
earlier ones: those of a trace cut with a name are found by that name, also where the trace so called is of another
recording; others by how many traces ago they were left, and then the trace played so long ago must have left a block of
that number and size. Where lengths differ, cut before and after the free, and `drop`.

`record_stream` is no part of a trace: a block that waits for another stream is back at the next request, so that peaks,
blocks and segments are the same without.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Protocol

from vram.simulated.allocator import Block, CachingAllocator, SimulatedOutOfMemory

NOTHING = "nothing"


class ScratchSizes(Protocol):
    """A rule for scratch memory, by a length that grows with the work."""

    def sizes_at(self, length: int) -> list[int]:
        """Bytes of the blocks that are alive together, and freed at once."""


@dataclass(frozen=True)
class Scratch:
    """Blocks by the rule `sizes`, at this length, that are allocated together and freed at once."""

    sizes: ScratchSizes
    length: int
    tag: Any = None
    stream: int = 0


@dataclass(frozen=True)
class Outside:
    """A block of another trace: of the one with that name, else of the one played `back` traces ago."""

    trace: str
    back: int
    number: int
    size: int  # as requested, in bytes


@dataclass(eq=False)
class Trace:
    """One piece of a recording. Compact: 8 B an operation, and what is rare in dictionaries."""

    name: str = ""
    # Above 0: a malloc of so many bytes. Below: the free of this trace's malloc number -op - 1. 0: see `others`.
    ops: array[int] = field(default_factory=lambda: array("q"))
    others: dict[int, Outside | Scratch | str] = field(default_factory=dict)  # by position in `ops`
    streams: dict[int, int] = field(default_factory=dict)  # by number of the malloc; 0 where absent
    tags: list[Any] = field(default_factory=list)  # by number of the malloc
    plans: dict[bytes, Any] = field(default_factory=dict)  # of quick replays

    def __len__(self) -> int:
        return len(self.ops)

    def alone(self, back: int, names: Collection[str]) -> Trace:
        """The trace without its frees of blocks of others, except the last `back` and those called `names`."""
        others = {
            at: NOTHING
            if isinstance(other, Outside) and (other.trace not in names if other.trace else other.back > back)
            else other
            for at, other in self.others.items()
        }
        return Trace(self.name, self.ops, others, self.streams, self.tags)


@dataclass(frozen=True)
class Played:
    """The allocator's figures after one play; bytes, as `torch.cuda` would say them. Peaks are of this play alone.

    `peak_position` is the operation at which the allocated peak was first reached. `oom`, if the card was full at
    operation `position`: nothing after it was played, and what the trace had allocated is in `left`.
    """

    trace: Trace
    allocated_peak_bytes: int
    requested_peak_bytes: int
    reserved_peak_bytes: int
    allocated_bytes: int
    requested_bytes: int
    reserved_bytes: int
    position: int
    peak_position: int
    left: dict[int, Block]  # by number of the malloc; drops out when freed
    oom: SimulatedOutOfMemory | None = None


class Recorder:
    """Records the requests to `allocator`, from now on; nothing may be allocated yet. One at a time."""

    def __init__(self, allocator: CachingAllocator) -> None:
        if allocator.observer is not None or allocator.allocations:
            raise ValueError(
                "a recorder must be the first observer of an allocator with nothing allocated, got one with "
                f"{'an observer' if allocator.observer is not None else f'{allocator.allocations} blocks'}"
            )
        self._allocator = allocator
        self._places: dict[Block, tuple[int, int]] = {}  # which trace, which malloc of it
        self._names: list[str] = []
        self._trace = Trace()
        allocator.observer, allocator.on_scratch = self._note, self._note_scratch

    @property
    def position(self) -> int:
        """How many operations the trace has so far: a place to come back to, as where a token ends."""
        return len(self._trace)

    @property
    def cuts(self) -> int:
        """How many cuts there were."""
        return len(self._names)

    @property
    def trace(self) -> Trace:
        """The requests since the last cut, so far."""
        return self._trace

    def place(self, block: Block | None) -> tuple[int, int]:
        """Number of the cut, from 0, that has a living block, and which malloc of it made it; (-1, -1): none."""
        return self._places.get(block, (-1, -1)) if block is not None else (-1, -1)

    def cut(self, name: str = "") -> Trace:
        """The requests since the last cut. Later ones refer to `name`, which is new in the recording."""
        if name and name in self._names:
            raise ValueError(f"a trace's name must be new in its recording, got {name!r} again")
        trace, self._trace = self._trace, Trace()
        trace.name = name
        self._names.append(name)
        for position, other in trace.others.items():
            if isinstance(other, Outside) and self._names[len(self._names) - 1 - other.back]:
                named = self._names[len(self._names) - 1 - other.back]
                trace.others[position] = Outside(named, 0, other.number, other.size)
        return trace

    def alive(self, first: int, until: int) -> list[Block]:
        """Blocks of the cuts number `first` to `until - 1`, counted from 0, that are not freed yet."""
        return [block for block, (cut, _) in self._places.items() if first <= cut < until]

    def stop(self) -> None:
        """Record no more."""
        self._allocator.observer = self._allocator.on_scratch = None

    def _note_scratch(self, scratch: Scratch) -> None:
        self._trace.others[len(self._trace)] = scratch
        self._trace.ops.append(0)

    def _note(self, action: str, block: Block | None) -> None:
        trace, current = self._trace, len(self._names)
        if self._allocator.taking_scratch:
            return  # it is recorded as a whole
        if block is None:
            trace.others[len(trace)] = action
            trace.ops.append(0)
        elif action == "malloc":
            number = len(trace.tags)
            self._places[block] = current, number
            if block.stream:
                trace.streams[number] = block.stream
            trace.tags.append(block.tag)
            trace.ops.append(block.requested)
        else:
            index, number = self._places.pop(block)
            if index == current:
                trace.ops.append(-number - 1)
            else:
                trace.others[len(trace)] = Outside("", current - index, number, block.requested)
                trace.ops.append(0)


class Replay:
    """Plays traces on `allocator`, one after the other; its peaks are reset by each play."""

    def __init__(self, allocator: CachingAllocator) -> None:
        self._allocator = allocator
        self._played: list[dict[int, Block]] = []  # what each left
        self._named: dict[str, dict[int, Block]] = {}

    def play(self, trace: Trace, until: int | None = None) -> Played:
        """Replay `trace`, or its first `until` operations. The card being full ends it, and is in `oom`.

        Raises ValueError where the trace frees what the traces before it, as played, did not leave.
        """
        self._allocator.reset_peak()
        left: dict[int, Block] = {}
        end = len(trace) if until is None else min(until, len(trace))
        position, peak_position, oom = self._run(trace, end, left)
        self._played.append(left)
        if trace.name:
            self._named[trace.name] = left
        stats = self._allocator.stats
        return Played(
            trace=trace,
            allocated_peak_bytes=stats.allocated_bytes.peak,
            requested_peak_bytes=stats.requested_bytes.peak,
            reserved_peak_bytes=stats.reserved_bytes.peak,
            allocated_bytes=stats.allocated_bytes.current,
            requested_bytes=stats.requested_bytes.current,
            reserved_bytes=stats.reserved_bytes.current,
            position=position,
            peak_position=peak_position,
            left=left,
            oom=oom,
        )

    def _run(self, trace: Trace, end: int, left: dict[int, Block]) -> tuple[int, int, SimulatedOutOfMemory | None]:
        """Where the trace ended, where its peak was, and why it ended early; `left` gets what is alive."""
        allocator = self._allocator
        number, position, peak_position, peak_bytes = 0, 0, 0, allocator.allocated_bytes
        malloc, free, tags, streams = allocator.malloc, allocator.free, trace.tags, trace.streams
        try:
            for position, op in enumerate(trace.ops[:end]):
                if op > 0:
                    left[number] = malloc(op, streams.get(number, 0), tags[number])
                    number += 1
                    if allocator.allocated_bytes > peak_bytes:
                        peak_bytes, peak_position = allocator.allocated_bytes, position
                elif op < 0:
                    free(left.pop(-op - 1))
                else:
                    other = trace.others[position]
                    self._other(other, position)
                    if isinstance(other, Scratch) and allocator.stats.allocated_bytes.peak > peak_bytes:
                        peak_bytes, peak_position = allocator.stats.allocated_bytes.peak, position
        except SimulatedOutOfMemory as error:
            return position, peak_position, error
        return end, peak_position, None

    def drop(self, played: Played | None, which: Callable[[Block], bool] | None = None) -> None:
        """Free the blocks that a play left and that are still there: all, or those that `which` picks."""
        left = played.left if played is not None else {}
        for number, block in list(left.items()):
            if which is None or which(block):
                self._allocator.free(left.pop(number))

    def _other(self, other: Outside | Scratch | str, position: int) -> None:
        """An operation that is neither a malloc nor the free of a block of the same trace."""
        if isinstance(other, Scratch):
            self._allocator.take_scratch(other.sizes.sizes_at(other.length), other, other.tag, other.stream)
        elif isinstance(other, Outside):
            self._free_outside(other, position)
        elif other != NOTHING:
            self._allocator.empty_cache()

    def _owner(self, other: Outside) -> dict[int, Block]:
        """Blocks that the play left whose block is freed, by number."""
        if other.trace:
            return self._named.get(other.trace, {})
        return self._played[-other.back] if other.back <= len(self._played) else {}

    def _free_outside(self, other: Outside, position: int) -> None:
        left = self._owner(other)
        block = left.get(other.number)
        if block is None or block.requested != other.size:
            origin = f"trace {other.trace!r}" if other.trace else f"the trace played {other.back} before"
            there = "none" if block is None else f"{block.requested} B"
            raise ValueError(
                f"operation {position} frees block {other.number} of {origin}, which must have left {other.size} B, "
                f"got {there}: cut the recording around that free, and drop"
            )
        self._allocator.free(left.pop(other.number))
