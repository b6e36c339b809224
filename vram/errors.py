"""The ways a check can end other than well. Those that fail a test are AssertionErrors, as pytest users expect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class _Explained(AssertionError):
    """Attribute: `explanation`, ready for JSON (see `vram.explanation`); None where nothing was explained."""

    def __init__(self, message: str, *, explanation: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.explanation = explanation


class MemoryGrowth(_Explained):
    """Memory grows from sample to sample, proven by the rule of `vram.verdict.growth`."""


class Undecided(_Explained):
    """An exact channel grew and nobody can say that it stops: not a pass, and not yet proof of a leak."""


class PeakExceeded(_Explained):
    """The peak of some sample is over its budget."""


class GarbageExceeded(_Explained):
    """A sample makes more that only the garbage collector frees than it may."""


class RatioExceeded(_Explained):
    """Some sample needs more, beside its reference, than it is allowed."""


LevelExceeded = RatioExceeded  # its former name


class MemoryLeak(AssertionError):
    """Live bytes did not return to where the body of a `vram_leak_free` test began."""


class OutOfMemory(AssertionError):
    """A sample ran out of memory.

    Attributes: `sample` and `lap` (from 0), `requested_bytes` (None where the allocator did not say), `line`
    ("file:line" of the innermost frame).
    """

    def __init__(self, message: str, *, lap: int, sample: int, requested_bytes: int | None, line: str) -> None:
        super().__init__(message)
        self.lap, self.sample, self.requested_bytes, self.line = lap, sample, requested_bytes, line


class Inconclusive(Exception):
    """The figures needed for a decision are absent or not to be trusted; the plugin reports a skip with the reason."""


class NotRecorded(Inconclusive):
    """There is no budget or base to compare with yet. With `--vram-new fail`, as in CI, the test fails."""
