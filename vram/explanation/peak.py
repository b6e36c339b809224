"""Lines of code that a recording's peak is made of: its highest sample run once more, traced."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vram.explanation.allocations import BEFORE, Allocation
from vram.explanation.collected import explained_garbage, garbage_of, garbage_of_another, garbage_sample
from vram.explanation.failures import attempt
from vram.explanation.groups import by_line, shapes
from vram.explanation.operations import timeline
from vram.explanation.pieces import in_pieces
from vram.explanation.suggested import suggested
from vram.explanation.traced import run_traced
from vram.explanation.tracer import tracer_for
from vram.recording import Recording
from vram.replaying.collector import cheap_collections
from vram.replaying.random_numbers import same_random_numbers
from vram.replaying.rerunnable import Rerunnable, rerunnable_of
from vram.summary.at_peak import at_peak_lines, way_out_lines
from vram.units import format_bytes

if TYPE_CHECKING:
    from vram.explanation.earlier import Earlier

_MOST_LINES = 12
_MOST_TEXT = 12  # lines of a failure on the terminal; the report has all
_MOST_OF_RATIO = 6
_GONE = (
    "the lines are not known: the step or its samples are gone; with --vram-breakdown each recording is traced at once"
)


@dataclass(frozen=True)
class PeakExplanation:
    """Memory alive at a peak over its limit. `at_peak` is as `breakdown` has it; where it is None, `note` says why.

    `before_bytes` were alive before the first sample, `others_bytes` of them were left by other tests.
    """

    before_bytes: int
    at_peak: Mapping[str, Any] | None
    note: str = ""
    others_bytes: int = 0
    others_holder: str = ""

    def text(self, most_lines: int = _MOST_TEXT, *, offer: str = "") -> list[str]:
        """The explanation in at most `most_lines` lines, for the terminal.

        `offer` is a call that leaves out what was alive before; "" where the figure has left it out already.
        """
        begin, end = [], []
        if self.before_bytes:
            others = f"; {format_bytes(self.others_bytes)} from other tests, held by: {self.others_holder}"
            was = f"  {'of which' if offer else 'besides'} {format_bytes(self.before_bytes)} "
            begin.append(f"{was}was alive before the first sample{others * bool(self.others_bytes)}")
            end = [f"  to leave out what was alive before: {offer}"] if offer else []
        if self.at_peak is None:
            return [*begin, f"  {self.note}", *end][:most_lines]
        end = [*(f"  {line}" for line in way_out_lines(self.at_peak)), *end]
        lines = at_peak_lines(self.at_peak, most_lines - len(begin) - len(end))
        return [*begin, *(f"  {line}" for line in lines), *end]

    def summary(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return dict(vars(self))

    def of_ratio(self) -> dict[str, Any]:
        """Lines and ways out, for the summary of a ratio."""
        lines = [self.note] if self.at_peak is None else at_peak_lines(self.at_peak, _MOST_OF_RATIO)
        return {"lines": tuple(lines), "suggestions": tuple((self.at_peak or {}).get("suggestions", ()))}


def explained_peak(
    recording: Recording,
    channel: str,
    *,
    sample: int | None = None,
    known: Mapping[str, Any] | None = None,
    earlier: Earlier | None = None,
    used: Iterable[object] = (),
    named: Mapping[int, str] | None = None,
    device: str = "cpu",
) -> PeakExplanation:
    """Why `channel` is so high, in the highest sample or the one that is named. Raises nothing but KeyboardInterrupt.

    `known` is a breakdown that was made before, which counts where it is of that sample; `earlier` what was alive when
    the test began that made the recording, on `device`, `used` are objects that the test works with, and `named` names
    of holders by id.
    """
    at_peak, note, others = None, _GONE, (0, "")
    try:
        peaks = recording.channels[channel]
        number = _highest(peaks) if sample is None else sample
        at_peak = known if known is not None and known["sample"] == number else None
        rerunnable = rerunnable_of(recording)
        if earlier is not None:
            roots = [*used, *([rerunnable.step, rerunnable.samples] if rerunnable else [])]
            others = earlier.left(device, roots, named)
        if at_peak is None and rerunnable is not None:
            at_peak, note = _traced(rerunnable, recording, channel, number, runs=_shapes(recording, channel, number))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever it is, the verdict stands
        note = f"the lines are not known: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
    before_bytes = recording.start_bytes(channel)
    return PeakExplanation(before_bytes, at_peak, note, min(others[0], before_bytes), others[1])


def breakdown(
    recording: Recording, save: Callable[[dict[str, Any]], Path] | None = None, *, once: bool = False
) -> tuple[dict[str, Any] | None, str]:
    """`{"sample", "bytes", "lines": [{"line", "op", "dtype", "shape", "bytes", "count"}]}`, most bytes first, and "".

    What was alive before the sample is one line, "before the sample"; what is beyond 12 lines another, which has a key
    "lines" more, for how many they are. The key "breakdown" has the peak in pieces (`vram.summary.breakdown`), or
    "no_breakdown" why not; "garbage" or "no_garbage" are as `explained_garbage` has them, "suggestions" or
    "no_suggestions" as `suggested` does; "timeline" is that of `vram.summary.timeline`. `save` writes its snapshot for
    PyTorch's memory viewer: "snapshot" is the path, or "no_snapshot" why there is none. The highest sample runs once
    more; so does the one with most garbage, if that is another, but not with `once`. None, and why, where the step and
    the samples are not known any more, or where running it again raised. Raises nothing but KeyboardInterrupt.
    """
    rerunnable = rerunnable_of(recording)
    if "requested_peak" not in recording.channels:
        return None, "no peak was measured"
    if rerunnable is None:
        return None, "the step or its samples are gone"
    found, error = attempt(lambda: _traced(rerunnable, recording, "requested_peak", save=save))
    at_peak, why = found or (None, f"the lines are not known: {error}")
    if at_peak is not None and not at_peak.keys() & {"garbage", "no_garbage"}:
        at_peak |= garbage_of_another(recording) if once else explained_garbage(recording)
    return at_peak, why


def _traced(
    rerunnable: Rerunnable,
    recording: Recording,
    channel: str,
    sample: int | None = None,
    *,
    runs: int = 1,
    save: Callable[[dict[str, Any]], Path] | None = None,
) -> tuple[dict[str, Any] | None, str]:
    """A breakdown, or None and why, from the last of so many runs; shapes are from those of the first to its own."""
    number = _highest(recording.channels[channel]) if sample is None else sample
    traces: list[list[Allocation]] = []
    with cheap_collections(), tracer_for(rerunnable.device) as tracer, same_random_numbers():
        for run in range(runs):
            try:
                traced = run_traced(tracer, rerunnable, number, run, uses=True)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # a failing step fails its own test
                return None, f"the lines are not known: run again, sample {number} raised {type(error).__name__}"
            alive = {key: one for key, one in tracer.keyed_at_peak().items() if one.n_bytes}
            traces.append(list(alive.values()))
        made, reason, snapshot = None, "", None
        if channel in ("requested_peak", "allocated_peak") and number == _highest(recording.channels["requested_peak"]):
            made, reason = in_pieces(alive, traced.categories, number, recording)
        drawn = made is not None and bool(traced.known)  # else there is nothing to draw
        if save is not None and drawn:
            snapshot = tracer.snapshot_of(traced.snapshot)
        ways_out = suggested(tracer, traced, rerunnable, recording, number)
    n_bytes = sum(one.n_bytes for one in traces[-1])
    at_peak = {"sample": number, "bytes": n_bytes, "lines": breakdown_lines(traces)}
    if made is not None or reason:
        at_peak |= {"no_breakdown": reason} if made is None else {"breakdown": made.to_json()}
        at_peak |= {"timeline": timeline(traced, number).to_json()} if drawn else {}
        at_peak |= {} if save is None or snapshot is None else _saved(snapshot, save)
        at_peak |= garbage_of(recording, traced, number) if garbage_sample(recording, number) == number else {}
    return at_peak | ways_out, ""


def _shapes(recording: Recording, channel: str, sample: int) -> int:
    """How many shapes of each line are worth knowing: the first and the last of a sample whose peak creeps."""
    peaks = recording.channels[channel]
    return 2 if peaks[-1, sample] > peaks[recording.warmup_laps, sample] else 1


def _highest(peaks: np.ndarray[Any, np.dtype[np.int64]]) -> int:
    """The sample with the highest reading."""
    return int(peaks.max(axis=0).argmax())


def _saved(snapshot: dict[str, Any], save: Callable[[dict[str, Any]], Path]) -> dict[str, Any]:
    path, error = attempt(lambda: save(snapshot))
    return {"no_snapshot": error} if path is None else {"snapshot": str(path)}


def breakdown_lines(traces: Sequence[Sequence[Allocation]]) -> list[dict[str, Any]]:
    """Lines of the last trace, with shapes from the first to the last."""
    alive = traces[-1]
    made = [by_line(one for one in trace if one.run != BEFORE) for trace in traces]
    lines: list[dict[str, Any]] = [
        {
            "line": str(group[0].line) if group[0].line is not None else "unknown line",
            "op": group[0].op,
            "dtype": group[0].dtype,
            "shape": shapes([*made[0].get(key, ()), *group]),
            "bytes": sum(one.n_bytes for one in group),
            "count": len(group),
        }
        for key, group in made[-1].items()
    ]
    before = [one.n_bytes for one in alive if one.run == BEFORE]
    if sum(before):
        lines.append(_summed("before the sample: weights, and whatever else was there", sum(before), len(before)))
    lines.sort(key=lambda line: -line["bytes"])
    rest = lines[_MOST_LINES:]
    if rest:
        lines[_MOST_LINES:] = [
            _summed(f"{len(rest)} more lines", sum(one["bytes"] for one in rest), sum(one["count"] for one in rest))
            | {"lines": len(rest)}
        ]
    return lines


def _summed(line: str, n_bytes: int, count: int) -> dict[str, Any]:
    return {"line": line, "op": "", "dtype": "", "shape": "", "bytes": n_bytes, "count": count}
