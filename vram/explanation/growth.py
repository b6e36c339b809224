"""Why memory grows: the same samples run once more, traced, and what stayed alive named by line and by holder."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vram.explanation.allocations import Allocation
from vram.explanation.collected import garbage_of, garbage_sample
from vram.explanation.failures import attempt
from vram.explanation.groups import Group, by_line, shapes
from vram.explanation.holders import holders
from vram.explanation.retained import Names, Sizes
from vram.explanation.suggested import suggested_for_growth
from vram.explanation.suggestions.growth import GrownLine
from vram.explanation.traced import TracedRun, run_traced
from vram.explanation.tracer import TensorTracer, tracer_for
from vram.frames import short_name
from vram.recording import Recording
from vram.replaying.collector import cheap_collections, unfrozen
from vram.replaying.rerunnable import Rerunnable, forget, rerunnable_of, step_name
from vram.summary.at_peak import way_out_lines
from vram.summary.kept import Kept
from vram.text import rate_text
from vram.units import format_bytes

_RUNS = 20  # at least so many in a trace, half of which are what the other half is compared with
_MOST_LAPS = 8  # a leak that is rarer than this is not waited for
_LINES_SHOWN = 4  # on the terminal; the report has all
_HOLDERS_SEARCHED = 8

_FAILED = "could not be explained: "
_NOT_GROWN = "running the samples again with tracing did not make it grow"

_explained: dict[int, Explanation] = {}  # by the recording's id, as long as it lives


@dataclass(frozen=True)
class Line:
    """One line of code that keeps more in every run. `shape` has ranges where shapes differ, as in "[1, 5..24]"."""

    where: str
    caller: str
    op: str
    dtype: str
    shape: str
    bytes_per_sample: float
    n_bytes: int
    count: int
    first: str
    holder: str = ""

    def __str__(self) -> str:
        made = " ".join(part for part in (self.op, self.dtype, self.shape) if part)
        caller = f" (from {self.caller})" if self.caller else ""
        alive = f"{self.count:,} alive, {format_bytes(self.n_bytes)}" if self.count else "freed again"
        return f"{rate_text(self.bytes_per_sample)} a sample: {self.where}{caller}: {made or 'no tensor'}; {alive}"


@dataclass(frozen=True)
class Explanation:
    """The result of a traced rerun. Where `lines` is empty, `note` says why."""

    lines: tuple[Line, ...]
    note: str = ""
    runs: int = 0
    at_peak: bool = False
    snapshot: Path | None = None
    not_written: str = field(default="")
    kept: Kept | None = None  # of the lines, in pieces
    garbage: Mapping[str, Any] = field(default_factory=dict)  # as `garbage_of` has it
    ways_out: Mapping[str, Any] = field(default_factory=dict)  # as `suggested_for_growth` has them

    def text(self, most_lines: int) -> list[str]:
        """The explanation in at most `most_lines` lines, for the terminal."""
        end = [] if self.kept is None else [f"    {line}" for line in self.kept.rate_lines]
        end += [f"  {line}" for line in way_out_lines(self.ways_out)]
        if self.snapshot is not None:
            end.append(f"  snapshot for pytorch.org/memory_viz: {self.snapshot}")
        elif self.not_written:
            end.append(f"  no snapshot: {self.not_written}")
        begin = [f"  {self.note}"] if self.note else []
        if self.lines:
            what = "alive at the peak and more each lap" if self.at_peak else "kept"
            begin.append(f"  {what}, in {self.runs} runs with tracing:")
        room = most_lines - len(begin) - len(end)
        shown_lines: list[str] = []
        holder = None
        shown = 0
        for line in self.lines[:_LINES_SHOWN]:
            block = [f"    {line}"]
            if line.first:
                block.append(f"      {line.first}")
            if line.holder:
                block.append("      held by: the same" if line.holder == holder else f"      held by: {line.holder}")
            if len(shown_lines) + len(block) + (shown + 1 < len(self.lines)) > room:
                break
            shown_lines += block
            holder, shown = line.holder, shown + 1
        rest = self.lines[shown:]
        if rest:
            rate = rate_text(sum(line.bytes_per_sample for line in rest))
            shown_lines.append(f"    and {rate} a sample from {len(rest)} more line{'s' * (len(rest) != 1)}")
        return (begin + shown_lines[: max(0, room)] + end)[:most_lines]

    def summary(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {
            "note": self.note,
            "runs": self.runs,
            "at_peak": self.at_peak,
            "lines": [dict(vars(line)) for line in self.lines],
            "snapshot": None if self.snapshot is None else str(self.snapshot),
            "snapshot_not_written": self.not_written,
            **({} if self.kept is None else {"breakdown": self.kept.to_json()}),
            **self.garbage,
            **self.ways_out,
        }


def explained(
    recording: Recording, *, peak: bool, save: Callable[[dict[str, Any]], Path] | None = None
) -> Explanation | None:
    """`explain` for a recording, once: later calls return the same. None where its step and samples are not known.

    Raises nothing but KeyboardInterrupt: a failure is the explanation's `note`.
    """
    known = _explained.get(id(recording))
    rerunnable = rerunnable_of(recording)
    if known is None and rerunnable is not None:
        result, failure = attempt(lambda: explain(rerunnable, peak=peak, save=save, recording=recording))
        known = _explained[id(recording)] = result or Explanation((), f"{_FAILED}{failure}")
        weakref.finalize(recording, _explained.pop, id(recording), None)
        forget(recording)
    return known


def explain(
    rerunnable: Rerunnable,
    *,
    peak: bool,
    save: Callable[[dict[str, Any]], Path] | None = None,
    recording: Recording | None = None,
) -> Explanation:
    """Run the samples again, traced, and say what grows: live memory, or with `peak` what the peak is made of.

    `save` writes the viewer's snapshot and returns its path. Garbage of the `recording` is broken down too. An error of
    the rerun, of the search for holders or of `save` becomes words of the explanation.
    """
    with tracer_for(rerunnable.device) as tracer:
        trace = _Trace(rerunnable, tracer, None if recording is None else garbage_sample(recording))
        trace.run()
        grown = trace.grown()
        at_peak = peak and not grown
        if at_peak:
            grown = trace.grown_at_peak()
        groups = [trace.peak_in(group) if at_peak else trace.alive_in(group) for group, _ in grown]
        found, failure = ([], "") if at_peak else attempt(lambda: _holders_of(tracer, groups, rerunnable))
        words = [*(found or []), *[""] * len(groups)]
        lines = tuple(
            _line(group, rate, rerunnable, held_by, shape=trace.shape_at_peak(key) if at_peak else None)
            for group, (key, rate), held_by in zip(groups, grown, words, strict=False)
        )
        path, not_written = _saved(tracer, save)
        note = "; ".join(filter(None, [trace.failed, failure and f"the holders are not known: {failure}"]))
        if not lines:
            note = f"{_FAILED}{note}" if note else f"{_NOT_GROWN} ({trace.runs} runs): no line to name"
        kept = trace.kept([key for key, _ in grown], at_peak=at_peak) if grown else None
        garbage = {} if recording is None or trace.garbage is None else garbage_of(recording, *trace.garbage)
        ways_out = {} if at_peak or not lines else _ways_out(trace, lines, groups)
        return Explanation(lines, note, trace.runs, at_peak, path, not_written, kept, garbage, ways_out)


def _ways_out(trace: _Trace, lines: Sequence[Line], groups: Sequence[Sequence[Allocation]]) -> dict[str, Any]:
    grown = [GrownLine(group, line.bytes_per_sample, line.holder) for line, group in zip(lines, groups, strict=True)]
    return suggested_for_growth(trace.tracer, trace.rerunnable, grown, trace.names, trace.runs, trace.kept_bytes)


def _saved(tracer: TensorTracer, save: Callable[[dict[str, Any]], Path] | None) -> tuple[Path | None, str]:
    """The path of the snapshot, or why there is none."""
    if save is None:
        return None, ""

    def write() -> tuple[Path | None, str]:
        try:
            return save(tracer.snapshot()), ""
        except OSError as error:  # a full disk: its own words are clear
            return None, str(error)

    written, failure = attempt(write)
    return written or (None, failure)


def line_of(allocations: Sequence[Allocation]) -> str:
    """ "file:line function: op dtype shape" of allocations of one group."""
    first = allocations[0]
    made = " ".join(part for part in (first.op, first.dtype, shapes(allocations)) if part)
    where = str(first.line) if first.line is not None else "unknown line"
    return f"{where}: {made}" if made else where


class _Trace:
    """Laps of traced runs: an even number, so that the second half repeats the samples of the first."""

    def __init__(self, rerunnable: Rerunnable, tracer: TensorTracer, garbage_sample: int | None = None) -> None:
        """`garbage_sample`: the one whose last run is to be kept, as `garbage`."""
        self.rerunnable, self.tracer = rerunnable, tracer
        self.runs = 0
        self.failed = ""
        self.garbage: tuple[TracedRun, int] | None = None
        self._garbage_sample = garbage_sample
        self.names = Names(tracer)
        self._halves = {4, 8}  # laps whose end may be compared with another's, besides the planned ones
        self._sizes: list[Sizes] = []  # after each lap: of each piece
        self._alive: list[dict[Group, int]] = []  # after each lap: bytes by group
        self._last: dict[Group, list[Allocation]] = {}  # after the last: meanwhile other threads may let go
        self._peaks: list[list[list[Allocation]]] = []  # by lap, by sample

    def run(self) -> None:
        samples = len(self.rerunnable.samples)
        laps = 2 * max(1, -(-_RUNS // (2 * samples)))
        most = max(laps, _MOST_LAPS)
        self._halves |= {laps // 2, laps}
        with cheap_collections():
            while not self.failed and len(self._alive) < laps:
                self._lap()
                if len(self._alive) == laps and laps < most and not self.grown() and not self.grown_at_peak():
                    laps = min(2 * laps, most)

    def _lap(self) -> None:
        peaks: list[list[Allocation]] = []
        traced = None
        for index in range(len(self.rerunnable.samples)):
            traced = self._sample(index)
            if traced is None:
                return
            self.names.note(traced, self.runs)
            self.runs += 1
            peaks.append(self.tracer.at_peak())
        alive = self.tracer.alive()  # at once: other threads may let go of some of it
        if traced is not None and len(self._alive) + 1 in self._halves:
            with unfrozen():
                self.names.find_owners(traced)
        self._last = by_line(alive)
        self._alive.append({group: _bytes(allocations) for group, allocations in self._last.items()})
        self._sizes.append(self.names.sizes(alive))
        # Only halves are compared: of the laps between, peaks need not be kept.
        self._peaks = [*self._peaks[:1], peaks]
        self.names.keep(one for each in (alive, *(peak for lap in self._peaks for peak in lap)) for one in each)

    def _sample(self, index: int) -> TracedRun | None:
        """Run it; None, and `failed` says why, where it raises."""
        traced, error = attempt(
            lambda: run_traced(self.tracer, self.rerunnable, index, self.runs, owners=False),
        )
        self.failed = f"running sample {index} again with tracing raised {error}" if error else ""
        if traced is not None and index == self._garbage_sample:
            self.garbage = traced, index
        return traced

    def grown(self) -> list[tuple[Group, float]]:
        """Groups with more bytes alive at the end than half-way, with bytes a sample, most first."""
        half = len(self._alive) // 2
        if not half:
            return []
        then, now = self._alive[half - 1], self._alive[-1]
        runs = (len(self._alive) - half) * len(self.rerunnable.samples)
        return _most_first({group: (n_bytes - then.get(group, 0)) / runs for group, n_bytes in now.items()})

    def grown_at_peak(self) -> list[tuple[Group, float]]:
        """The same of what is alive at the peak of the sample whose peak rose most, with bytes a lap over samples."""
        if len(self._peaks) < 2:
            return []
        sample = self._risen_sample()
        then, now = (
            {group: _bytes(allocations) for group, allocations in by_line(peaks[sample]).items()}
            for peaks in (self._peaks[0], self._peaks[-1])
        )
        runs = (len(self._alive) - 1) * len(self.rerunnable.samples)
        return _most_first({group: (n_bytes - then.get(group, 0)) / runs for group, n_bytes in now.items()})

    def _risen_sample(self) -> int:
        first, last = self._peaks[0], self._peaks[-1]
        return max(range(len(first)), key=lambda index: _bytes(last[index]) - _bytes(first[index]))

    def kept(self, groups: Sequence[Group], *, at_peak: bool) -> Kept:
        """The growth of these groups in pieces, as `grown` counts it, or `grown_at_peak`."""
        if at_peak:
            first, last = (peaks[self._risen_sample()] for peaks in (self._peaks[0], self._peaks[-1]))
            then, laps = self.names.sizes(first), len(self._alive) - 1
        else:
            half = len(self._alive) // 2
            last = [one for group in groups for one in self._last[group]]
            then, laps = self._sizes[half - 1], len(self._alive) - half
        pieces = self.names.pieces(groups, then, last)
        return Kept(sum(piece.n_bytes for piece in pieces), laps * len(self.rerunnable.samples), pieces)

    @property
    def kept_bytes(self) -> int:
        """Bytes that the last lap made and kept."""
        begin = self.runs - len(self.rerunnable.samples)
        return sum(one.n_bytes for group in self._last.values() for one in group if one.run >= begin)

    def alive_in(self, group: Group) -> list[Allocation]:
        """The allocations of a group that were alive after the last lap, oldest first."""
        return self._last[group]

    def peak_in(self, group: Group) -> list[Allocation]:
        """The allocations of a group that were alive at the peak that rose most."""
        return by_line(self._peaks[-1][self._risen_sample()])[group]

    def shape_at_peak(self, group: Group) -> str:
        """Their shape, from the first lap to the last."""
        sample = self._risen_sample()
        return shapes(
            [one for peaks in (self._peaks[0], self._peaks[-1]) for one in by_line(peaks[sample]).get(group, ())]
        )


def _holders_of(tracer: TensorTracer, groups: Sequence[Sequence[Allocation]], rerunnable: Rerunnable) -> list[str]:
    """Words for who keeps a tensor of each of the first groups; "" where it is no tensor's memory."""
    tensors = [group for group in groups[:_HOLDERS_SEARCHED] if group[0].dtype]
    with unfrozen():
        words = iter(holders(tracer.storages(tensors), named=names_of(rerunnable)))
    return [next(words) if group[0].dtype else "" for group in groups[:_HOLDERS_SEARCHED]]


