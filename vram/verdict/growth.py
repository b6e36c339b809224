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
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from vram.recording import Int64
from vram.verdict.pace import Pace, pace
from vram.verdict.ratchet import Ratchet
from vram.verdict.rate import rate

Status = Literal["stable", "plateau", "grows", "undecided"]

_RUNS_A_BASE = 100  # base laps are regrouped to this many runs, so that the second look rests on 200, the third on 300
_RISES_NEEDED = {2: 5, 3: 3}  # by look: the longer the record, the fewer rises can be chance
_CERTAIN_RUNS = 140  # of constant growth; `functools.lru_cache` has room for 128 entries unless told otherwise
_MANY = 15  # moments of growth that show a steady pace at the second look
_STEADILY = -0.55  # the lowest trend at which a second look is enough
_SLOWING = -1.5  # the trend at which something is said to fill
_FEW, _QUIET = 4, 3  # moments of growth that show no pace, and laps without one after which they are over
_DIFFERS = "the step differs from lap to lap: seed it, or declare a bounded cache"
_MOVES = "it moves up and down by more than what is common to all samples"


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
    None when it has decided. `climb_bytes`: by how much every reading of the last lap is above the start; a plateau
    is what has stopped rising, however far it rose. `late_climb_bytes`: the same above the first lap after warm-up,
    each sample compared with itself.
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
    climb_bytes: int = 0
    late_climb_bytes: int = 0

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
    before_bytes: int | None = None,
    repeats: bool | None = None,
) -> Verdict:
    """Judge readings X of one channel, integer bytes of shape (laps, samples), warm-up laps included.

    Looks are taken at `base_laps`, then at twice and three times as many (short sample lists: as many as make 200 and
    300 runs; see `Verdict.laps_wanted`). The first look never convicts; but a short list needs no second one where each
    of 140 runs rose by the same bytes. `tolerance_bytes` is 0 on exact channels, one granule on quantised ones.
    `cache_budget_bytes` is what a declared bounded cache may fill in all. `before_bytes` is the reading before the
    first sample, where a climb starts; without it (a peak includes what a sample needs while it runs) each sample's
    climb starts at its own reading in the first lap. `repeats` is False where the samples need other bytes in every
    lap: some of the growth is then taken for what the longest input so far needed, and the reason says so. Raises
    ValueError for another shape, for figures that are not integers, and for fewer than `warmup_laps` + 2 laps.
    Source: facts measured on 25 benign and leaking scenarios, and on 16 of steps with chance of their own.
    """
    readings = _checked(series, warmup_laps, tolerance_bytes, cache_budget_bytes)
    laps, samples = readings.shape
    group = lap_group(base_laps, samples)
    look = 3 if laps >= 3 * base_laps * group else 2 if laps >= 2 * base_laps * group else 1
    rows = _regrouped(readings, group)[math.ceil(warmup_laps / group) :] if look > 1 else readings[warmup_laps:]
    ratchet = Ratchet(rows, tolerance_bytes, cache_budget_bytes)
    short = look == 1 and group > 1  # a list whose second look is a long way off
    certain = _certain(readings, warmup_laps, tolerance_bytes, cache_budget_bytes) if short else None
    status, reason = _decide(ratchet, look, base_laps, readings, warmup_laps, repeats)
    if certain and laps >= certain.laps:
        status, reason = "grows", certain.reason
    since = _steady_row(ratchet, status)
    its = rate(rows[since:], len(ratchet.rises), tolerance_bytes)
    if status == "grows" and its.low_bytes <= 0:
        status, reason = "undecided", f"{reason}, but the 95 % interval of its rate includes no growth"
    if repeats is False and status in ("grows", "undecided"):
        reason += f"; {_DIFFERS}"
    full = (look + 1) * base_laps * group
    early = certain.laps if certain and laps < certain.laps < full else None
    return Verdict(
        *(status, reason, laps, samples),
        rises=len(ratchet.rises),
        **its._asdict(),
        onset_run=_onset(readings, warmup_laps, its.bytes_per_sample) if ratchet.suspicious and ratchet.rises else None,
        resolution_bytes=ratchet.resolution_bytes(since if status == "grows" else None),
        rare_leak_bound=1 - 0.05 ** (1 / readings.size),
        strictly_monotonic=bool((np.diff(readings.ravel()) > 0).all()),
        laps_wanted=(early or full) if status == "undecided" and look < 3 else None,
        climb_bytes=int((readings[-1] - (readings[0] if before_bytes is None else before_bytes)).min()),
        late_climb_bytes=int((readings[-1] - readings[warmup_laps]).min()),
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


class _Certain(NamedTuple):
    """Growth by the same bytes in every sample of every lap; `laps` in all are enough of it to convict."""

    laps: int
    reason: str


def _certain(readings: Int64, warmup_laps: int, tolerance_bytes: int, cache_budget_bytes: int) -> _Certain | None:
    """Constant growth, where that is all there is; None for anything else.

    No cache is told from a leak by that, so it takes more runs than caches commonly have entries.
    """
    laps, samples = readings.shape
    step = int(readings[-1, 0] - readings[-2, 0])
    steady = (np.diff(readings, axis=0) == step).all(axis=1)
    if step <= tolerance_bytes or not steady[warmup_laps:].all():
        return None
    unlike = 0 if steady.all() else warmup_laps  # laps that grew otherwise: the warm-up
    needed = unlike + math.ceil((_CERTAIN_RUNS + samples * cache_budget_bytes / step) / samples)
    return _Certain(needed, f"every sample rose by the same {step:,} B in each of {laps - 1 - unlike} laps")


def lap_group(base_laps: int, samples: int) -> int:
    """How many laps are judged as one, so that `base_laps` of them are at least 100 runs."""
    return math.ceil(_RUNS_A_BASE / (base_laps * samples))


def _regrouped(readings: Int64, group: int) -> Int64:
    """`group` laps to a row. Laps that fill no row are dropped from the front, where the warm-up is."""
    laps, samples = readings.shape
    return readings[laps % group :].reshape(-1, group * samples)


def _decide(
    ratchet: Ratchet, look: int, base: int, readings: Int64, warmup_laps: int, repeats: bool | None
) -> tuple[Status, str]:
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
    its = pace(readings, ratchet.rows, ratchet.common, ratchet.tolerance_bytes)
    return _decide_common(ratchet, look, base, its, repeats)


def _decide_alone(ratchet: Ratchet, look: int, base: int, samples: int) -> tuple[Status, str]:
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


def _decide_common(ratchet: Ratchet, look: int, base: int, its: Pace, repeats: bool | None) -> tuple[Status, str]:
    """All samples rose together, and not long ago."""
    # A second look judges all of it; a third, twice as long, leaves the early laps and their late warm-up out.
    since = 0 if look == 2 else base - 1
    missing = _missing(ratchet, _RISES_NEEDED[look], base, since)
    wanders = not missing and ratchet.wanders(since)
    if look == 3 and (wanders or (missing and ratchet.common[-1] <= ratchet.largest_fall)):
        # The last rows' minima rest on few laps: what is below the channel's own ups and downs proves nothing.
        return "stable", _MOVES
    if wanders:
        missing = [_MOVES]
    if look == 3:
        return _decide_last(ratchet, base, its, missing, repeats)
    many = its.steady and its.count >= _MANY
    if not missing and not (its.trend >= _STEADILY and (ratchet.even or many)):
        missing = ["it comes unevenly; more laps tell whether it slows down"]
    return _grows_unless(missing, ratchet)


def _decide_last(
    ratchet: Ratchet, base: int, its: Pace, missing: list[str], repeats: bool | None
) -> tuple[Status, str]:
    """The third look, the last: what saturates is told from what goes on."""
    rises, late = ratchet.rises, ratchet.late
    if not missing and ratchet.moves and not ratchet.goes_on:
        return "stable", _MOVES
    if missing and ratchet.filled():
        return "plateau", "it filled up, and has only moved up and down since"
    spans = len(rises) >= _RISES_NEEDED[3] and rises[-1] - rises[0] + 1 >= base
    by_chance = not late.all() or (repeats is False and not ratchet.floor_sinks)
    if its.steady and spans and by_chance and ratchet.quiet <= ratchet.longest_wait:
        missing = []  # though bytes may have slowed down
    steady = its.steady or its.steady_by_itself
    falls = ratchet.largest_fall > ratchet.tolerance_bytes
    if not missing and falls and not (ratchet.steps > 0).all() and ratchet.slows_down(0, times=3):
        missing = ["it slows down"]
    if not missing and not steady:
        missing = ["it came too seldom, or ever more seldom, to tell it from something that fills"]
    if missing and 2 * late.sum() <= len(late):
        if its.count > _FEW and its.trend <= _SLOWING:
            return "plateau", f"it rose {_times(len(rises))}, ever more seldom"
        if its.count <= _FEW and ratchet.quiet >= _QUIET:
            return "plateau", f"it rose {_times(len(rises))}, and not in the last {ratchet.quiet} laps"
        rose = ratchet.steps[ratchet.steps > 0]
        if not steady and rose.min() < rose.max():
            return "plateau", f"it rose {_times(len(rises))} by different bytes, as a buffer of the longest input does"
    return _grows_unless(missing, ratchet)


def _grows_unless(missing: list[str], ratchet: Ratchet) -> tuple[Status, str]:
    if missing:
        return "undecided", f"it rose {_times(len(ratchet.rises))}, but: {'; '.join(missing)}"
    return "grows", f"it rose in {len(ratchet.rises)} of {len(ratchet.rows) - 1} laps and never came back down"


def _missing(ratchet: Ratchet, rises_needed: int, base: int, since: int) -> list[str]:
    """The conditions for growth that do not hold."""
    rises, quiet = ratchet.rises, ratchet.quiet
    conditions = (
        (len(rises) >= rises_needed, f"{len(rises)} of {rises_needed} rises needed"),
        (quiet <= ratchet.longest_wait, f"no rise in the last {quiet} laps"),
        (rises[-1] - rises[0] + 1 >= base, f"the rises span fewer than {base} laps"),
        (not ratchet.slows_down(since), "it slows down"),
    )
    return [text for holds, text in conditions if not holds]


def _steady_row(ratchet: Ratchet, status: Status) -> int:
    """The row from which on the rate is taken: after the onset where it grows, after the last rise where it stopped."""
    if not ratchet.rises:
        return 0
    # In the row of the last rise, some samples came before it: theirs is the row after.
    row = ratchet.rises[0] if status in ("grows", "undecided") else ratchet.rises[-1] + 1
    return row if row < len(ratchet.rows) - 2 else max(0, len(ratchet.rows) - 3)


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
