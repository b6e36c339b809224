"""From a recording's channels to its verdict: how each is judged, and which of them decide. Arithmetic on numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from vram.errors import Inconclusive, Undecided
from vram.recording import CHANNELS, Int64, Recording, check_recording
from vram.verdict.growth import Status, Verdict, judge_growth
from vram.verdict.own_need import following, live_of, repeats

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

    Empty where there are too few laps: one of peaks alone, or those before a limit was reached. `cache_budget_bytes`
    replaces the recording's own.
    """
    check_recording(recording)
    if recording.laps < recording.warmup_laps + 2:
        return {}
    order = {channel: rank for rank, channel in enumerate(CHANNELS)}
    alike = repeats(recording)
    judged = {
        channel: judge_growth(
            judged_figures(recording.channels, channel),
            warmup_laps=recording.warmup_laps,
            base_laps=recording.base_laps,
            tolerance_bytes=recording.tolerance_bytes.get(channel, 0),
            cache_budget_bytes=recording.cache_budget_bytes if cache_budget_bytes is None else cache_budget_bytes,
            before_bytes=_before(recording, channel),
            repeats=alike if channel in recording.exact else None,
        )
        for channel in sorted(recording.channels, key=lambda channel: order.get(channel, len(order)))
    }
    return _stopped(recording, judged) if recording.stopped else following(recording, judged)


def _before(recording: Recording, channel: str) -> int | None:
    """The level that a climb of `channel` starts from; None for peaks, which include what a sample needs."""
    if live_of(channel) != channel:
        return None
    besides_bytes = recording.before["reserved"] if channel == "driver" and "reserved" in recording.channels else 0
    return recording.before[channel] - besides_bytes


def _stopped(recording: Recording, judged: Mapping[str, Verdict]) -> dict[str, Verdict]:
    """The verdict where a limit ended the replay: growth that is proven, and nothing else.

    A channel that was through with its laps keeps its verdict, as long as one that was not is there to say so.
    """
    begun, unfinished = (
        f"{recording.stopped}: ",
        any(judged[name].status == "undecided" for name in recording.exact & judged.keys()),
    )
    early = recording.laps < recording.base_laps
    if early:
        begun += f"{recording.laps} of {recording.base_laps} laps ran; "
    return {
        channel: replace(verdict, status="undecided", reason=begun + verdict.reason)
        if verdict.status == "undecided" or (verdict.status in PASSING and (early or not unfinished))
        else verdict
        for channel, verdict in judged.items()
    }


def overall(recording: Recording, judged: Mapping[str, Verdict]) -> tuple[str, Verdict]:
    """The channel that decides, with its verdict: the worst of the exact ones, or the driver's where that alone grows.

    Raises Inconclusive where no exact channel was measured, or nothing grows and nothing was allocated either;
    Undecided where a limit ended the replay after too few laps to judge.
    """
    if not recording.exact:
        reasons = "; ".join(f"{channel}: {why}" for channel, why in recording.absent.items())
        raise Inconclusive(f"{recording.title}: no exact channel was measured ({reasons or 'no meter reads one'})")
    if not judged and recording.nothing_allocated:
        raise Inconclusive(f"{recording.title}: {recording.nothing_allocated}")
    if not judged and recording.stopped:
        ran = recording.unseen("") or f"{recording.stopped}: {recording.laps} of {recording.base_laps} laps ran"
        raise Undecided(f"{recording.title}: {ran}, and growth is judged over laps")
    if not judged:
        raise Inconclusive(f"{recording.title}: growth is judged over laps, and one was run")
    may_convict = convicting(recording)
    deciding = {
        channel: verdict
        for channel, verdict in judged.items()
        if channel in recording.exact or (channel in may_convict and verdict.status == "grows")
    }
    channel = min(deciding, key=lambda name: _WORST_FIRST.index(deciding[name].status))
    if deciding[channel].status != "grows" and recording.nothing_allocated:
        raise Inconclusive(f"{recording.title}: {recording.nothing_allocated}")
    return channel, deciding[channel]
