"""Does it fit? Arithmetic on one figure and one limit."""

from __future__ import annotations

from dataclasses import dataclass

from vram.units import format_bytes


@dataclass(frozen=True)
class Overrun:
    """A peak over its limit. Says the excess, so that two sizes never print alike."""

    peak_bytes: int
    limit_bytes: int

    @property
    def excess_bytes(self) -> int:
        """Bytes over the limit."""
        return self.peak_bytes - self.limit_bytes

    def __str__(self) -> str:
        return (
            f"peak {self.peak_bytes:,} B ({format_bytes(self.peak_bytes)}) is {self.excess_bytes:,} B over "
            f"the allowed {self.limit_bytes:,} B ({format_bytes(self.limit_bytes)})"
        )


def judge_peak(peak_bytes: int, limit_bytes: int, tolerance_bytes: int = 0) -> Overrun | None:
    """None when allowed: exactly limit + tolerance still is, one byte more is not. Proves nothing about growth."""
    allowed_bytes = limit_bytes + tolerance_bytes
    return Overrun(peak_bytes, allowed_bytes) if peak_bytes > allowed_bytes else None
