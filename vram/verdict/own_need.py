"""A run's need above what was alive when it began: whether it repeats, and whether a peak only follows live memory.

A peak is what was alive before the run, and the run's own need. The first is judged as live memory is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from vram.recording import Int64, Recording
from vram.verdict.growth import Status, Verdict, judge_growth

_PASSING: tuple[Status, ...] = ("stable", "plateau")
_MOST = 0.5  # of the samples: where as many need now more, now less, the step is another in every lap


def live_of(peak: str) -> str:
    """The channel of live bytes beside a peak: "requested" of "requested_peak"; any other channel's own name."""
    return peak.removesuffix("_peak")


def own_need(channels: Mapping[str, Int64], before: Mapping[str, int], peak: str) -> Int64:
    """Bytes (laps, samples) of `peak` above what was alive when each run began."""
    live = channels[live_of(peak)].ravel()
    began = np.concatenate([[before[live_of(peak)]], live[:-1]])
    return np.asarray(channels[peak] - began.reshape(channels[peak].shape), dtype=np.int64)


def repeats(recording: Recording) -> bool | None:
    """Whether the samples need in every lap what they needed in the lap before; None where no exact peak says so.

    Left out are the warm-up, and runs after which another number of bytes stays alive than after most: a rare leak, or
    an entry of a cache. One that needs ever more repeats itself: its peak is judged for that.
    """
    peak = next(iter(_peaks(recording)), None)
    if peak is None:
        return None
    own = own_need(recording.channels, recording.before, peak)
    live = recording.channels[live_of(peak)]
    kept = np.diff(live.ravel(), prepend=recording.before[live_of(peak)]).reshape(live.shape)
    usual = (kept == np.median(kept)) & (np.arange(len(own)) >= recording.warmup_laps)[:, None]
    tolerance_bytes = recording.tolerance_bytes.get(peak, 0)
    steps = [np.diff(need[chosen]) for need, chosen in zip(own.T, usual.T, strict=True)]
    moves = [(step > tolerance_bytes).any() and (step < -tolerance_bytes).any() for step in steps]
    return bool(sum(moves) < _MOST * len(moves))


def following(recording: Recording, judged: Mapping[str, Verdict]) -> dict[str, Verdict]:
    """`judged`, where a peak that only follows its live memory has that verdict's status.

    Readings that also come down are harder to judge than live memory, which may have stopped beyond doubt; if what the
    runs need besides has not grown either, the peak has not.
    """
    verdicts = dict(judged)
    for peak in _peaks(recording):
        live = judged[live_of(peak)]
        if judged[peak].status in _PASSING or live.status not in _PASSING:
            continue
        own = judge_growth(
            own_need(recording.channels, recording.before, peak),
            warmup_laps=recording.warmup_laps,
            base_laps=recording.base_laps,
            tolerance_bytes=recording.tolerance_bytes.get(peak, 0),
        )
        if own.status in _PASSING:
            reason = f"it follows {live_of(peak)}: {live.reason}"
            verdicts[peak] = replace(judged[peak], status="plateau", reason=reason, laps_wanted=None)
    return verdicts


def _peaks(recording: Recording) -> list[str]:
    """Exact peaks with live memory beside them."""
    return [
        name for name in recording.channels if name in recording.exact and live_of(name) in recording.exact - {name}
    ]
