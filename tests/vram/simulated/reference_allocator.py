"""The allocator's rules once more, plain and slow, for comparison: nothing is kept but what is in use where.

A segment knows the intervals in use; what is cached are the gaps between them, so nothing is ever split or joined.
Every figure is counted anew after every step, and every search looks at everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import ROUND_HALF_EVEN, Decimal

MIB = 1 << 20


@dataclass
class Use:
    """An interval in use: its length, and the requested bytes."""

    length: int
    requested: int


@dataclass
class Region:
    """A segment: where it begins, and the uses by offset."""

    base: int
    length: int
    stream: int
    small: bool
    uses: dict[int, Use] = field(default_factory=dict)

    def gaps(self) -> Iterator[tuple[int, int]]:
        """(offset, length) of what is cached."""
        edge = 0
        for offset in [*sorted(self.uses), self.length]:
            if offset > edge:
                yield edge, offset - edge
            edge = offset + (self.uses[offset].length if offset in self.uses else 0)


class Full(Exception):
    """No room; the message it must have."""


class ReferenceAllocator:
    """As `CachingAllocator`, with addresses counted from 0; a block is (base of its segment, offset)."""

    def __init__(self, capacity: int, context: int = 0, other: int = 0) -> None:
        self.capacity, self.context, self.other = capacity, context, other
        self.regions: list[Region] = []
        self.end = 0
        self.retries = self.ooms = 0
        self.now = self.figures()
        self.peaks = dict(self.now)

    def malloc(self, n: int, stream: int = 0) -> tuple[int, int, int]:
        """(base, offset, length); raises Full."""
        whole_units, odd = divmod(n, 512)
        size = 512 * (whole_units + bool(odd))
        small = size <= MIB
        fits = [
            (length, region.base + offset, region, offset)
            for region in self.regions
            if region.small is small and region.stream == stream
            for offset, length in region.gaps()
            if length >= size
        ]
        if fits:
            length, _, region, offset = min(fits, key=lambda fit: fit[:2])
        else:
            region, offset = self._more(size, stream, small), 0
            length = region.length
        spare = length - size
        splits = spare >= 512 if small else spare > MIB
        region.uses[offset] = Use(size if splits else length, n)
        self._note()
        return region.base, offset, region.uses[offset].length

    def free(self, base: int, offset: int) -> None:
        next(region for region in self.regions if region.base == base).uses.pop(offset)
        self._note()

    def empty_cache(self) -> None:
        self.regions = [region for region in self.regions if region.uses]
        self._note()

    def reset_peak(self) -> None:
        self.peaks = dict(self.now)

    def figures(self) -> dict[str, int]:
        """Every current figure, counted anew."""
        uses = [use for region in self.regions for use in region.uses.values()]
        stuck = [length for region in self.regions if region.uses for _, length in region.gaps()]
        return {
            "allocated_bytes": sum(use.length for use in uses),
            "requested_bytes": sum(use.requested for use in uses),
            "reserved_bytes": sum(region.length for region in self.regions),
            "inactive_split_bytes": sum(stuck),
            "allocations": len(uses),
            "segments": len(self.regions),
            "inactive_split": len(stuck),
        }

    def layout(self) -> list[tuple[int, int, bool]]:
        """(address, length, in use) of every block, ascending."""
        pieces = []
        for region in self.regions:
            pieces += [(region.base + offset, use.length, True) for offset, use in region.uses.items()]
            pieces += [(region.base + offset, length, False) for offset, length in region.gaps()]
        return sorted(pieces)

    def left(self) -> int:
        """Free bytes of the card."""
        return self.capacity - self.context - self.other - sum(region.length for region in self.regions)

    def _note(self) -> None:
        self.now = self.figures()
        for name, figure in self.now.items():
            self.peaks[name] = max(self.peaks[name], figure)

    def _more(self, size: int, stream: int, small: bool) -> Region:
        if small:
            length = 2 * MIB
        elif size < 10 * MIB:
            length = 20 * MIB
        else:
            length = size
            while length % (2 * MIB):
                length += 512
        if self.left() < length:
            self.empty_cache()
            self.retries += 1
        if self.left() < length:
            self.ooms += 1
            raise Full(self._words(length))
        self.regions.append(Region(self.end, length, stream, small))
        self.end += length
        return self.regions[-1]

    def _words(self, length: int) -> str:
        now = self.figures()
        reserved, allocated = now["reserved_bytes"], now["allocated_bytes"]
        return " ".join(
            [
                f"CUDA out of memory. Tried to allocate {words(length)}.",
                f"GPU 0 has a total capacity of {words(self.capacity)} of which {words(self.left())} is free.",
                f"Including non-PyTorch memory, this process has {words(self.context + reserved)} memory in use.",
                f"Of the allocated memory {words(allocated)} is allocated by PyTorch,",
                f"and {words(reserved - allocated)} is reserved by PyTorch but unallocated.",
                "If reserved but unallocated memory is large try setting",
                "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation. ",
                "See documentation for Memory Management ",
                "(https://docs.pytorch.org/docs/stable/notes/cuda.html"
                "#optimizing-memory-usage-with-pytorch-cuda-alloc-conf)",
            ]
        )


def words(n: int) -> str:
    """Bytes with two decimals of a unit; a unit is left when more than 1024 of it are there."""
    steps: list[Callable[[int], bool]] = [lambda n: n > 1 << 10, lambda n: n > 1 << 20, lambda n: n > 1 << 30]
    power = sum(step(n) for step in steps)
    if power == 0:
        return f"{n} bytes"
    amount = (Decimal(n) / Decimal(1024**power)).quantize(Decimal("0.01"), ROUND_HALF_EVEN)
    return f"{amount} {['', 'KiB', 'MiB', 'GiB'][power]}"
