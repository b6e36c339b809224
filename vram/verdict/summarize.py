"""From a recording to its summary: the figures, and the verdicts that follow from them."""

from __future__ import annotations

from typing import Any

from vram.errors import Inconclusive, OutOfMemory, Undecided
from vram.recording import Recording
from vram.summary import ChannelSummary, RecordingSummary
from vram.verdict.channels import overall, verdicts
from vram.verdict.growth import Verdict


def summarize(recording: Recording, *, cache_budget_bytes: int | None = None) -> RecordingSummary:
    """The summary of a recording, before anything is asserted of it.

    `cache_budget_bytes` replaces the recording's own.
    """
    if cache_budget_bytes is None:
        cache_budget_bytes = recording.cache_budget_bytes
    judged = verdicts(recording, cache_budget_bytes=cache_budget_bytes)
    absent = dict(recording.absent)
    decided: dict[str, Any]
    try:
        channel, verdict = overall(recording, judged)
        decided = {
            "verdict": verdict.status,
            "verdict_channel": channel,
            "reason": verdict.reason,
            "bytes_per_sample": verdict.bytes_per_sample,
        }
    except (Inconclusive, Undecided) as error:
        decided = {"reason": str(error).removeprefix(f"{recording.title}: ")}
        if isinstance(error, Undecided):
            decided["verdict"] = "undecided"
        else:
            absent["verdict"] = "growth is judged over laps, and one was run" if recording.laps == 1 else str(error)
        if recording.nothing_allocated:
            absent["verdict"] = "nothing was allocated"
    return RecordingSummary(
        name=recording.name,
        laps=recording.laps,
        samples=recording.samples,
        **decided,
        peak_bytes=recording.peak_bytes() if "requested_peak" in recording.channels else None,
        seconds=float(recording.seconds.sum()),
        channels={name: _channel(recording, name, judged.get(name)) for name in judged or recording.channels},
        marks=_marks(recording),
        environment=dict(recording.environment),
        absent=absent,
        nothing_allocated=bool(recording.nothing_allocated),
        garbage_bytes=recording.most_garbage_bytes,
        garbage_kinds=recording.garbage_kinds,
        cache_budget_bytes=cache_budget_bytes,
        remarks=recording.remarks,
    )


def summarize_out_of_memory(name: str, error: OutOfMemory) -> RecordingSummary:
    """The summary of a replay that ran out of memory: why, and what was alive then."""
    reason, *lines = str(error).splitlines()
    figures = ("bytes_per_sample", "peak_bytes", "softmax_peak_bytes", "budget_bytes", "seconds", "laps", "samples")
    return RecordingSummary(
        name=name,
        verdict="out of memory",
        reason=reason,
        explanation={"lines": lines},
        absent=dict.fromkeys(figures, "the replay ran out of memory"),
    )


def _marks(recording: Recording) -> dict[str, Any]:
    """Readings of each mark, lap by lap, in the sample that needs most."""
    if not recording.channels:
        return {}
    highest = recording.channels.get("requested_peak", next(iter(recording.channels.values())))
    sample = int(highest.max(axis=0).argmax())
    return {
        name: {
            "sample": sample,
            "channels": {
                channel: [lap[sample].tolist() for lap in laps]
                for channel, laps in channels.items()
                if any(lap[sample].size for lap in laps)
            },
        }
        for name, channels in recording.marks.items()
    }


def _channel(recording: Recording, name: str, verdict: Verdict | None) -> ChannelSummary:
    judged: dict[str, Any] = {}
    if verdict is not None:
        judged = {
            "verdict": verdict.status,
            "bytes_per_sample": verdict.bytes_per_sample,
            "interval_bytes": [verdict.low_bytes, verdict.high_bytes],
            "onset_run": verdict.onset_run,
            "resolution_bytes": verdict.resolution_bytes,
            "rare_leak_bound": verdict.rare_leak_bound,
            "climb_bytes": verdict.climb_bytes,
            "late_climb_bytes": verdict.late_climb_bytes,
        }
    return ChannelSummary(
        exact=name in recording.exact,
        bytes=recording.channels[name].tolist(),
        before_bytes=int(recording.before[name]),
        tolerance_bytes=recording.tolerance_bytes.get(name, 0),
        **judged,
    )
