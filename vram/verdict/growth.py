"""When does memory grow? The ratchet rule: suspicion by the maximum, conviction by the minimum.

Arithmetic on numbers: no device, file or clock. A lap is one pass over the same ordered samples, so that a sample is
only ever compared with itself and the length of inputs cancels exactly.

Letters: L laps, n samples; after regrouping, rows and columns. X[l, i] is the reading after sample i of lap l.
S[l, i] = min over l' >= l of X[l', i] is what is never released afterwards. C[l] = min over i of S[l, i] - S[0, i] is
growth that every position agrees on. A rise is a lap where C climbs by more than the tolerance over the last level.

"stable" does not prove that there is no leak: see `Verdict.resolution_bytes` (smaller constant leaks can hide in the
noise) and `Verdict.rare_leak_bound` (rarer ones may not have happened yet). A cache that fills over eight laps or more
looks like growth unless it is declared with `cache_budget_bytes`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from vram.recording import Int64

Status = Literal["stable", "plateau", "grows", "undecided"]

_RUNS_A_BASE = 100  # base laps are regrouped to this many runs, so that the second look rests on 200, the third on 300
_RISES_NEEDED = {2: 5, 3: 3}  # by look: the longer the record, the fewer rises can be chance
_STUDENT_975 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
)  # two-sided 95 % of Student's t, 1 to 20 degrees of freedom


@dataclass(frozen=True)
class Forecast:
    """Samples until a headroom is used up. `latest` is None where the interval includes no growth."""

    earliest: int
    expected: int
    latest: int | None


@dataclass(frozen=True)
class Verdict:
    """The verdict on one channel, as far as its numbers allow one.

    `bytes_per_sample` with its 95 % interval `low_bytes`..`high_bytes` (`exact`: every paired difference is equal);
    `onset_run`: the run (lap x samples + sample, from 0) growth began with, None without growth; `resolution_bytes`:
    the smallest constant leak a sample that must convict; `rare_leak_bound`: a leak rarer than this (probability a
    run) may not have shown with 95 % confidence; `laps_wanted`: laps in all that the rule asks for before it decides,
    None when it has decided.
    """

    status: Status
    reason: str
    laps: int
    samples: int
    rises: int
    bytes_per_sample: float
    low_bytes: float
    high_bytes: float
    exact: bool
    onset_run: int | None
    resolution_bytes: int
    rare_leak_bound: float
    strictly_monotonic: bool
    laps_wanted: int | None

    def samples_until(self, headroom_bytes: int) -> Forecast | None:
        """Samples until `headroom_bytes` are used up at the measured rate; None where nothing grows."""
        if self.status != "grows" or self.bytes_per_sample <= 0:
            return None
        return Forecast(
            earliest=math.floor(headroom_bytes / self.high_bytes),
            expected=math.floor(headroom_bytes / self.bytes_per_sample),
            latest=math.floor(headroom_bytes / self.low_bytes) if self.low_bytes > 0 else None,
        )


def judge_growth(
    series: npt.ArrayLike,
    *,
    warmup_laps: int = 1,
    base_laps: int = 5,
    tolerance_bytes: int = 0,
    cache_budget_bytes: int = 0,
) -> Verdict:
    """Judge readings X of one channel, integer bytes of shape (laps, samples), warm-up laps included.

    Looks are taken at `base_laps`, then at twice and three times as many (short sample lists: as many as make 200 and
    300 runs; see `Verdict.laps_wanted`). The first look never convicts. `tolerance_bytes` is 0 on exact channels, one
    granule on quantised ones. `cache_budget_bytes` is what a declared bounded cache may fill in all. Raises ValueError
    for another shape, for figures that are not integers, and for fewer than `warmup_laps` + 2 laps.
    Source: facts measured on 25 benign and leaking scenarios before this rule was chosen.
    """
    readings = _checked(series, warmup_laps, tolerance_bytes, cache_budget_bytes)
    laps, samples = readings.shape
    group = lap_group(base_laps, samples)
    look = 3 if laps >= 3 * base_laps * group else 2 if laps >= 2 * base_laps * group else 1
    rows = _regrouped(readings, group)[math.ceil(warmup_laps / group) :] if look > 1 else readings[warmup_laps:]
    ratchet = _Ratchet(rows, tolerance_bytes, cache_budget_bytes)
    status, reason = _decide(ratchet, look, base_laps, readings, warmup_laps)
    since = _steady_row(ratchet, status)
    rate, low, high, exact = _rate(ratchet, since)
    return Verdict(
        *(status, reason, laps, samples),
        rises=len(ratchet.rises),
        bytes_per_sample=rate,
        low_bytes=low,
        high_bytes=high,
        exact=exact,
        onset_run=_onset(readings, warmup_laps, rate) if ratchet.suspicious and ratchet.rises else None,
        resolution_bytes=ratchet.resolution_bytes(since if status == "grows" else None),
        rare_leak_bound=1 - 0.05 ** (1 / readings.size),
        strictly_monotonic=bool((np.diff(readings.ravel()) > 0).all()),
        laps_wanted=(look + 1) * base_laps * group if status == "undecided" and look < 3 else None,
    )


def _checked(series: npt.ArrayLike, warmup_laps: int, tolerance_bytes: int, cache_budget_bytes: int) -> Int64:
    """The readings as int64, once there are enough of them to judge."""
    readings = np.asarray(series)
    if readings.ndim != 2 or readings.shape[1] == 0 or not np.issubdtype(readings.dtype, np.integer):
        raise ValueError(f"series must be integers (laps, samples), got {readings.dtype} {readings.shape}")
    if warmup_laps < 0 or len(readings) < warmup_laps + 2:
        raise ValueError(f"a verdict needs {max(warmup_laps, 0) + 2} laps, warm-up included, got {len(readings)}")
    if tolerance_bytes < 0 or cache_budget_bytes < 0:
        raise ValueError(f"tolerances must not be negative, got {tolerance_bytes} and {cache_budget_bytes}")
    return readings.astype(np.int64)


def lap_group(base_laps: int, samples: int) -> int:
    """How many laps are judged as one, so that `base_laps` of them are at least 100 runs."""
    return math.ceil(_RUNS_A_BASE / (base_laps * samples))


def _regrouped(readings: Int64, group: int) -> Int64:
    """`group` laps to a row. What does not fill a row is dropped from the front, where the warm-up is."""
    laps, samples = readings.shape
    return readings[laps % group :].reshape(-1, group * samples)


class _Ratchet:
    """S, C and the rises of one array of rows (laps or groups of laps), warm-up removed."""

    def __init__(self, rows: Int64, tolerance_bytes: int, cache_budget_bytes: int) -> None:
        self.rows, self.tolerance_bytes = rows, tolerance_bytes
        kept = np.minimum.accumulate(rows[::-1], axis=0)[::-1]
        self.given_back = (rows - kept).max(axis=1)  # the most that any position of a row comes down later
        self.common = (kept - kept[0]).min(axis=1)
        self.suspicious = bool((rows[-1] - kept[0] > tolerance_bytes + cache_budget_bytes).any())
        self.rises: list[int] = []
        level = cache_budget_bytes
        for row, growth in enumerate(self.common):
            if growth > level + tolerance_bytes:
                self.rises.append(row)
                level = growth

    @property
    def quiet(self) -> int:
        """Rows since the last rise."""
        return len(self.rows) - 1 - self.rises[-1]

    @property
    def longest_wait(self) -> int:
        """The most rows it took from one rise to the next, the first counted from the start."""
        return int(np.diff([0, *self.rises]).max())

    def slows_down(self, since: int) -> bool:
        """Whether the later half of the rows from `since` on rose by less than half of what the earlier half did."""
        middle = (since + len(self.rows) - 1) // 2
        early = self.common[middle] - self.common[since]
        late = self.common[-1] - self.common[-1 - (middle - since)]
        return bool(2 * late < early)

    def wanders(self, since: int) -> bool:
        """Whether what was gained from row `since` on is no more than the channel's own ups and downs may come to.

        The minima of the last rows rest on few, so they rise towards the end of any fluctuation longer than a row, as
        of a cache with entries of many sizes. What rows typically give back again tells of one; what is let go of once
        does not. Where rows often lie below the row before, it takes more.
        """
        gained = self.common[-1] - self.common[since]
        given_back = np.sort(self.given_back[since:])
        typical = given_back[len(given_back) // 2]
        steps = np.diff(self.rows[since:].sum(axis=1))
        often_down = 4 * (steps < 0).sum() > len(steps)
        return bool(gained <= 2 * typical or (typical and often_down and gained <= 3 * given_back[-1]))

    @property
    def largest_fall(self) -> int:
        """The most that any position ever came down from an earlier row: the channel's own fluctuation."""
        return int((np.maximum.accumulate(self.rows, axis=0) - self.rows).max())

    def settled(self) -> bool:
        """Whether nothing rose within the later half of the rows."""
        later = self.rows[len(self.rows) // 2 :]
        return not (later[-1] - later.min(axis=0) > self.tolerance_bytes).any()

    def resolution_bytes(self, steady_since: int | None) -> int:
        """The smallest constant leak a sample that lifts every row above the noise of the row before.

        Where growth was found, the noise is what is left around its trend from row `steady_since` on.
        """
        rows = self.rows
        if steady_since is not None:
            rows = rows[steady_since:]
            trend = np.arange(len(rows)) * np.diff(rows, axis=0).mean()
            rows = np.rint(rows - trend[:, None]).astype(np.int64)
        noise = int((rows.max(axis=0) - rows.min(axis=0)).max())
        return int(2 * noise + self.tolerance_bytes) // int(rows.shape[1]) + 1


def _decide(ratchet: _Ratchet, look: int, base: int, readings: Int64, warmup_laps: int) -> tuple[Status, str]:
    """The status and its reason, by what the samples have in common."""
    if not ratchet.suspicious:
        first = readings[:warmup_laps].min(initial=np.iinfo(np.int64).max)
        if warmup_laps and first < ratchet.rows.min() - ratchet.tolerance_bytes:
            return "plateau", "it rose during warm-up and not since"
        return "stable", "every sample ended at its lowest level"
    if look == 1:
        return "undecided", "some sample ended above its lowest level; it takes more laps to decide"
    if not ratchet.rises:
        return _decide_alone(ratchet, look, base, readings.shape[1])
    if ratchet.quiet >= 2 * ratchet.longest_wait:
        rose = _times(len(ratchet.rises))
        return "plateau", f"it rose {rose}, then stayed level for twice the longest wait between rises"
    return _decide_common(ratchet, look, base)


def _decide_alone(ratchet: _Ratchet, look: int, base: int, samples: int) -> tuple[Status, str]:
    """Some samples moved, and never all of them."""
    if ratchet.settled():
        return "plateau", "some samples rose once and have stayed level since"
    if look == 2:
        return "undecided", "it moves, and so far no growth is common to all samples"
    steps = np.diff(ratchet.rows[base:], axis=0)
    alone = np.flatnonzero((steps > ratchet.tolerance_bytes).all(axis=0))
    if alone.size and ratchet.largest_fall <= ratchet.tolerance_bytes:
        at = int(alone[0]) % samples
        return "undecided", f"sample {at} rises in every lap, and no growth is common to all samples"
    return "stable", "it moves up and down; no growth is common to all samples"


def _decide_common(ratchet: _Ratchet, look: int, base: int) -> tuple[Status, str]:
    """All samples rose together, and not long ago."""
    # A second look judges all of it; a third, twice as long, leaves the early laps and their late warm-up out.
    since = 0 if look == 2 else base - 1
    missing = _missing(ratchet, _RISES_NEEDED[look], base, since)
    wanders = not missing and ratchet.wanders(since)
    if look == 3 and (wanders or (missing and ratchet.common[-1] <= ratchet.largest_fall)):
        # The last rows' minima rest on few laps: what is below the channel's own ups and downs proves nothing.
        return "stable", "it moves up and down by more than what is common to all samples"
    if wanders:
        missing = ["it moves up and down by more than what is common to all samples"]
    if missing:
        return "undecided", f"it rose {_times(len(ratchet.rises))}, but: {'; '.join(missing)}"
    return "grows", f"it rose in {len(ratchet.rises)} of {len(ratchet.rows) - 1} laps and never came back down"


def _missing(ratchet: _Ratchet, rises_needed: int, base: int, since: int) -> list[str]:
    """The conditions for growth that do not hold."""
    rises, quiet = ratchet.rises, ratchet.quiet
    conditions = (
        (len(rises) >= rises_needed, f"{len(rises)} of {rises_needed} rises needed"),
        (quiet <= ratchet.longest_wait, f"no rise in the last {quiet} laps"),
        (rises[-1] - rises[0] + 1 >= base, f"the rises span fewer than {base} laps"),
        (not ratchet.slows_down(since), "it slows down"),
    )
    return [text for holds, text in conditions if not holds]


def _steady_row(ratchet: _Ratchet, status: Status) -> int:
    """The row from which on the rate is taken: after the onset where it grows, after the last rise where it stopped."""
    if not ratchet.rises:
        return 0
    row = ratchet.rises[0] if status in ("grows", "undecided") else ratchet.rises[-1]
    return row if row < len(ratchet.rows) - 2 else max(0, len(ratchet.rows) - 3)


def _rate(ratchet: _Ratchet, since: int) -> tuple[float, float, float, bool]:
    """Bytes a sample, the 95 % interval, and whether it is exact."""
    steps = np.diff(ratchet.rows[since:], axis=0)
    width = ratchet.rows.shape[1]
    if (steps == steps[0, 0]).all():
        rate = float(steps[0, 0]) / width
        return rate, rate, rate, True
    rate = float(steps.mean()) / width
    event = float(steps.max() - steps.min()) / (steps.shape[0] * width)  # one more, or less, in the whole record
    by_lap = steps.mean(axis=1)
    freedom = by_lap.size - 1
    if freedom == 0:
        return rate, float(steps.min()) / width - event, float(steps.max()) / width + event, False
    student = _STUDENT_975[freedom - 1] if freedom <= len(_STUDENT_975) else 1.960 + 2.372 / freedom
    # A lap's mean step shares its events with its neighbour's (weights 1/6, 2/3, 1/6): the plain error is too small.
    error = student * float(by_lap.std(ddof=1)) * math.sqrt(1.5 / by_lap.size) / width
    return rate, rate - error - event, rate + error + event, False


def _onset(readings: Int64, warmup_laps: int, rate: float) -> int:
    """The run that growth began with, as far as paired readings can tell."""
    samples = readings.shape[1]
    kept = np.minimum.accumulate(readings[::-1], axis=0)[::-1]
    lifted = (kept[warmup_laps:] - kept[warmup_laps]).ravel()
    risen = np.flatnonzero(lifted > 0)
    first = int(risen[0])
    # Growth that began within the first judged lap lifts only the lap after it: count back by what has gathered since.
    back = round(float(lifted[first]) / rate) - 1 if rate > 0 and first < 2 * samples else 0
    onset = warmup_laps * samples + first - min(max(0, back), samples - 1)
    if warmup_laps and onset <= warmup_laps * samples + 1:
        warm = readings[warmup_laps] - readings[warmup_laps - 1]
        if float(warm.min()) >= 0.5 * rate * samples:
            return 0  # it grew as much between the warm-up lap and the next
    return int(onset)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
