"""Where figures go besides the terminal: JUnit properties, GitHub annotations and job summary, and which GPU a worker
of pytest-xdist takes. Text and numbers only; nothing is written here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vram.report.terminal import outcome, ranked
from vram.text import apart

PROPERTY = "vram."  # what our properties begin with
_MOST_ANNOTATIONS = 10  # GitHub shows no more of a step
_MOST_ROWS = 50  # a job summary ends at 1 MiB


def header(device: str, source: str, absent: Mapping[str, str]) -> str:
    """One line: the device, what it is measured with, what is absent and why."""
    missing = "; ".join(f"{channel}: {reason}" for channel, reason in absent.items())
    return f"vram: {device}, measured with {source}" + (f"; not measured: {missing}" if missing else "")


def worker_device(device: str, worker: str | None, devices: int) -> str:
    """The device of worker "gw3": its own GPU, round robin over `devices`, unless a device was named."""
    if worker is None or device not in ("auto", "cuda") or devices < 2:
        return device
    return f"cuda:{int(worker.removeprefix('gw')) % devices}"


def merged(environments: Iterable[Mapping[str, object]]) -> dict[str, object]:
    """One environment of several; where they differ (each worker has its own GPU) the values side by side."""
    found: dict[str, object] = {}
    for environment in environments:
        for fact, value in environment.items():
            known = found.setdefault(fact, value)
            if value != known and str(value) not in str(known).split(" and "):
                found[fact] = f"{known} and {value}"
    return found


def mode_properties(mode: Mapping[str, Any]) -> list[tuple[str, int | float | str]]:
    """JUnit properties of one recording; a figure that is absent has none."""
    figures = ("verdict", "bytes_per_sample", "peak_bytes", "budget_bytes", "laps", "samples")
    stem = f"{PROPERTY}{mode['mode']}."
    own = [(stem + figure, mode[figure]) for figure in figures if mode.get(figure) is not None]
    ratios = [ratio for ratio in mode.get("ratios", ()) if ratio["ratio"] is not None]
    return own + [(f"{stem}ratio.{ratio['reference']}", ratio["ratio"]) for ratio in ratios]


def marked_properties(test: Mapping[str, Any]) -> list[tuple[str, int]]:
    """JUnit properties of one marked test."""
    figures = ("peak_bytes", "limit_bytes", "kept_bytes", "allow_bytes")
    return [(PROPERTY + figure, test[figure]) for figure in figures if test[figure] is not None]


def error_commands(failures: Sequence[Mapping[str, Any]], root: Path, workspace: Path) -> list[str]:
    """Workflow commands that show failures beside the code in GitHub. Paths are told from `workspace`, the checkout."""
    lines = []
    for failure in failures[:_MOST_ANNOTATIONS]:
        path = (root / failure["file"]).resolve()
        if path.is_relative_to(workspace.resolve()):
            path = path.relative_to(workspace.resolve())
        where = f"file={_escaped(path.as_posix(), ':,')},line={failure['line']}"
        title = _escaped(f"{failure['kind']}: {failure['test']}", ":,")
        lines.append(f"::error {where},title={title}::{_escaped(failure['message'])}")
    return lines


def job_summary(
    modes: Sequence[Mapping[str, Any]],
    tests: Sequence[Mapping[str, Any]],
    failures: Sequence[Mapping[str, Any]],
    measured: str,
) -> str:
    """Markdown for `GITHUB_STEP_SUMMARY`: the tables of the terminal, and what failed in its own words."""
    parts = ["## GPU memory", "", measured, ""]
    if modes:
        rows: list[tuple[str, ...]] = [
            (
                mode["mode"],
                mode["verdict"] or "inconclusive",
                "-" if mode["bytes_per_sample"] is None else f"{mode['bytes_per_sample']:,.1f} B",
                *apart(mode["peak_bytes"], mode["budget_bytes"]),
            )
            for mode in modes[:_MOST_ROWS]
        ]
        parts += [*_markdown(("mode", "verdict", "growth/sample", "peak", "budget"), rows, len(modes)), ""]
    if tests:
        rows = [
            (
                test["test"],
                outcome(test),
                *apart(test["peak_bytes"], test["limit_bytes"]),
                *apart(test["kept_bytes"], test["allow_bytes"]),
            )
            for test in ranked(tests)[:_MOST_ROWS]
        ]
        head = ("test", "verdict", "peak above its start", "limit", "kept", "allowed")
        parts += [*_markdown(head, rows, len(tests)), ""]
    for failure in failures[:_MOST_ANNOTATIONS]:
        fence = "````"
        parts += [f"**{_cell(failure['test'])}**", "", fence, failure["message"].replace(fence, "```"), fence, ""]
    return "\n".join(parts)


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]], total: int) -> list[str]:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in rows]
    return lines + ([f"| and {total - len(rows)} more{' |' * len(head)}"] if total > len(rows) else [])


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def _escaped(text: str, more: str = "") -> str:
    """As GitHub's workflow commands want it: % and line ends, in properties also : and ,."""
    for character in "%\r\n" + more:
        text = text.replace(character, f"%{ord(character):02X}")
    return text
