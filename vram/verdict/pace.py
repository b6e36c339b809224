"""At what pace memory grows: steadily, as a leak does, or ever more rarely, as a cache of random keys does.

A lap that draws its lengths or keys anew is no repetition: scratch that is as large as the longest input so far, or a
cache of keys that come at random, rises in later laps too. But it saturates. After t runs a new longest input comes
with probability 1/t, a new key as rarely as all others have been drawn; a leak comes as often late as early. So the
mean moment of growth lies in the middle of the record where something leaks, and before it where something fills.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vram.recording import Int64

_SLOWS = -2.3  # 1 % of steady paces have a lower trend
_FEWEST = {True: 3, False: 4}  # moments of growth, by whether they are alike
_MULTIPLES = 3  # of the smallest rise, up to which rises are alike: two or three tensors of one shape in one run
# Moments after warm-up that a trend is believed of by itself, and the lowest that is then no slowing down. Among few, a
# cache that fills now and then looks steady.
_BY_ITSELF = ((7, -0.5), (12, -1.0), (25, -1.65))


@dataclass(frozen=True)
class Pace:
    """When a channel grew. `count`: in how many runs, or laps where readings also come down, after warm-up.

    `trend`: how far from the middle of the record their mean moment is, in standard errors of as many random moments;
    `whole_trend`: the same with the warm-up, None where that also comes down. `alike`: each grew by one to three times
    the same bytes, and then only such growth counts of the warm-up.
    """

    count: int
    trend: float
    whole_trend: float | None
    alike: bool
    by_rows: bool = False

    @property
    def steady(self) -> bool:
        """Whether, from the first run on, it grew often enough to tell, and as often late as early."""
        if self.whole_trend is None or min(self.trend, self.whole_trend) < _SLOWS:
            return False
        return self.count + 2 * self.whole_trend >= _FEWEST[self.alike]

    @property
    def steady_by_itself(self) -> bool:
        """Whether it grew as often late as early after warm-up, whatever came before."""
        if (
            self.by_rows
        ):  # ups and downs hide most moments, and what is common to all samples rises late in each of them
            return self.trend >= _BY_ITSELF[-1][1]
        return any(self.count >= count and self.trend >= lowest for count, lowest in _BY_ITSELF)


def pace(readings: Int64, rows: Int64, common: Int64, tolerance_bytes: int) -> Pace:
    """The pace of `readings` (laps, samples), of which `rows` come after warm-up, and `common` is what all rows share.

    Run by run where nothing ever comes down; else, by what is common to all samples, row by row.
    """
    steps, whole = _climbs(rows, tolerance_bytes), _climbs(readings, tolerance_bytes)
    if (np.diff(rows.ravel()) < -tolerance_bytes).any():
        grew = np.diff(common) > tolerance_bytes
        return Pace(int(grew.sum()), trend(grew), None, alike=False, by_rows=True)
    grew = steps > tolerance_bytes
    one = int(steps[grew].min(initial=np.iinfo(np.int64).max))
    alike = bool(grew.any() and _alike(steps[grew], one).all())
    whole_trend: float | None = None
    if alike:
        whole_trend = trend((whole > tolerance_bytes) & _alike(whole, one))
    elif not (np.diff(readings.ravel()) < -tolerance_bytes).any():
        whole_trend = trend(whole > tolerance_bytes)
    return Pace(int(grew.sum()), trend(grew), whole_trend, alike)


def _climbs(readings: Int64, tolerance_bytes: int) -> Int64:
    """Bytes by which each run rose above the last level, where that is more than the tolerance; 0 elsewhere.

    Steps within the tolerance add up: a leak as small as a granule rises by more than one every other run.
    """
    figures = readings.ravel()
    if not tolerance_bytes:
        return np.diff(figures).clip(min=0)
    climbs, level = np.zeros(figures.size - 1, dtype=np.int64), int(figures[0])
    for run, figure in enumerate(figures[1:].tolist()):
        if figure > level + tolerance_bytes:
            climbs[run], level = figure - level, figure
    return climbs


def trend(grew: npt.NDArray[np.bool_]) -> float:
    """How late it grew: the mean moment from the middle, in standard errors (Laplace's test); 0 where nothing did."""
    moments = np.flatnonzero(grew)
    if not moments.size:
        return 0.0
    return float((2 * (moments + 0.5) / grew.size - 1).mean() * math.sqrt(3 * moments.size))


def _alike(steps: Int64, one: int) -> npt.NDArray[np.bool_]:
    return np.asarray((steps % one == 0) & (steps <= _MULTIPLES * one))
