"""From a recording's channels to its verdict: how each is judged, and which of them decide. Arithmetic on numbers."""

from __future__ import annotations

from collections.abc import Mapping

from vram.errors import Inconclusive
from vram.recording import CHANNELS, Int64, Recording, check_recording
from vram.verdict.growth import Status, Verdict, judge_growth

PASSING: tuple[Status, ...] = ("plateau", "stable")
_WORST_FIRST: tuple[Status, ...] = ("grows", "undecided", "plateau", "stable")


def judged_figures(channels: Mapping[str, Int64], channel: str) -> Int64:
    """The readings of `channel` that growth is judged by; the driver's without what PyTorch's allocator reserves.

    How much the allocator reserves is judged as `reserved`, and moves the driver's count by segments.
    """
    figures = channels[channel]
    return figures - channels["reserved"] if channel == "driver" and "reserved" in channels else figures


def convicting(recording: Recording) -> frozenset[str]:
    """Channels that may prove growth: the exact ones, and the driver's where it counts this process alone."""
    own = recording.environment.get("driver_bytes") == "of this process"
    return recording.exact | ({"driver"} & recording.channels.keys() if own else set())


def verdicts(recording: Recording, *, cache_budget_bytes: int | None = None) -> dict[str, Verdict]:
    """The verdict on every measured channel, most telling first; the driver's without what is `reserved`.

    Empty for a recording of one lap, which is of peaks alone. `cache_budget_bytes` replaces the recording's own.
    """
    check_recording(recording)
    if recording.laps == 1:
        return {}
    order = {channel: rank for rank, channel in enumerate(CHANNELS)}
    return {
        channel: judge_growth(
            judged_figures(recording.channels, channel),
            warmup_laps=recording.warmup_laps,
            base_laps=recording.base_laps,
            tolerance_bytes=recording.tolerance_bytes.get(channel, 0),
            cache_budget_bytes=recording.cache_budget_bytes if cache_budget_bytes is None else cache_budget_bytes,
        )
        for channel in sorted(recording.channels, key=lambda channel: order.get(channel, len(order)))
    }


def overall(recording: Recording, judged: Mapping[str, Verdict]) -> tuple[str, Verdict]:
    """The channel that decides, with its verdict: the worst of the exact ones, or the driver's where that alone grows.

    Raises Inconclusive where no exact channel was measured, or nothing grows and nothing was allocated either.
    """
    if not recording.exact:
        reasons = "; ".join(f"{channel}: {why}" for channel, why in recording.absent.items())
        raise Inconclusive(f"{recording.name}: no exact channel was measured ({reasons or 'no meter reads one'})")
    if not judged and recording.nothing_allocated:
        raise Inconclusive(f"{recording.name}: {recording.nothing_allocated}")
    if not judged:
        raise Inconclusive(f"{recording.name}: growth is judged over laps, and one was run")
    may_convict = convicting(recording)
    deciding = {
        channel: verdict
        for channel, verdict in judged.items()
        if channel in recording.exact or (channel in may_convict and verdict.status == "grows")
    }
    channel = min(deciding, key=lambda name: _WORST_FIRST.index(deciding[name].status))
    if deciding[channel].status in PASSING and recording.nothing_allocated:
        raise Inconclusive(f"{recording.name}: {recording.nothing_allocated}")
    return channel, deciding[channel]
