"""The ratchet rule, and what people do instead. Each says whether a series (laps, samples) is called growth.

The others see the first 100 readings, as one would who runs 100 samples; the ratchet asks for up to 300 where it must.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vram import Verdict, judge_growth
from vram.recording import Int64

FIRST_LAPS = 5
Rule = Callable[[Int64], bool]


def conclude(series: Int64, repeats: bool | None = None) -> Verdict:
    """The verdict of a replay, that sees whether its samples repeat: laps are added for as long as the rule asks."""
    laps: int | None = FIRST_LAPS
    while laps is not None:
        verdict = judge_growth(series[:laps], repeats=repeats)
        laps = verdict.laps_wanted
    return verdict


def ratchet(series: Int64) -> bool:
    """Our own rule."""
    return conclude(series).status == "grows"


def strictly_monotonic(series: Int64) -> bool:
    """Every reading above the one before."""
    return bool((np.diff(_first(series)) > 0).all())


def last_above_first(series: Int64) -> bool:
    """The last reading above the first."""
    readings = _first(series)
    return bool(readings[-1] > readings[0])


def slope(series: Int64) -> bool:
    """A least-squares slope above zero at 95 % (one-sided t-test)."""
    readings = _first(series).astype(float)
    runs = np.arange(readings.size) - (readings.size - 1) / 2
    rate = runs @ readings / (runs @ runs)
    left = readings - readings.mean() - rate * runs
    error = np.sqrt(left @ left / (readings.size - 2) / (runs @ runs))
    return bool(rate > 1.661 * error + 1e-9)


def mann_kendall(series: Int64) -> bool:
    """The Mann-Kendall trend test at 95 % (one-sided), and a Theil-Sen slope above zero."""
    readings = _first(series)
    later, earlier = np.triu_indices(readings.size, 1)[::-1]
    steps = readings[later] - readings[earlier]
    n, ties = readings.size, np.unique(readings, return_counts=True)[1]
    variance = (n * (n - 1) * (2 * n + 5) - (ties * (ties - 1) * (2 * ties + 5)).sum()) / 18
    trend = np.sign(steps).sum() - 1 > 1.645 * np.sqrt(variance)
    return bool(trend and np.median(steps / (later - earlier)) > 0)


def two_floors(series: Int64) -> bool:
    """The lowest reading of the second half above that of the first."""
    first, second = np.split(_first(series), 2)
    return bool(second.min() > first.min())


RULES: dict[str, Rule] = {
    "strictly monotonic": strictly_monotonic,
    "last > first": last_above_first,
    "slope t-test": slope,
    "Mann-Kendall + Theil-Sen": mann_kendall,
    "two-window floor": two_floors,
    "ratchet": ratchet,
}


def _first(series: Int64) -> Int64:
    return series[:FIRST_LAPS].ravel()
