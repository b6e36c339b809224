"""The terminal: one header line, and at the end a section with the headline, tables and reasons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vram.escaping import shown
from vram.summary import MarkedSummary, RecordingSummary, RunSummary
from vram.summary.recording import NO_DECISION
from vram.text import BAD, GOOD, NO_FIGURE, OPEN, Paint, fitted, size_text, unpainted

_MOST_TESTS = 20
_LONGEST_ID = 81
_HEAD = ("recording", "runs", "growth/sample", "peak", "limit", "softmax peak", "outcome", "seconds")
_OPTIONAL = ("limit", "softmax peak")  # columns that some suites have


def header(device: str, source: str, absent: Mapping[str, str]) -> str:
    """One line: the device, what it is measured with, what is absent and why."""
    missing = "; ".join(f"{channel}: {reason}" for channel, reason in absent.items())
    return shown(f"vram: {device}, measured with {source}" + (f"; not measured: {missing}" if missing else ""))


def run_lines(run: RunSummary, width: int = 0, paint: Paint = unpainted) -> list[str]:
    """The whole section: what happened, measured with what, one row a recording and a marked test, and why.

    `width` is that of the terminal, 0 where it is not known.
    """
    lines = [paint(shown(run.headline), _tone_of_run(run)), *map(shown, run.measured_lines)]
    lines += table(run.recordings, width, paint) if run.recordings else []
    lines += table_of_tests(run.tests, width, paint) if run.tests else []
    return [*lines, *map(shown, (*run.reasons, *run.remarks, *run.absences))]


def _tone_of_run(run: RunSummary) -> str:
    ones: tuple[RecordingSummary | MarkedSummary, ...] = (*run.recordings, *run.tests)
    if any(one.needs_attention for one in ones) or (run.missing and run.missing_fails):
        return BAD
    if run.missing or any(one.outcome in NO_DECISION for one in ones):
        return OPEN
    return GOOD if ones else ""


def tone_of(one: RecordingSummary | MarkedSummary) -> str:
    """The tone of an outcome: bad, open, good, or none for what was judged by its peak alone or failed as expected."""
    if one.needs_attention:
        return BAD
    if one.outcome in NO_DECISION:
        return OPEN
    return "" if one.outcome in ("peaks alone", "expected") else GOOD


def table(recordings: Sequence[RecordingSummary], width: int = 0, paint: Paint = unpainted) -> list[str]:
    """Lines of a table, one row a recording. A figure that was not measured is a dash; the reasons follow below."""
    rows = [_HEAD, *(_row(recording) for recording in recordings)]
    shown = [
        column
        for column, name in enumerate(_HEAD)
        if name not in _OPTIONAL or {row[column] for row in rows[1:]} != {NO_FIGURE}
    ]
    cells = [tuple(row[column] for column in shown) for row in rows]
    tones = [tone_of(recording) for recording in recordings]
    return fitted(cells, width, tones=tones, toned=cells[0].index("outcome"), paint=paint)


def _row(one: RecordingSummary) -> tuple[str, ...]:
    return (
        one.name,
        one.runs_text,
        one.growth_text,
        one.peak_text,
        one.limit_text,
        size_text(one.softmax_peak_bytes),
        one.outcome,
        one.seconds_text,
    )


def table_of_tests(tests: Sequence[MarkedSummary], width: int = 0, paint: Paint = unpainted) -> list[str]:
    """Lines of a table of marked tests, the first 20. Long ids are cut in the middle."""
    head = ("test", "peak above its start", "limit", "kept", "allowed", "outcome")
    rows = [(_shortened(test.test), *test.cells, test.outcome_text) for test in tests[:_MOST_TESTS]]
    more = len(tests) - len(rows)
    tones = [tone_of(test) for test in tests[:_MOST_TESTS]]
    lines = fitted([head, *rows], width, tones=tones, toned=len(head) - 1, paint=paint)
    return [*lines, *([f"and {more} more tests"] if more else [])]


def _shortened(test: str) -> str:
    half = (_LONGEST_ID - 3) // 2
    return test if len(test) <= _LONGEST_ID else f"{test[:half]}...{test[-half:]}"
