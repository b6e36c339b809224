"""Figures of the caching allocator, as `torch.cuda.memory_stats` has them: now, peaks and totals, by pool."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

FIGURES = (
    "allocated_bytes",
    "requested_bytes",
    "reserved_bytes",
    "inactive_split_bytes",
    "allocations",
    "segments",
    "inactive_split",
)


@dataclass(frozen=True)
class Stat:
    """A figure now, and the most since the peaks were reset."""

    current: int = 0
    peak: int = 0


@dataclass(frozen=True)
class Stats:
    """`torch.cuda.memory_stats`, the `all` pool: bytes, then counts. Active: allocated, or waiting for a stream."""

    allocated_bytes: Stat
    requested_bytes: Stat
    reserved_bytes: Stat
    active_bytes: Stat
    inactive_split_bytes: Stat
    allocations: Stat
    segments: Stat
    active: Stat
    inactive_split: Stat
    alloc_retries: int
    ooms: int
    sync_all_streams: int


class Count:
    """A figure of one pool: now, its peak, and what was added since the totals were reset."""

    __slots__ = ("_before", "allocated", "current", "peak")

    def __init__(self) -> None:
        self.current = self.peak = self.allocated = self._before = 0

    @property
    def freed(self) -> int:
        """Amount taken away since the totals were reset."""
        return self._before + self.allocated - self.current

    def change(self, by: int) -> None:
        """Add, or take away."""
        self.current += by
        if by > 0:
            self.allocated += by
            if self.current > self.peak:
                self.peak = self.current

    def reset_totals(self) -> None:
        """Count what is added and taken away from zero."""
        self.allocated, self._before = 0, self.current


class Pool:
    """Figures of the small requests, or of the large ones, over all streams."""

    __slots__ = ("pending", "pending_bytes", "requests", "small", *FIGURES)

    def __init__(self, small: bool) -> None:
        self.small = small
        self.requests = 0  # since unused segments are collected
        self.allocated_bytes, self.requested_bytes, self.allocations = Count(), Count(), Count()
        self.reserved_bytes, self.segments = Count(), Count()
        self.inactive_split_bytes, self.inactive_split = Count(), Count()
        # Freed blocks that wait for a stream. There are none where a block is allocated, so that the peak of active is
        # that of allocated, or what it was when peaks were reset, which is kept in their peak.
        self.pending_bytes, self.pending = Count(), Count()

    @property
    def active_bytes(self) -> Count:
        """Bytes in use by their owner or by another stream."""
        return _active(self.allocated_bytes, self.pending_bytes)

    @property
    def active(self) -> Count:
        """Blocks in use by their owner or by another stream."""
        return _active(self.allocations, self.pending)

    def counts(self) -> Iterator[Count]:
        """Every count that is kept."""
        return (getattr(self, name) for name in ("pending", "pending_bytes", *FIGURES))


def _active(allocated: Count, pending: Count) -> Count:
    active = Count()
    active.current, active.peak = allocated.current + pending.current, max(allocated.peak, pending.peak)
    active.allocated, active._before = allocated.allocated, allocated._before + pending._before
    return active
