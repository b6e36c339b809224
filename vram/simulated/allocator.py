"""PyTorch's caching allocator for CUDA, as a model that needs neither torch nor a GPU: which block and segment each
request gets, every figure of `torch.cuda.memory_stats` that follows, and when the card is full.

The rules are those of c10/cuda/CUDACachingAllocator.cpp and c10/core/AllocatorConfig.h, torch 2.11 to 2.13, here with
default settings; `allocator_settings` has the others:

- A request is rounded up to 512 B. Up to 1 MiB it is *small*: segments of 2 MiB. Larger ones below 10 MiB come from
  segments of 20 MiB, from 10 MiB on from a segment of the request's own size, rounded up to 2 MiB.
- Small and large requests, and streams, never share a segment. The smallest cached block that fits is taken; of several
  of that size, the one at the lowest address.
- What is left of a block is split off where it is at least 512 B (small) or more than 1 MiB (large); else it stays in
  the block, and `allocated_bytes` counts it. Freed neighbours join at once.
- A block that another stream uses (`record_stream`) waits when it is freed, until the next request or until the cache
  is emptied. A card would also wait for the other stream's work: here all work is done when it is issued.
- Where cudaMalloc fails, every segment that is wholly cached goes back to the card, and it is tried once more (a
  *retry*); then the request is out of memory, and the segments stay given back.

Assumed of the driver: cudaMalloc hands out whole pages of 2 MiB, which all segments are multiples of, and succeeds
whenever that much is free: physical memory does not fragment. Each segment's address is above all earlier ones. A
card may place them otherwise, and then choose another of two cached blocks of one size.

Not modelled: CUDA graphs and private pools, peers, several devices. Settings that change a figure are refused by name.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from vram.simulated.allocator_figures import FIGURES, Count, Pool, Stat, Stats
from vram.simulated.allocator_settings import UNLIMITED_BYTES, Settings

_MIB = 2**20
_BLOCK_BYTES = 512  # kMinBlockSize
SMALL_BYTES = _MIB  # kSmallSize
SMALL_SEGMENT_BYTES = 2 * _MIB  # kSmallBuffer
_OWN_SEGMENT_BYTES = 10 * _MIB  # kMinLargeAlloc
_PAGE_BYTES = 2 * _MIB  # kRoundLarge, and the driver's page
_EXBIBYTE = 2**60
_FIRST_ADDRESS = 0x7F00_0000_0000  # where the driver puts segments on Linux; no figure depends on it


class SimulatedOutOfMemory(Exception):
    """The card is full. `message`, also `str(error)`, is worded as torch 2.11 to 2.13 words it.

    `requested_bytes` is the size that the caller passed, `segment_bytes` that of the segment which cudaMalloc refused
    (the message has it); `tag` is the caller's. All bytes are as they were after the retry.
    """

    def __init__(
        self,
        *,
        requested_bytes: int,
        segment_bytes: int,
        free_bytes: int,
        total_bytes: int,
        process_bytes: int,
        allocated_bytes: int,
        reserved_bytes: int,
        allowed_bytes: int | None = None,
        tag: Any = None,
    ) -> None:
        self.requested_bytes, self.segment_bytes, self.tag = requested_bytes, segment_bytes, tag
        self.free_bytes, self.total_bytes, self.process_bytes = free_bytes, total_bytes, process_bytes
        self.allocated_bytes, self.reserved_bytes = allocated_bytes, reserved_bytes
        self.allowed_bytes = allowed_bytes
        super().__init__(self.message)

    @property
    def reserved_unallocated_bytes(self) -> int:
        """Cached in segments that are partly in use, so that they could not be given back."""
        return self.reserved_bytes - self.allocated_bytes

    @property
    def message(self) -> str:
        """CUDA's words. Other processes' lines, which need their ids, are left out."""
        if self.requested_bytes >= _EXBIBYTE:
            return "CUDA out of memory. Tried to allocate more than 1EB memory."
        allowed = "" if self.allowed_bytes is None else f"{cuda_size(self.allowed_bytes)} allowed; "
        return (
            f"CUDA out of memory. Tried to allocate {cuda_size(self.segment_bytes)}. GPU 0 has a total capacity of "
            f"{cuda_size(self.total_bytes)} of which {cuda_size(self.free_bytes)} is free. Including non-PyTorch "
            f"memory, this process has {cuda_size(self.process_bytes)} memory in use. {allowed}Of the allocated memory "
            f"{cuda_size(self.allocated_bytes)} is allocated by PyTorch, and "
            f"{cuda_size(self.reserved_unallocated_bytes)} is reserved by PyTorch but unallocated. If reserved but "
            "unallocated memory is large try setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid "
            "fragmentation.  See documentation for Memory Management  (https://docs.pytorch.org/docs/stable/notes/"
            "cuda.html#optimizing-memory-usage-with-pytorch-cuda-alloc-conf)"
        )


class Block:
    """A piece of a segment: in use from `malloc` to `free`, then cached, alone or as part of a larger one.

    `size` is what `allocated_bytes` counts, `requested` what the caller passed, in bytes; `tag` is the caller's own.
    Once freed it belongs to the allocator, and its address and size may change. `users` are other streams that use it;
    with some, a free leaves it `allocated` and `pending` for a while.
    """

    __slots__ = (
        *("address", "allocated", "cached_at", "next", "pending", "previous", "requested", "segment", "size", "tag"),
        "users",
    )

    def __init__(self, address: int, size: int, segment: Segment | None) -> None:
        self.address, self.size, self.segment = address, size, segment
        self.requested, self.allocated, self.pending = 0, False, False
        self.users: set[int] | None = None
        self.cached_at = 0  # how many requests its pool had had by then
        self.previous: Block | None = None
        self.next: Block | None = None
        self.tag: Any = None

    @property
    def stream(self) -> int:
        """The stream it was allocated on; 0 for an empty block, which is on none."""
        return self.segment.stream if self.segment else 0

    def __repr__(self) -> str:
        state = "pending" if self.pending else "allocated" if self.allocated else "cached"
        return f"<Block {self.address:#x} {self.size} B {state}, {self.requested} B requested>"


class Segment:
    """One result of cudaMalloc."""

    __slots__ = ("address", "first", "free", "pool", "size", "stream")

    def __init__(self, address: int, size: int, stream: int, pool: Pool, free: _Free) -> None:
        self.address, self.size, self.stream, self.pool = address, size, stream, pool
        self.free = free  # the cached blocks of its stream and pool
        self.first = Block(address, size, self)

    def blocks(self) -> Iterator[Block]:
        """From the lowest address to the highest."""
        block: Block | None = self.first
        while block is not None:
            yield block
            block = block.next


# The cached blocks of one pool and stream, ascending; addresses differ, so that blocks are never compared.
_Free = list[tuple[int, int, Block]]


class CachingAllocator:
    """One device of `capacity_bytes`, of which its CUDA context and other processes take theirs from the start.

    `settings` are those of PYTORCH_ALLOC_CONF or PYTORCH_CUDA_ALLOC_CONF, or their text; a ValueError names what is not
    modelled. The attributes called as in `Stats` are the current figures, cheaper than `stats`. `observer`, if set, is
    called with ("malloc", block), ("free", block) before the block is freed, and ("empty_cache", None); all in
    `before_reset` are called before the peaks are reset.
    """

    def __init__(
        self, capacity_bytes: int, context_bytes: int = 0, other_bytes: int = 0, *, settings: Settings | str = ""
    ) -> None:
        if min(capacity_bytes, context_bytes, other_bytes) < 0 or context_bytes + other_bytes > capacity_bytes:
            raise ValueError(
                "capacity_bytes must hold context_bytes and other_bytes, none negative, got "
                f"{capacity_bytes}, {context_bytes} and {other_bytes}"
            )
        self.capacity_bytes, self.context_bytes, self.other_bytes = capacity_bytes, context_bytes, other_bytes
        self.settings = Settings().set_to(settings) if isinstance(settings, str) else settings
        # Limit of segments: torch.cuda.set_per_process_memory_fraction.
        fraction = self.settings.fraction
        self.allowed_bytes: int | None = None if fraction == 1 else int(fraction * capacity_bytes)
        # As torch.cuda.memory_stats says it: that of the start, and -1 without one.
        limit_bytes = self.settings.max_split_bytes
        self.max_split_size = -1 if limit_bytes == UNLIMITED_BYTES else limit_bytes
        self.oversize_allocations, self.oversize_segments = Count(), Count()  # from `max_split_bytes` on
        self.observer: Callable[[str, Block | None], None] | None = None
        # If set, called with the reason for scratch memory, before its mallocs and frees are observed like any.
        self.on_scratch: Callable[[Any], None] | None = None
        self.taking_scratch = False
        self.before_reset: list[Callable[[], None]] = []
        self.allocated_bytes = self.requested_bytes = self.reserved_bytes = self.inactive_split_bytes = 0
        self.allocations = self.segments = self.inactive_split = 0
        self._peak_allocated_bytes = self._peak_requested_bytes = self._peak_reserved_bytes = 0
        self._peak_inactive_split_bytes = self._peak_allocations = self._peak_segments = self._peak_inactive_split = 0
        self._peak_active_bytes = self._peak_active = 0  # when peaks were reset; later ones are those of allocated
        self._retries = self._ooms = self._syncs = 0
        self.pools = Pool(small=False), Pool(small=True)
        self._free: dict[tuple[bool, int], _Free] = {}
        self._segments: dict[int, Segment] = {}  # by address; in the order of addresses
        self._next_address = _FIRST_ADDRESS
        self._busy = False
        self._waiting: list[Block] = []  # freed, and not yet put back
        self._pending: list[Block] = []  # freed, and waiting for other streams

    @property
    def free_bytes(self) -> int:
        """Free bytes, as cudaMemGetInfo says them."""
        return self.capacity_bytes - self.context_bytes - self.other_bytes - self.reserved_bytes

    def malloc(self, n_bytes: int, stream: int = 0, tag: Any = None) -> Block:
        """A block of at least `n_bytes`. Zero bytes give an empty block at address 0 that no figure counts.

        Raises SimulatedOutOfMemory, after all segments that are wholly cached were given back.
        """
        if self._busy:
            raise RuntimeError("malloc must not be called from a finalizer or another thread while one is under way")
        self._busy = True
        try:
            return self._malloc(n_bytes, stream, tag)
        finally:
            self._busy = False
            if self._waiting:
                self._settle()

    def _malloc(self, n_bytes: int, stream: int, tag: Any) -> Block:
        if n_bytes <= 0:
            if n_bytes < 0:
                raise ValueError(f"n_bytes must not be negative, got {n_bytes}")
            empty = Block(0, 0, None)
            empty.allocated = True
            return empty
        if n_bytes >= _EXBIBYTE:  # without a cudaMalloc, so that no cache is given back
            raise self._full(n_bytes, n_bytes, tag)
        if self._pending:
            self._end_pending()
        settings = self.settings
        size = settings.rounded(n_bytes)
        small = size <= SMALL_BYTES
        pool = self.pools[small]
        free = self._free.get((small, stream))
        if free is None:
            free = self._free[small, stream] = []
        at = bisect_left(free, (size,))
        if self._collects:
            pool.requests += 1
        if at < len(free) and (settings.max_split_bytes == UNLIMITED_BYTES or self._may_take(free[at][0], size)):
            cached = free.pop(at)[2]
        else:
            cached = self._new_segment(size, stream, pool, free, n_bytes, tag)
        block = self._split(cached, size, pool, free)
        block.allocated, block.requested, block.tag = True, n_bytes, tag

        self.allocated_bytes += block.size
        self.requested_bytes += n_bytes
        self.allocations += 1
        if self.allocated_bytes > self._peak_allocated_bytes:
            self._peak_allocated_bytes = self.allocated_bytes
        if self.requested_bytes > self._peak_requested_bytes:
            self._peak_requested_bytes = self.requested_bytes
        if self.allocations > self._peak_allocations:
            self._peak_allocations = self.allocations
        pool.allocated_bytes.change(block.size)
        pool.requested_bytes.change(n_bytes)
        pool.allocations.change(1)
        if block.size >= settings.max_split_bytes:
            self.oversize_allocations.change(1)
        if self.observer is not None:
            self.observer("malloc", block)
        return block

    def _split(self, cached: Block, size: int, pool: Pool, free: _Free) -> Block:
        """A block of `size` bytes from the start of a cached one, whose rest stays cached where it is large enough."""
        segment, previous, rest = cached.segment, cached.previous, cached.size - size
        assert segment is not None
        was_split = previous is not None or cached.next is not None
        if rest < _BLOCK_BYTES if pool.small else rest <= SMALL_BYTES or size >= self.settings.max_split_bytes:
            block = Block(cached.address, cached.size, segment)
            after = cached.next
            if was_split:
                self._change_inactive(pool, -cached.size, -1)
        else:
            block = Block(cached.address, size, segment)
            after = cached
            cached.address += size
            cached.size = rest
            cached.cached_at = pool.requests
            insort(free, (rest, cached.address, cached))
            self._change_inactive(pool, *((-size, 0) if was_split else (rest, 1)))
        block.previous, block.next = previous, after
        if previous is None:
            segment.first = block
        else:
            previous.next = block
        if after is not None:
            after.previous = block
        return block

    @property
    def _collects(self) -> bool:
        """Whether unused segments are given back before the card is full."""
        return self.settings.collect_from > 0 and self.allowed_bytes is not None

    def _may_take(self, cached_bytes: int, size: int) -> bool:
        """Whether a cached block is for a request of `size`: large ones are not split, and not much too large."""
        if size < self.settings.max_split_bytes:
            return cached_bytes < self.settings.max_split_bytes
        return cached_bytes < size + self.settings.rounding_bytes

    def take_scratch(self, sizes: Iterable[int], why: Any = None, tag: Any = None, stream: int = 0) -> None:
        """Take blocks of `sizes` bytes together, and free them at once. Raises as `malloc`, and then keeps none.

        `on_scratch` gets `why`.
        """
        if self.on_scratch is not None:
            self.on_scratch(why)
        self.taking_scratch, blocks = True, []
        try:
            for n_bytes in sizes:
                blocks.append(self.malloc(n_bytes, stream, tag))
        finally:
            for block in blocks:
                self.free(block)
            self.taking_scratch = False

    def record_stream(self, block: Block, stream: int) -> None:
        """Let another stream use `block`: once freed, it waits for that one's work."""
        if block.segment is not None and stream != block.segment.stream:
            block.users = (block.users or set()) | {stream}

    def free(self, block: Block) -> None:
        """Put `block` back into the cache. Raises ValueError where it is not in use (freed before).

        May be called at any time: the garbage collector may end a tensor while a malloc or free is under way, and then
        its block is put back right after that.
        """
        self._waiting.append(block)
        if not self._busy:
            self._settle()

    def _settle(self) -> None:
        while self._waiting:
            self._busy = True
            try:
                self._put_back(self._waiting.pop())
            finally:
                self._busy = False

    def _put_back(self, block: Block) -> None:
        if not block.allocated or block.pending:
            raise ValueError(f"a block must be freed once, got {block!r}")
        if block.segment is None:
            block.allocated = False
            return
        if self.observer is not None:
            self.observer("free", block)
        pool = block.segment.pool
        self.allocated_bytes -= block.size
        self.allocations -= 1
        pool.allocated_bytes.current -= block.size
        pool.allocations.current -= 1
        if block.size >= self.settings.max_split_bytes:
            self.oversize_allocations.change(-1)
        if block.users:
            block.pending = True
            self._pending.append(block)
            pool.pending_bytes.current += block.size
            pool.pending.current += 1
        else:
            self._cache(block, block.segment)

    def _end_pending(self) -> None:
        """Cache blocks that waited for other streams, whose work is done."""
        pending, self._pending = self._pending, []
        for block in pending:
            assert block.segment is not None
            block.users, block.pending = None, False
            block.segment.pool.pending_bytes.current -= block.size
            block.segment.pool.pending.current -= 1
            self._cache(block, block.segment)

    def _cache(self, block: Block, segment: Segment) -> None:
        """Put a block back, joined with its cached neighbours."""
        free, pool = segment.free, segment.pool
        block.allocated = False
        block.tag = None
        self.requested_bytes -= block.requested
        pool.requested_bytes.current -= block.requested
        previous, after, before = block.previous, block.next, block.size
        joined = 0
        if previous is not None and not previous.allocated:
            del free[bisect_left(free, (previous.size, previous.address))]
            joined += 1
            previous.size += block.size
            previous.next = after
            if after is not None:
                after.previous = previous
            block = previous
        if after is not None and not after.allocated:
            del free[bisect_left(free, (after.size, after.address))]
            joined += 1
            block.size += after.size
            block.next = after.next
            if after.next is not None:
                after.next.previous = block
        block.cached_at = pool.requests
        insort(free, (block.size, block.address, block))
        if block.previous is not None or block.next is not None:
            self._change_inactive(pool, before, 1 - joined)
        elif joined:
            self._change_inactive(pool, before - block.size, -joined)

    def empty_cache(self) -> None:
        """Give every segment that is wholly cached back to the card."""
        if self.observer is not None:
            self.observer("empty_cache", None)
        self._busy = True
        try:
            self._release_segments()
        finally:
            self._busy = False
            self._settle()

    def reset_accumulated(self) -> None:
        """Count retries, out of memory errors, and what pools were given and gave back, from zero."""
        self._retries = self._ooms = self._syncs = 0
        for count in self._counts():
            count.reset_totals()

    def reset_peak(self) -> None:
        """Let every peak start again from the current figure."""
        for keep in self.before_reset:
            keep()
        for name in FIGURES:
            setattr(self, f"_peak_{name}", getattr(self, name))
        for count in self._counts():
            count.peak = count.current
        for pool in self.pools:
            pool.pending_bytes.peak += pool.allocated_bytes.current
            pool.pending.peak += pool.allocations.current
        self._peak_active_bytes = sum(pool.active_bytes.current for pool in self.pools)
        self._peak_active = sum(pool.active.current for pool in self.pools)

    def _counts(self) -> Iterator[Count]:
        for pool in self.pools:
            yield from pool.counts()
        yield from (self.oversize_allocations, self.oversize_segments)

    @property
    def stats(self) -> Stats:
        """All figures, with their peaks."""
        stats = {name: Stat(getattr(self, name), getattr(self, f"_peak_{name}")) for name in FIGURES}
        return Stats(
            **stats,
            active_bytes=Stat(
                sum(pool.active_bytes.current for pool in self.pools),
                max(self._peak_active_bytes, self._peak_allocated_bytes),
            ),
            active=Stat(
                sum(pool.active.current for pool in self.pools), max(self._peak_active, self._peak_allocations)
            ),
            alloc_retries=self._retries,
            ooms=self._ooms,
            sync_all_streams=self._syncs,
        )

    def blocks(self) -> Iterator[Block]:
        """Every block, in use or cached, by address."""
        for segment in self._segments.values():
            yield from segment.blocks()

    @property
    def is_plain(self) -> bool:
        """Whether each pool's blocks depend on nothing but its requests: default rules, and one stream."""
        settings = self.settings
        rounds = any(divisions > 1 for divisions in settings.divisions)
        one_stream = all(stream == 0 for _, stream in self._free) and not self._pending
        return one_stream and not rounds and settings.max_split_bytes == UNLIMITED_BYTES and not settings.collect_from

    def has_room(self, needed_bytes: int) -> bool:
        """Whether cudaMalloc can be had for so many bytes more, without giving segments back."""
        allowed_bytes = self.capacity_bytes if self.allowed_bytes is None else self.allowed_bytes
        return needed_bytes <= min(self.free_bytes, allowed_bytes - self.reserved_bytes)

    def count(self, allocated_bytes: int, requested_bytes: int, reserved_bytes: int) -> None:
        """Count bytes of blocks and segments that `set_pool` sets later, in both pools."""
        large = self.pools[False]
        self.allocated_bytes += allocated_bytes
        self.requested_bytes += requested_bytes
        self.reserved_bytes += reserved_bytes
        large.allocated_bytes.change(allocated_bytes)
        large.requested_bytes.change(requested_bytes)
        large.reserved_bytes.change(reserved_bytes)

    def set_peaks(self, allocated_bytes: int, requested_bytes: int) -> None:
        """Set the peaks of two figures, where nothing was given back since they were reset; others are not true."""
        self._peak_allocated_bytes, self._peak_requested_bytes = allocated_bytes, requested_bytes
        self._peak_reserved_bytes = self.reserved_bytes

    def segments_of(self, small: bool) -> list[Segment]:
        """Segments of a pool, by address."""
        return [segment for segment in self._segments.values() if segment.pool.small is small]

    def new_segment_of(self, small: bool, n_bytes: int) -> Segment:
        """A segment for `set_pool`, which counts it."""
        segment = Segment(self._next_address, n_bytes, 0, self.pools[small], self._free.setdefault((small, 0), []))
        self._segments[segment.address] = segment
        self._next_address += n_bytes
        return segment

    def set_pool(self, small: bool, cached: Iterable[Block], figures: Mapping[str, int]) -> None:
        """Let the cached blocks of a pool, and its current figures, be these."""
        self._free.setdefault((small, 0), [])[:] = sorted((block.size, block.address, block) for block in cached)
        for name, figure in figures.items():
            count: Count = getattr(self.pools[small], name)
            setattr(self, name, getattr(self, name) + figure - count.current)
            count.change(figure - count.current)

    def snapshot(self, frames: Callable[[Any], list[dict[str, Any]]] | None = None) -> dict[str, Any]:
        """Live memory as `torch.cuda.memory._snapshot()` has it: PyTorch's memory viewer opens it.

        `frames` turns a block's tag into its stack, [{"filename", "line", "name"}, ...]; without it there are none.
        """
        return {
            "segments": [_segment_entry(segment, frames) for segment in self._segments.values()],
            "device_traces": [[]],
            "allocator_settings": {"expandable_segments": False},
            "external_annotations": [],
        }

    def _new_segment(self, size: int, stream: int, pool: Pool, free: _Free, n_bytes: int, tag: Any) -> Block:
        needed_bytes = segment_bytes(size, self.settings.large_segment_bytes)
        if self._collects:
            self._collect()
        if not self.has_room(needed_bytes) and not (self._release_oversize(size, free) and self.has_room(needed_bytes)):
            self._release_segments()
            self._retries += 1
            if not self.has_room(needed_bytes):
                self._ooms += 1
                raise self._full(n_bytes, needed_bytes, tag)
        segment = Segment(self._next_address, needed_bytes, stream, pool, free)
        self._segments[segment.address] = segment
        self._next_address += needed_bytes
        self.reserved_bytes += needed_bytes
        self.segments += 1
        self._peak_reserved_bytes = max(self._peak_reserved_bytes, self.reserved_bytes)
        self._peak_segments = max(self._peak_segments, self.segments)
        pool.reserved_bytes.change(needed_bytes)
        pool.segments.change(1)
        if needed_bytes >= self.settings.max_split_bytes:
            self.oversize_segments.change(1)
        return segment.first

    def _full(self, n_bytes: int, needed_bytes: int, tag: Any) -> SimulatedOutOfMemory:
        return SimulatedOutOfMemory(
            requested_bytes=n_bytes,
            segment_bytes=needed_bytes,
            free_bytes=self.free_bytes,
            total_bytes=self.capacity_bytes,
            process_bytes=self.context_bytes + self.reserved_bytes,
            allocated_bytes=self.allocated_bytes,
            reserved_bytes=self.reserved_bytes,
            allowed_bytes=self.allowed_bytes,
            tag=tag,
        )

    def _release_segments(self) -> None:
        self._syncs += 1
        self._end_pending()
        for segment in self._unused():
            self._release(segment)

    def _unused(self) -> list[Segment]:
        """Segments that are wholly cached."""
        return [
            segment for segment in self._segments.values() if segment.first.next is None and not segment.first.allocated
        ]

    def _release(self, segment: Segment) -> None:
        """Give a wholly cached segment back to the card."""
        free = segment.free
        del free[bisect_left(free, (segment.size, segment.address))]
        del self._segments[segment.address]
        self.reserved_bytes -= segment.size
        self.segments -= 1
        segment.pool.reserved_bytes.change(-segment.size)
        segment.pool.segments.change(-1)
        if segment.size >= self.settings.max_split_bytes:
            self.oversize_segments.change(-1)

    def _release_oversize(self, size: int, free: _Free) -> bool:
        """Give back one cached block that is large enough, else as many of those that are not split as it takes.

        Whether these were enough; never without a limit of splits.
        """
        limit_bytes = self.settings.max_split_bytes
        if limit_bytes == UNLIMITED_BYTES:
            return False
        wanted_bytes = max(size, limit_bytes)
        at = bisect_left(free, (wanted_bytes,))
        if at < len(free):
            self._release(_segment(free[at][2]))
            return True
        released_bytes = 0
        while released_bytes < wanted_bytes and free and free[-1][0] >= limit_bytes:
            released_bytes += free[-1][0]
            self._release(_segment(free[-1][2]))
        return released_bytes >= wanted_bytes

    def _collect(self) -> None:
        """Give back large segments that were unused for longest, until less than the share is reserved."""
        assert self.allowed_bytes is not None
        excess_bytes = self.reserved_bytes - int(self.settings.collect_from * self.allowed_bytes)
        large, _ = self.pools
        ages = {each: large.requests - each.first.cached_at for each in self._unused() if each.pool is large}
        while excess_bytes > 0 and ages:
            average = sum(ages.values()) / len(ages)
            for segment in [segment for segment, age in ages.items() if age >= average]:
                excess_bytes -= segment.size
                del ages[segment]
                self._release(segment)

    def _change_inactive(self, pool: Pool, n_bytes: int, n: int) -> None:
        """Count cached parts of segments that are in use."""
        self.inactive_split_bytes += n_bytes
        pool.inactive_split_bytes.change(n_bytes)
        if n:
            self.inactive_split += n
            pool.inactive_split.change(n)
        if self.inactive_split_bytes > self._peak_inactive_split_bytes:
            self._peak_inactive_split_bytes = self.inactive_split_bytes
        if self.inactive_split > self._peak_inactive_split:
            self._peak_inactive_split = self.inactive_split