def names_of(rerunnable: Rerunnable) -> dict[int, str]:
    """Names of the objects of the replay itself, by id, for chains of holders that end there."""
    step = short_name(step_name(rerunnable.step))
    names = {id(sample): f"sample {index}" for index, sample in enumerate(rerunnable.samples)}
    return names | {id(rerunnable.step): f"the step {step}", id(rerunnable.samples): "the samples"}


def _line(
    allocations: Sequence[Allocation], rate: float, rerunnable: Rerunnable, held_by: str, *, shape: str | None
) -> Line:
    """A line of what stayed alive; with `shape` of what was alive at a peak and is freed again."""
    first = allocations[0]
    return Line(
        where=str(first.line) if first.line is not None else "unknown line",
        caller=str(first.caller) if first.caller is not None else "",
        op=first.op,
        dtype=first.dtype,
        shape=shapes(allocations) if shape is None else shape,
        bytes_per_sample=rate,
        n_bytes=_bytes(allocations),
        count=len(allocations) if shape is None else 0,
        first=_first(allocations, len(rerunnable.samples)),
        holder=held_by,
    )


def _first(allocations: Sequence[Allocation], samples: int) -> str:
    """The samples it comes from, where not all, and the mark it starts at, where the sample has marks."""
    guilty = sorted({allocation.run % samples for allocation in allocations if allocation.dtype})
    marks = [allocation.mark for allocation in allocations]
    words = []
    # A tensor that is replaced in every run is of the last one alone, whichever sample that was.
    if guilty and len(guilty) < samples and len({allocation.run for allocation in allocations}) > 1:
        named = ", ".join(str(sample) for sample in guilty[:5]) + (", ..." if len(guilty) > 5 else "")
        words.append(f"only from sample{'s' * (len(guilty) > 1)} {named}")
    if any(marks):
        words.append(f"first after {marks[0]}" if marks[0] else "from before the first mark on")
    return "; ".join(words)


def _most_first(rates: dict[Group, float]) -> list[tuple[Group, float]]:
    grown = [(group, rate) for group, rate in rates.items() if rate > 0]
    return sorted(grown, key=lambda item: -item[1])


def _bytes(allocations: Iterable[Allocation]) -> int:
    return sum(allocation.n_bytes for allocation in allocations)
