"""The largest size with which a step still fits, searched by forecasts from an empty card."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

_MOST = 2**24
_MOST_TRIES = 40
_FARTHEST = 64  # times the last size
_PARTS = 16  # of what is between a size that fits and one that does not


class Forecast(Protocol):
    """A forecast with one size; bytes as in `vram.forecasting.forecast.StepForecast`."""

    @property
    def fits(self) -> bool:
        """Whether the card has room."""
        ...

    @property
    def spare_bytes(self) -> int:
        """Bytes that are left; less than 0 where they are missing."""
        ...


@dataclass(frozen=True)
class Largest:
    """The largest size that fits; None where not even 1 does.

    `fails` is the next, which does not; None where that is not known, and `reason` says why.
    """

    fits: int | None
    fails: int | None
    reason: str = ""


def largest(start: int, first: Forecast, forecast: Callable[[int], Forecast | str]) -> Largest:
    """Search from a size that was forecast already. `forecast` gives one with another, or why there is none.

    What a larger size needs is taken to be no less; a straight line through two forecasts says where to look next.
    """
    known = {start: first}
    low, high = (start, None) if first.fits else (0, start)
    refused: dict[int, str] = {}
    for tried in range(_MOST_TRIES):
        if high is not None and high - low <= 1:
            break
        if low >= _MOST:
            return Largest(low, None, f"searched up to {_MOST:,}")
        halve = tried % 3 == 2 or high in refused
        size = _beyond(known, low) if high is None else _between(known, low, high, halve=halve)
        one = forecast(size)
        if isinstance(one, str):
            refused[size] = one
        else:
            known[size] = one
        low, high = (size, high) if not isinstance(one, str) and one.fits else (low, size)
    if high in refused:
        return Largest(low or None, None, f"{high:,}: {refused[high]}")
    return Largest(low or None, high)


def _beyond(known: dict[int, Forecast], low: int) -> int:
    """A larger size, where none is known that does not fit: where a line through the last two says that room ends."""
    earlier = max((size for size in known if size < low), default=0)
    end = _end_of_room(known, earlier, low) if earlier else 0
    if end == low and low - 1 not in known:
        return low + 1
    return min(max(2 * low, min(end, _FARTHEST * low)), _MOST)


def _between(known: dict[int, Forecast], low: int, high: int, *, halve: bool) -> int:
    """A size above `low` and below `high`: half-way, or a little beyond where a line between them says that room ends,
    as seen from the nearer of the two, so that the end comes to be between close ones."""
    if halve or not low:
        return (low + high) // 2
    end, step = _end_of_room(known, low, high), max(1, (high - low) // _PARTS)
    size = end + step if end - low < high - end else end - step
    return min(max(size, low + 1), high - 1)


def _end_of_room(known: dict[int, Forecast], first: int, second: int) -> int:
    """The last size with room by the line through two; 0 where memory does not grow from one to the other."""
    spare_bytes = known[first].spare_bytes
    used_bytes = spare_bytes - known[second].spare_bytes
    return first + spare_bytes * (second - first) // used_bytes if used_bytes > 0 else 0
