"""A recording's highest peak by line of code: its sample run once more, traced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vram.explanation.allocations import BEFORE, Allocation
from vram.explanation.growth import by_line, shapes
from vram.explanation.tracer import tracer_for
from vram.recording import Recording
from vram.replaying.rerunnable import rerunnable_of

_MOST_LINES = 12


def breakdown(recording: Recording) -> dict[str, Any] | None:
    """`{"sample", "bytes", "lines": [{"line", "op", "dtype", "shape", "bytes", "count"}]}`, most bytes first.

    What was alive before the sample is one line, "before the sample"; what is beyond 12 lines another. None where the
    step and the samples are not known any more, or where running it again raised.
    """
    rerunnable = rerunnable_of(recording)
    peaks = recording.channels.get("requested_peak")
    if rerunnable is None or peaks is None:
        return None
    sample = int(peaks.max(axis=0).argmax())
    with tracer_for(rerunnable.device) as tracer:
        try:
            with tracer.watching(0):
                rerunnable.step(rerunnable.samples[sample])
        except Exception:  # a failing step fails its own test
            return None
        alive = [one for one in tracer.at_peak() if one.n_bytes]
    return {"sample": sample, "bytes": sum(one.n_bytes for one in alive), "lines": _lines(alive)}


def _lines(alive: Sequence[Allocation]) -> list[dict[str, Any]]:
    groups = by_line(one for one in alive if one.run != BEFORE)
    lines: list[dict[str, Any]] = [
        {
            "line": str(group[0].line) if group[0].line is not None else "unknown line",
            "op": group[0].op,
            "dtype": group[0].dtype,
            "shape": shapes(group),
            "bytes": sum(one.n_bytes for one in group),
            "count": len(group),
        }
        for group in groups.values()
    ]
    before = [one.n_bytes for one in alive if one.run == BEFORE]
    if sum(before):
        lines.append(_summed("before the sample: weights, and whatever else was there", sum(before), len(before)))
    lines.sort(key=lambda line: -line["bytes"])
    rest = lines[_MOST_LINES:]
    if rest:
        lines[_MOST_LINES:] = [
            _summed(f"{len(rest)} more lines", sum(one["bytes"] for one in rest), sum(one["count"] for one in rest))
        ]
    return lines


def _summed(line: str, n_bytes: int, count: int) -> dict[str, Any]:
    return {"line": line, "op": "", "dtype": "", "shape": "", "bytes": n_bytes, "count": count}
