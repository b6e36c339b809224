"""How fast memory grows: bytes a sample, with the interval that the rate lies in."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from vram.recording import Int64

_STUDENT_975 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
)  # two-sided 95 % of Student's t, 1 to 20 degrees of freedom
_FEWEST_EVENTS = 3  # below, a count says nothing of a rate


class Rate(NamedTuple):
    """Bytes a sample with the ends of their 95 % interval; `exact` where every paired difference is the same."""

    bytes_per_sample: float
    low_bytes: float
    high_bytes: float
    exact: bool


def rate(rows: Int64, rises: int, tolerance_bytes: int) -> Rate:
    """The rate that `rows` of readings grow at, of which `rises` lifted every sample.

    The interval is Student's of the rows' mean steps, widened by one event. Where no sample ever fell, growth is a
    count of events, and the interval ends no lower than that of the count (Garwood's, as Wilson and Hilferty
    approximate it): nine events in 300 runs, at random moments, are not compatible with none.
    """
    steps = np.diff(rows, axis=0)
    width = rows.shape[1]
    if (steps == steps[0, 0]).all():
        exact = float(steps[0, 0]) / width
        return Rate(exact, exact, exact, True)
    mean = float(steps.mean()) / width
    event = float(steps.max() - steps.min()) / (steps.shape[0] * width)  # one more, or less, in the whole record
    by_lap = steps.mean(axis=1)
    freedom = by_lap.size - 1
    if freedom == 0:
        return Rate(mean, float(steps.min()) / width - event, float(steps.max()) / width + event, False)
    # A lap's mean step shares its events with its neighbour's (weights 1/6, 2/3, 1/6): the plain error is too small.
    error = _student(freedom) * float(by_lap.std(ddof=1)) * math.sqrt(1.5 / by_lap.size) / width
    low = mean - error - event
    if (steps < -tolerance_bytes).any():
        low = max(low, _lowest_slope(rows))
    elif rises >= _FEWEST_EVENTS:
        low = max(low, mean * _lowest_share(steps))
    low = min(low, mean)
    return Rate(mean, low, mean + error + event, False)


def _student(freedom: int) -> float:
    return _STUDENT_975[freedom - 1] if freedom <= len(_STUDENT_975) else 1.960 + 2.372 / freedom


def _lowest_slope(rows: Int64) -> float:
    """The lower end of 95 % of the line through the rows' means, bytes a sample, where their ups and downs last."""
    if len(rows) < 6:
        return -math.inf
    means = (rows - rows[0]).mean(axis=1)
    moments = np.arange(len(means)) - (len(means) - 1) / 2
    slope = float(moments @ means / (moments @ moments))
    left = means - means.mean() - slope * moments
    memory = float(left[1:] @ left[:-1] / max(1e-9, left @ left))
    memory = min(0.9, max(0.0, memory + (1 + 3 * memory) / len(means)))  # Kendall's correction of a short record's
    freedom = len(means) - 2
    error = _student(freedom) * math.sqrt(left @ left / freedom / (moments @ moments) * (1 + memory) / (1 - memory))
    return float((slope - error) / rows.shape[1])


def _lowest_share(steps: Int64) -> float:
    """The lower end of 95 % of a Poisson count, over that count: as many events of one size as vary like the steps."""
    seen = steps[:, steps.sum(axis=0) > 0].astype(np.float64)
    if not seen.size:
        return 0.0
    count = float(np.median(seen.sum(axis=0) ** 2 / (seen**2).sum(axis=0)))
    return float(max(0.0, 1 - 1 / (9 * count) - 1.960 / (3 * math.sqrt(count))) ** 3)
