"""Charts of the page as geometry: figures in, the places of lines and labels out. Arithmetic; templates draw.

Places are percent of the plot, from its upper left corner, so that a chart fits any width and its labels keep their
size. Nothing here knows of HTML.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count, groupby, pairwise
from math import ceil, floor
from typing import Literal

from vram.text import exact_text, packed, size_text
from vram.units import format_bytes

Figure = float | None  # None: not measured
_BINS = 400  # a plot is about so many pixels wide: more readings than two for each are not seen
_MOST_LEVELS = 5
_FRACTIONS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # of a unit, which two digits can say
_MOST_TICKS = 8
_MOST_BOUNDS = 30
_NOISE = 0.05
_FAR = 4  # a rule further from the readings than so many times their span is named at the edge, not drawn


@dataclass(frozen=True)
class Tick:
    """A label at a place."""

    at: float
    text: str


@dataclass(frozen=True)
class Rule:
    """A line across the plot, at `n_bytes`: a limit, the base, what was alive before."""

    kind: Literal["limit", "base", "before"]
    n_bytes: float
    text: str


@dataclass(frozen=True)
class PlacedRule:
    """A rule at its place, None where it is beyond the plot; `text` then ends with an arrow."""

    kind: str
    at: float | None
    text: str


@dataclass(frozen=True)
class Chart:
    """One line over runs. `path` and `dots` are SVG paths in a box of 100 x 100; `values` are all figures, packed.

    Levels are labelled by how far they are above `origin` where plain sizes would read alike. `gaps` are places of runs
    without a figure. `laps` are the lengths of the laps, packed, and `word` is what each reading is of.
    """

    title: str
    label: str
    path: str
    levels: Sequence[Tick]
    ticks: Sequence[Tick]
    values: str
    origin: str = ""
    dots: str = ""
    bounds: Sequence[float] = ()
    rules: Sequence[PlacedRule] = ()
    events: Sequence[Tick] = ()
    gaps: Sequence[float] = ()
    laps: str = ""
    word: str = ""

    @property
    def flat(self) -> bool:
        """True where all figures are the same, which a low chart shows as well."""
        return " " not in self.values

    @property
    def gutter(self) -> int:
        """Letters of the longest level."""
        return max((len(level.text) for level in self.levels), default=0)


class Scale:
    """From bytes to places: the readings, and rules that are not far off, fill the plot."""

    def __init__(self, values: Sequence[float], rules: Sequence[Rule] = ()) -> None:
        low, high = min(values), max(values)
        span = high - low
        for rule in rules:
            if span == 0 or low - _FAR * span <= rule.n_bytes <= high + _FAR * span:
                low, high = min(low, rule.n_bytes), max(high, rule.n_bytes)
        # Counted from the lowest, in whole bytes: a float would lose some of 14 GiB + 4 B.
        self._base, span = floor(low), high - floor(low)
        pad = 0.08 * span or max(1.0, 0.05 * abs(high))
        self._least = -min(pad, low) if low >= 0 else -pad
        self._most = span + 2 * pad  # room for labels

    def at(self, n_bytes: float) -> float:
        """The place of `n_bytes`, 0 at the top; outside 0 to 100 where it is beyond the plot."""
        return round(100 * (self._most - (n_bytes - self._base)) / (self._most - self._least), 2)

    @property
    def full_bytes(self) -> float:
        """Bytes from the bottom of the plot to its top."""
        return self._most - self._least

    def levels(self) -> tuple[list[Tick], str]:
        """At most six round levels in one unit, and what they are above where plain sizes would read alike, else ""."""
        origin, highest = 0, max(abs(self._base), abs(self._base + self._most))
        wanted = (self._most - self._least) / _MOST_LEVELS
        if _unit(highest) > 1 and wanted < _FRACTIONS[0] * _unit(highest):
            origin, highest = self._base, self._most
        unit = _unit(highest)
        steps = [*(unit * part for part in _FRACTIONS if unit > 1), *(unit * 2.0**power for power in range(64))]
        step = next(step for step in steps if step >= wanted)
        offset = self._base - origin
        least = max(0.0, self._least) if origin else self._least
        ticks = []
        for number in count(ceil((offset + least) / step)):
            if number * step > offset + self._most:
                break
            size = f"{number * step / unit:,.2f}".rstrip("0").rstrip(".")
            text = f"{'+' if origin else ''}{size} {format_bytes(unit).split()[1]}"
            ticks.append(Tick(self.at(origin + number * step), text))
        return ticks, exact_text(origin) if origin else ""

    def placed(self, rules: Sequence[Rule]) -> list[PlacedRule]:
        """The rules at their places, those beyond the plot with an arrow."""
        return [self._placed(rule) for rule in rules]

    def _placed(self, rule: Rule) -> PlacedRule:
        at = self.at(rule.n_bytes)
        beyond = " \u2191" if at < 0 else " \u2193" if at > 100 else ""
        return PlacedRule(rule.kind, None if beyond else at, rule.text + beyond)


def _unit(size: float) -> int:
    """The unit that `size` is written in, in bytes."""
    return next((1024**power for power in (4, 3, 2, 1) if abs(size) >= 1024**power), 1)


def stairs(points: Sequence[tuple[float, Figure]], scale: Scale, end: float = 100) -> str:
    """The path of a line that keeps each figure until the next; a gap where there is none."""
    kept = thinned(points)
    path: list[str] = []
    before: float | None = None
    for (x, value), (following, _) in pairwise([*kept, (end, None)]):
        if value is None:
            before = None
            continue
        y = scale.at(value)
        if before is None:
            path.append(f"M{x:g} {y:g}")
        elif y != before:
            path.append(f"V{y:g}")
        path = path[:-1] if path[-1].startswith("H") and y == before else path
        path.append(f"H{following:g}")
        before = y
    return "".join(path)


def thinned(points: Sequence[tuple[float, Figure]]) -> Sequence[tuple[float, Figure]]:
    """The points, or where they are more than a plot shows, the lowest and the highest of each bin, and gaps."""
    if len(points) <= 2 * _BINS:
        return points
    kept: list[tuple[float, Figure]] = []
    for _, each in groupby(points, key=lambda point: int(point[0] * _BINS / 100)):
        several = list(each)
        known = [(x, value) for x, value in several if value is not None]
        gaps = [point for point in several if point[1] is None][:1]
        extremes = {min(known, key=_value), max(known, key=_value)} if known else set()
        kept += sorted([*gaps, *extremes], key=lambda point: point[0])
    return kept


def _value(point: tuple[float, float]) -> float:
    return point[1]


def spots(points: Sequence[tuple[float, Figure]], scale: Scale) -> str:
    """The path of dots: segments of no length, which round caps make round at any width."""
    return "".join(f"M{x:g} {scale.at(value):g}h0" for x, value in points if value is not None)


def staircase(
    title: str,
    laps: Sequence[Sequence[int]],
    rules: Sequence[Rule] = (),
    *,
    word: str = "sample",
    onset: int | None = None,
) -> Chart | None:
    """All readings in the order in which they were taken, one line, with the laps' bounds; None without any.

    `onset` is the first run that grew, counted over all laps.
    """
    values = [value for lap in laps for value in lap]
    if not values:
        return None
    scale = Scale(values, rules)
    each = 100 / len(values)
    starts = [0]
    for lap in laps:
        starts.append(starts[-1] + len(lap))
    every = ceil(len(laps) / _MOST_TICKS)
    bound = 1 if len(laps) <= _MOST_BOUNDS else every
    levels, origin = scale.levels()
    said = f"{size_text(values[0])} at first, {size_text(max(values))} at most, {size_text(values[-1])} at last"
    return Chart(
        title=title,
        label="; ".join(
            [
                f"{title}, {_many(len(values), word)} in {_many(len(laps), 'lap')}: {said}",
                *(rule.text for rule in rules),
            ]
        ),
        path=stairs([(round(index * each, 3), value) for index, value in enumerate(values)], scale),
        levels=levels,
        origin=origin,
        ticks=[Tick(round(starts[lap] * each, 2), f"lap {lap}") for lap in range(0, len(laps), every)],
        bounds=[round(start * each, 2) for start in starts[bound:-1:bound]],
        rules=scale.placed(rules),
        events=[Tick(round(onset * each, 2), "grows since here")] if onset and onset < len(values) else (),
        values=packed(values),
        laps=packed(map(len, laps)),
        word=word,
    )


def _many(count: int, word: str) -> str:
    return f"{count} {word}{'s' * (count != 1)}"


@dataclass(frozen=True)
class Spark:
    """A small chart without labels: its line, and the places of its steps."""

    path: str
    steps: Sequence[float] = ()


def spark(values: Sequence[Figure], steps: Sequence[int] = ()) -> Spark:
    """One figure over its runs, evenly spaced. One that did not change for good fills its height only where it moves by
    a twentieth: noise is to look like noise."""
    known = [value for value in values if value is not None]
    if not known:
        return Spark("")
    each = 100 / len(values)
    points = [(round(index * each, 2), value) for index, value in enumerate(values)]
    middle = (min(known) + max(known)) / 2
    least = [] if steps else [middle * (1 - _NOISE / 2), middle * (1 + _NOISE / 2)]
    return Spark(stairs(points, Scale([*known, *least])), [round(index * each, 2) for index in steps])
