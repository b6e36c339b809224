"""GitHub: annotations beside the code, and Markdown for the job summary. Text only; nothing is written here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from vram.escaping import shown, shown_lines
from vram.summary import Failure, RunSummary

_MOST_ANNOTATIONS = 10  # GitHub shows no more of a step
_MOST_ROWS = 50  # a job summary ends at 1 MiB
_RECORDING = ("recording", "outcome", "growth/sample", "peak", "limit")
_TEST = ("test", "outcome", "peak above its start", "limit", "kept", "allowed")


def error_commands(failures: Sequence[Failure], root: Path, workspace: Path, missing: Sequence[str] = ()) -> list[str]:
    """Workflow commands that show failures beside the code, and recordings that are `missing` and fail the run.

    Paths are relative to `workspace`, the checkout.
    """
    lines = []
    for failure in failures[:_MOST_ANNOTATIONS]:
        path = (root / failure.file).resolve()
        if path.is_relative_to(workspace.resolve()):
            path = path.relative_to(workspace.resolve())
        where = f"file={_escaped(path.as_posix(), ':,')},line={failure.line}"
        title = _escaped(shown(f"{failure.kind}: {failure.test}"), ":,")
        lines.append(f"::error {where},title={title}::{_escaped(shown_lines(failure.message))}")
    lines += [f"::error title=missing recording::{_escaped(shown(line))}" for line in missing]
    return lines[:_MOST_ANNOTATIONS]


def job_summary(run: RunSummary) -> str:
    """Markdown for `GITHUB_STEP_SUMMARY`: the section of the terminal, and what failed in its own words."""
    parts = [f"## GPU memory: {_cell(run.headline)}", "", *map(shown, run.measured_lines), ""]
    if run.recordings:
        rows = [(one.name, one.outcome, one.growth_text, one.peak_text, one.limit_text) for one in run.recordings]
        parts += [*_table(_RECORDING, rows), ""]
    if run.tests:
        parts += [*_table(_TEST, [(test.test, test.outcome_text, *test.cells) for test in run.tests]), ""]
    remarks = [*run.reasons, *run.remarks, *run.absences]
    parts += [*(f"- {_cell(line)}" for line in remarks[:_MOST_ROWS]), *_more(len(remarks) - _MOST_ROWS), ""]
    for failure in run.failures[:_MOST_ANNOTATIONS]:
        fence = "````"
        lines = [re.sub("`{4,}", "```", line) for line in shown_lines(failure.message).split("\n")]
        parts += [f"**{_cell(failure.test)}**", "", fence, *lines, fence, ""]
    return "\n".join(parts)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(map(_cell, row))} |" for row in rows[:_MOST_ROWS]]
    return lines + [f"| {line[2:]}{' |' * len(head)}" for line in _more(len(rows) - _MOST_ROWS)]


def _more(count: int) -> list[str]:
    return [f"- and {count} more"] if count > 0 else []


def _cell(text: str) -> str:
    return shown(text.replace("\n", " ")).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def _escaped(text: str, more: str = "") -> str:
    """As GitHub's workflow commands want it: % and line ends, in properties also : and ,."""
    for character in "%\r\n" + more:
        text = text.replace(character, f"%{ord(character):02X}")
    return text
