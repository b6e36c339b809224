"""The date axis: when runs were made, as places and round dates. Arithmetic on times; UTC, and no clock is read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from vram.report.charts import Tick

_MOST_TICKS = 7
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MINUTES = (1, 2, 5, 10, 30, 60, 180, 360, 720)
_DAYS = (1, 2, 5, 10)
_CALENDAR_MONTHS = (1, 3, 6, 12, 24, 60, 120, 240, 600, 1200)
_WIDTH = 97.0  # the newest run keeps some of the plot


@dataclass(frozen=True)
class Axis:
    """Places of the runs, and ticks. `dated` is False where runs stand in their order, as their dates do not."""

    places: Sequence[float]
    ticks: Sequence[Tick]
    dated: bool


def axis(times: Sequence[str], numbers: Sequence[str]) -> Axis:
    """The axis of runs, oldest first; one without dates, or dates in another order, has them evenly spaced."""
    dates = [_parsed(time) for time in times]
    known = [date for date in dates if date is not None]
    if len(known) < len(dates) or any(later < earlier for earlier, later in pairwise(known)) or known[-1] == known[0]:
        places = [round(_WIDTH * index / max(1, len(times) - 1), 2) for index in range(len(times))]
        every = -(-len(numbers) // _MOST_TICKS)
        return Axis(places, [Tick(places[at], numbers[at]) for at in range(0, len(numbers), every)], dated=False)
    begin, span = known[0], known[-1] - known[0]

    def place(date: datetime) -> float:
        return round(_WIDTH * ((date - begin) / span), 2)

    ticks = [Tick(place(date), text) for date, text in _ticks(begin, known[-1])]
    return Axis([place(date) for date in known], ticks, dated=True)


def _parsed(time: str) -> datetime | None:
    try:
        date = datetime.fromisoformat(time)
        return date.astimezone(UTC) if date.tzinfo else date.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None


def _ticks(begin: datetime, end: datetime) -> list[tuple[datetime, str]]:
    """The finest round dates between `begin` and `end` of which there are no more than seven."""
    for minutes in _MINUTES:
        if (end - begin) / timedelta(minutes=minutes) <= _MOST_TICKS:
            return _within(_minutes(begin, minutes), begin, end)
    for days in _DAYS:
        if (end - begin) / timedelta(days=days) <= _MOST_TICKS:
            return _within(_days(begin, days), begin, end)
    months = (end.year - begin.year) * 12 + end.month - begin.month
    each = next((count for count in _CALENDAR_MONTHS if months / count <= _MOST_TICKS), _CALENDAR_MONTHS[-1])
    return _within(_months(begin, each), begin, end)


def _within(dates: Iterator[tuple[datetime, str]], begin: datetime, end: datetime) -> list[tuple[datetime, str]]:
    ticks = []
    for date, text in dates:
        if date > end:
            break
        if date >= begin:
            ticks.append((date, text))
    return ticks


def _minutes(begin: datetime, each: int) -> Iterator[tuple[datetime, str]]:
    date = begin.replace(hour=0, minute=0, second=0, microsecond=0)
    while True:
        yield date, f"{date:%H:%M}" if date.hour or date.minute else _day(date)
        date += timedelta(minutes=each)


def _days(begin: datetime, each: int) -> Iterator[tuple[datetime, str]]:
    date = begin.replace(hour=0, minute=0, second=0, microsecond=0)
    while True:
        yield date, _day(date)
        date += timedelta(days=each)


def _day(date: datetime) -> str:
    return f"{date.day} {_MONTHS[date.month - 1]}"


def _months(begin: datetime, each: int) -> Iterator[tuple[datetime, str]]:
    for month in range(begin.year * 12, 9999 * 12, each):
        date = datetime(month // 12, month % 12 + 1, 1, tzinfo=UTC)
        yield date, f"{_MONTHS[date.month - 1]} {date.year}" if each < 12 else str(date.year)
