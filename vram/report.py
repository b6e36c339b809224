"""What a session measured, as JSON for machines and as a table for people."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vram.units import format_bytes

SCHEMA = 1


def write_report(path: Path, environment: Mapping[str, object], modes: Sequence[Mapping[str, Any]]) -> None:
    """Write `{"schema", "environment", "modes"}` to `path`, atomically; missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump({"schema": SCHEMA, "environment": dict(environment), "modes": list(modes)}, file, indent=1)
        file.write("\n")
    Path(temporary).replace(path)


def table(modes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of a table, one row a recording. A figure that was not measured is a dash; the reasons follow below."""
    head = ("mode", "runs", "growth/sample", "peak", "budget", "softmax peak", "verdict", "seconds")
    rows = [head, *(_row(mode) for mode in modes)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def absences(modes: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line a reason: what the peaks leave out, which figures are absent, and why."""
    by_reason: dict[tuple[str, str], list[str]] = {}
    for mode in modes:
        for figure, reason in mode["absent"].items():
            by_reason.setdefault((figure, reason), []).append(mode["mode"])
    besides = max((mode.get("besides_bytes", 0) for mode in modes), default=0)
    others = [f"peaks leave out {format_bytes(besides)} that others held all along"] if besides else []
    return others + [
        f"{figure} not measured: {reason}" + ("" if len(names) == len(modes) else f" ({', '.join(names)})")
        for (figure, reason), names in by_reason.items()
    ]


def _row(mode: Mapping[str, Any]) -> tuple[str, ...]:
    runs = "-" if mode["laps"] is None else f"{mode['laps']} x {mode['samples']}"
    rate = "-" if mode["bytes_per_sample"] is None else f"{mode['bytes_per_sample']:,.1f} B".replace(".0 B", " B")
    seconds = "-" if mode["seconds"] is None else f"{mode['seconds']:.1f}"
    own_peak = None if mode["peak_bytes"] is None else mode["peak_bytes"] - mode.get("besides_bytes", 0)
    return (
        str(mode["mode"]),
        runs,
        rate,
        _size(own_peak),
        _size(mode["budget_bytes"]),
        _size(mode["softmax_peak_bytes"]),
        mode["verdict"] or "inconclusive",
        seconds,
    )


def _size(n_bytes: int | None) -> str:
    return "-" if n_bytes is None else format_bytes(n_bytes)
