"""Criteria of a comparison: `peak:2%`, `growth:0`, `himap/peak:1 MiB`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from fractions import Fraction

from vram.history.entries import BODY_KEPT, BODY_PEAK, Entry
from vram.units import format_bytes, parse_bytes

PEAK, GROWTH = "peak", "growth"
ABOVE_START = "peak_above_start"  # a recording's peak less what was there before its first sample
_CHANNELS = ("requested", "requested_peak", "allocated", "allocated_peak", "reserved", BODY_PEAK, BODY_KEPT)
_FIGURES = (PEAK, GROWTH, ABOVE_START, *_CHANNELS)
_OTHER_DEVICE = re.compile(r"cuda:\d+ ")  # "cuda:1 requested_peak"
_NOISY = ("driver", "host")  # everywhere; the others, where their meter says so
_PERCENT = re.compile(r"(\d+(?:\.\d+)?)\s*%")
_SYNTAX = "[MODE or TEST/]FIGURE:TOLERANCE, as in peak:2%, growth:0 or himap/peak:1MiB"


@dataclass(frozen=True)
class Criterion:
    """How much more than its base a figure may be: `share` of the base, or `tolerance_bytes`. Exactly that passes.

    `name` is a mode or a test, a pattern of them ("test_peak*"), or None for all.
    """

    figure: str
    name: str | None = None
    share: Fraction = Fraction(0)
    tolerance_bytes: int = 0

    def allowed(self, base: float) -> Fraction:
        """The largest figure that is no regression."""
        return Fraction(base) + abs(Fraction(base)) * self.share + self.tolerance_bytes

    @property
    def tolerance(self) -> str:
        """ "2 %", "1.00 MiB", or "0" where every byte counts."""
        if self.share:
            return f"{float(self.share * 100):g} %"
        return format_bytes(self.tolerance_bytes) if self.tolerance_bytes else "0"

    def concerns(self, entry: Entry) -> bool:
        """Whether it is about this entry."""
        return self.name is None or any(
            self.name == name or fnmatchcase(name, self.name)
            for name in {entry.name, entry.test, dict(entry.key).get("mode", entry.name)}
        )


def parse(text: str) -> Criterion:
    """Read one criterion. ValueError, with the rule and what came, for anything else and for a noisy figure."""
    name, _, rest = text.rpartition("/")
    figure, colon, tolerance = (part.strip() for part in rest.rpartition(":"))
    if not colon or not tolerance or ("/" in text and not name.strip()):
        raise ValueError(f"a criterion must be {_SYNTAX}, got {text!r}")
    if figure in _NOISY:
        raise ValueError(f"{figure} is noisy: it is reported and never fails, got {text!r}")
    if _OTHER_DEVICE.sub("", figure) not in _FIGURES:
        raise ValueError(f"a figure must be one of {', '.join(_FIGURES)}, got {text!r}")
    percent = _PERCENT.fullmatch(tolerance)
    try:
        if percent is not None:
            return Criterion(figure_of(figure), name or None, share=Fraction(percent[1]) / 100)
        whole = int(tolerance) if tolerance.isdecimal() else tolerance
        return Criterion(figure_of(figure), name or None, tolerance_bytes=parse_bytes(whole))
    except ValueError:
        raise ValueError(f"a tolerance must be 2%, 1MiB or a whole number of bytes, got {text!r}") from None


def criteria_of(entry: Entry, criteria: Sequence[Criterion]) -> dict[str, Criterion]:
    """The criterion of every figure that may fail `entry`: a named one before a general one, a later before an earlier.

    An entry that no criterion concerns is compared to the byte, or to its meter's granule, in every exact channel and
    in growth."""
    own = [criterion for criterion in criteria if criterion.concerns(entry)]
    if not own:
        return to_the_byte(entry)
    return {criterion.figure: criterion for criterion in sorted(own, key=lambda one: one.name is not None)}


def to_the_byte(entry: Entry) -> dict[str, Criterion]:
    """Criteria for every exact channel, to its meter's granule, and for growth."""
    exact = {
        figure_of(name): Criterion(figure_of(name), tolerance_bytes=channel.tolerance_bytes)
        for name, channel in entry.channels.items()
        if channel.exact
    }
    return exact if entry.growth is None else {**exact, GROWTH: Criterion(GROWTH)}


def figure_of(channel: str) -> str:
    """The name of a channel in a criterion."""
    return PEAK if channel in ("requested_peak", BODY_PEAK) else channel


def figures(entry: Entry) -> Mapping[str, float]:
    """Every figure of the entry by its name in a criterion; the highest reading of each channel."""
    by_name: dict[str, float] = {figure_of(name): channel.most_bytes for name, channel in entry.channels.items()}
    for figure in (GROWTH, ABOVE_START):
        value = figure_in(entry, figure)
        if value is not None:
            by_name[figure] = value
    return by_name


def figure_in(entry: Entry, figure: str) -> float | None:
    """One figure of the entry; None where it was not measured."""
    if figure == GROWTH:
        return entry.growth
    if figure == ABOVE_START:
        peak = entry.channels.get("requested_peak")
        return None if peak is None or peak.before_bytes is None else peak.most_bytes - peak.before_bytes
    return next((channel.most_bytes for name, channel in entry.channels.items() if figure_of(name) == figure), None)


def is_exact(entry: Entry, figure: str) -> bool:
    """Whether the figure is of an exact channel of this entry; growth is that of exact channels alone."""
    figure = PEAK if figure == ABOVE_START else figure
    return figure == GROWTH or any(
        channel.exact for name, channel in entry.channels.items() if figure == figure_of(name)
    )
