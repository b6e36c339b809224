"""How much a replay may cost, and what it says of itself while it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, TypeAlias

from vram.text import bare_seconds


@dataclass(frozen=True)
class Limits:
    """The most runs, and seconds since the replay began; None for no limit. A run that has begun is finished."""

    max_runs: int | None = None
    max_seconds: float | None = None

    def reached(self, runs: int, seconds: float, next_runs: int = 1) -> str:
        """ "stopped after 60 s" where the next runs may not begin; "" where they may."""
        if self.max_runs is not None and runs + next_runs > self.max_runs:
            return f"stopped after {runs:,} {'run' if runs == 1 else 'runs'}"
        if self.max_seconds is not None and seconds >= self.max_seconds:
            return f"stopped after {bare_seconds(seconds)} s"
        return ""


def checked_limits(max_runs: Any, max_seconds: Any) -> Limits:
    """The limits from arguments. Raises TypeError for no number, ValueError for one that lets nothing run."""
    for name, value, kind, what in (
        ("max_runs", max_runs, Integral, "a whole number"),
        ("max_seconds", max_seconds, Real, "a number"),
    ):
        if value is not None and (isinstance(value, bool) or not isinstance(value, kind)):
            raise TypeError(f"{name} must be {what} or None, got {value!r}")
        if value is not None and not float(value) > 0:
            raise ValueError(f"{name} must be above 0, got {value!r}")
    return Limits(max_runs, max_seconds)


@dataclass(frozen=True)
class Progress:
    """A replay under way: runs so far, and of how many it takes to the next look; `why`, where it goes on, says why."""

    name: str
    runs: int
    planned_runs: int
    seconds: float
    why: str = ""

    def __str__(self) -> str:
        reason = f": {self.why}" if self.why else ""
        return f"{self.name}: run {self.runs:,} of {self.planned_runs:,}, {self.seconds:,.0f} s{reason}"


# Takes a `Progress` after each run, and None at the end, however the replay ends.
Listener: TypeAlias = Callable[[Progress | None], object]


def silence(progress: Progress | None) -> None:
    """Say nothing."""
