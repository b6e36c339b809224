"""What a session measured, as JSON for machines and as a table for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vram.files import atomic_write
from vram.text import aligned, apart, rate_text, size_text
from vram.units import format_bytes

SCHEMA = 1
_MOST_TESTS = 20
_LONGEST_ID = 81
_MOST_NAMES = 4
_HEAD = ("mode", "runs", "growth/sample", "peak", "budget", "softmax peak", "verdict", "seconds")


def write_report(
    path: Path,
    environment: Mapping[str, object],
    modes: Sequence[Mapping[str, Any]],
    tests: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write `{"schema", "environment", "modes", "tests"}` to `path`, atomically; missing folders are made.

    `tests` are those with markers: whole ids, and bytes above what was alive when the body began.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    report = {"schema": SCHEMA, "environment": dict(environment), "modes": list(modes), "tests": list(tests)}
    atomic_write(path, (json.dumps(report, indent=1) + "\n").encode())


def table(modes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of a table, one row a recording. A figure that was not measured is a dash; the reasons follow below.

    What only some suites have (a budget, a softmax peak) is a column where some recording has it.
    """
    rows = [_HEAD, *(_row(mode) for mode in modes)]
    optional = ("budget", "softmax peak")
    shown = [
        column
        for column, name in enumerate(_HEAD)
        if name not in optional or {row[column] for row in rows[1:]} != {"-"}
    ]
    return aligned([tuple(row[column] for column in shown) for row in rows])


def table_of_tests(tests: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of a table of marked tests: those that failed, then the largest. Long ids are cut in the middle."""
    head = ("test", "peak above its start", "limit", "kept", "allowed", "verdict")
    rows = [
        (
            _shortened(test["test"]),
            *apart(test["peak_bytes"], test["limit_bytes"]),
            *apart(test["kept_bytes"], test["allow_bytes"]),
            outcome(test),
        )
        for test in ranked(tests)[:_MOST_TESTS]
    ]
    more = len(tests) - len(rows)
    return [*aligned([head, *rows]), *([f"and {more} more tests"] if more else [])]


def ranked(tests: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Marked tests: those that failed, then those that need most."""
    return sorted(tests, key=lambda test: (outcome(test) == "passed", -test["peak_bytes"]))


def told(modes: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line for each noisy channel that grows, which fails no test."""
    return [
        f"{mode['mode']}: {name} grows by {channel['bytes_per_sample']:,.0f} B a sample (noisy: told, does not decide)"
        for mode in modes
        for name, channel in mode["channels"].items()
        if channel["verdict"] == "grows" and not channel["exact"] and mode["verdict"] != "grows"
    ]


def ratios(modes: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line a comparison: how much a recording needs of its reference."""
    return [ratio["text"] for mode in modes for ratio in mode.get("ratios") or ()]


def outcome(test: Mapping[str, Any]) -> str:
    """ "passed", or by how many bytes a marked test is over."""
    over = [
        f"{what} {test[figure] - test[allowed]:,} B over"
        for what, figure, allowed in (("peak", "peak_bytes", "limit_bytes"), ("kept", "kept_bytes", "allow_bytes"))
        if None not in (test[figure], test[allowed]) and test[figure] > test[allowed]
    ]
    return ", ".join(over) or "passed"


def _shortened(test: str) -> str:
    half = (_LONGEST_ID - 3) // 2
    return test if len(test) <= _LONGEST_ID else f"{test[:half]}...{test[-half:]}"


def absences(modes: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line a reason: what the peaks leave out, which figures are absent, and why."""
    by_reason: dict[tuple[str, str], list[str]] = {}
    for mode in modes:
        for figure, reason in mode["absent"].items():
            by_reason.setdefault((figure, reason), []).append(mode["mode"])
    besides = max((mode.get("besides_bytes", 0) for mode in modes), default=0)
    others = [f"peaks leave out {format_bytes(besides)} that others held all along"] if besides else []
    together: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (figure, reason), names in by_reason.items():
        together.setdefault((reason, tuple(names)), []).append(figure)
    return others + [
        f"{', '.join(figures)} not measured: {reason}" + ("" if len(names) == len(modes) else f" ({_some(names)})")
        for (reason, names), figures in together.items()
    ]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= _MOST_NAMES else f"{names[0]} and {len(names) - 1} more"


def _row(mode: Mapping[str, Any]) -> tuple[str, ...]:
    runs = "-" if mode["laps"] is None else f"{mode['laps']} x {mode['samples']}"
    seconds = "-" if mode["seconds"] is None else f"{mode['seconds']:.1f}"
    own_peak = None if mode["peak_bytes"] is None else mode["peak_bytes"] - mode.get("besides_bytes", 0)
    return (
        str(mode["mode"]),
        runs,
        rate_text(mode["bytes_per_sample"]),
        *apart(own_peak, mode["budget_bytes"]),
        size_text(mode["softmax_peak_bytes"]),
        mode["verdict"] or ("peaks alone" if mode["laps"] == 1 else "inconclusive"),
        seconds,
    )