def _segment_entry(segment: Segment, frames: Callable[[Any], list[dict[str, Any]]] | None) -> dict[str, Any]:
    blocks = list(segment.blocks())
    active = [block for block in blocks if block.allocated]
    return {
        "device": 0,
        "address": segment.address,
        "total_size": segment.size,
        "allocated_size": sum(block.size for block in active if not block.pending),
        "active_size": sum(block.size for block in active),
        "requested_size": sum(block.requested for block in active),
        "stream": segment.stream,
        "segment_type": "small" if segment.pool.small else "large",
        "segment_pool_id": (0, 0),
        "is_expandable": False,
        "frames": [],
        "blocks": [
            {
                "address": block.address,
                "size": block.size,
                "requested_size": block.requested if block.allocated else 0,
                "state": "active_pending_free"
                if block.pending
                else "active_allocated"
                if block.allocated
                else "inactive",
                "frames": frames(block.tag) if frames and block.allocated else [],
            }
            for block in blocks
        ],
    }


def _segment(block: Block) -> Segment:
    assert block.segment is not None
    return block.segment


def segment_bytes(block_bytes: int, large_bytes: int) -> int:
    """The size of a new segment for a block of that size (rounded); `large_bytes`: of those that large ones share."""
    if block_bytes <= SMALL_BYTES:
        return SMALL_SEGMENT_BYTES
    if block_bytes < _OWN_SEGMENT_BYTES:
        return large_bytes
    return -(-block_bytes // _PAGE_BYTES) * _PAGE_BYTES


def cuda_size(n_bytes: int) -> str:
    """Bytes as the allocator's messages write them: 1024 of a unit are still that unit."""
    if n_bytes <= 2**10:
        return f"{n_bytes} bytes"
    if n_bytes <= 2**20:
        return f"{n_bytes / 2**10:.2f} KiB"
    return f"{n_bytes / 2**20:.2f} MiB" if n_bytes <= 2**30 else f"{n_bytes / 2**30:.2f} GiB"
