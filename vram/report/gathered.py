"""What a page tells: a session's report, and the history of its figures. Reading at the edge, the rest arithmetic."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vram.history.criteria import figures
from vram.history.keys import Key, name_of, place_of
from vram.history.runs import History, steps_of
from vram.report.terminal import SCHEMA, absences, outcome, ratios

FAILING = ("grows", "out of memory", "undecided")
_NUMBER, _COUNT, _TEXT = (int, float, type(None)), (int, type(None)), (str, type(None))
_ANY = ...  # a dictionary's key that stands for each
_CHANNEL = {
    "verdict": _TEXT,
    "bytes_per_sample": _NUMBER,
    "exact": bool,
    "tolerance_bytes": int,
    "before_bytes": int,
    "bytes": [[int]],
}
_LINE = {"line": str, "op": str, "dtype": str, "shape": str, "bytes": int, "count": int}
_WHY = {"where": str, "op": str, "dtype": str, "shape": str, "bytes_per_sample": (int, float)}
# What is read of a report: of each key one of the types, each item of a list, or a dictionary like this.
_REPORT: Any = {
    "environment": {_ANY: object},
    "modes": [
        {
            "mode": str,
            "laps": _COUNT,
            "samples": _COUNT,
            "verdict": _TEXT,
            "reason": _TEXT,
            "bytes_per_sample": _NUMBER,
            "peak_bytes": _COUNT,
            "channels": {_ANY: _CHANNEL},
            "absent": {_ANY: str},
        }
    ],
    "tests": [
        {
            "test": str,
            "peak_bytes": int,
            "limit_bytes": _COUNT,
            "kept_bytes": _COUNT,
            "allow_bytes": _COUNT,
        }
    ],
}
# What a recording may have besides.
_OPTIONAL: Any = {
    "budget_bytes": _COUNT,
    "besides_bytes": int,
    "seconds": _NUMBER,
    "ratios": [{"text": str}],
    "marks": {_ANY: {"sample": int, "channels": {_ANY: [[int]]}}},
    "at_peak": {"sample": int, "lines": [_LINE]},
}


@dataclass(frozen=True)
class Series:
    """One key's figures over its runs, oldest first. `runs` has number, date, commit and whether it was accepted;
    `figures` one number a run, None where it was not measured; `steps` the indices where a figure changed for good."""

    name: str
    place: str
    runs: Sequence[tuple[str, str, str, bool]]
    figures: Mapping[str, Sequence[float | None]]
    steps: Mapping[str, Sequence[tuple[int, float, float]]]


@dataclass(frozen=True)
class Page:
    """Everything that is told. `environment`, `modes` and `tests` are the report's; empty where there is none."""

    environment: Mapping[str, Any] = field(default_factory=dict)
    modes: Sequence[Mapping[str, Any]] = ()
    tests: Sequence[Mapping[str, Any]] = ()
    history: Sequence[Series] = ()
    skipped: Sequence[str] = ()

    @property
    def failing(self) -> list[Mapping[str, Any]]:
        """Recordings that grow, ran out of memory, are undecided, or need more than their budget or reference allows;
        the worst first."""
        return sorted(filter(is_failing, self.modes), key=lambda mode: _worst(mode["verdict"]))

    @property
    def failed_tests(self) -> list[Mapping[str, Any]]:
        """Marked tests over their limits."""
        return [test for test in self.tests if outcome(test) != "passed"]

    @property
    def verdict(self) -> str:
        """The page's first line."""
        wrong = len(self.failing) + len(self.failed_tests)
        judged = [mode for mode in self.modes if mode["verdict"] is not None or mode["laps"] == 1]
        if wrong:
            died = any(mode["verdict"] == "out of memory" for mode in self.modes)
            return f"{'out of memory: ' * died}{wrong} of {len(self.modes) + len(self.tests)} need attention"
        if len(judged) < len(self.modes):
            return f"inconclusive: no decision on {len(self.modes) - len(judged)} of {len(self.modes)}"
        if not self.modes and not self.tests:
            return f"{len(self.history)} figures over time; no report of a run"
        stable = sum(mode["verdict"] is not None for mode in self.modes)
        alone = len(self.modes) - stable
        parts = [f"stable in {stable} of {stable} recordings"] * (stable > 0)
        parts += [f"{alone} measured for peaks alone"] * (alone > 0)
        parts += [f"{len(self.tests)} marked tests within their limits"] * (len(self.tests) > 0)
        return "; ".join(parts)

    @property
    def not_measured(self) -> list[str]:
        """What is absent and why, and what was not recorded."""
        lines = absences(self.modes)
        without = [mode["mode"] for mode in self.modes if not mode.get("at_peak")]
        if without:
            which = "" if len(without) == len(self.modes) else f" of {len(without)} recordings"
            lines.append(f"what peaks{which} are made of was not recorded: run pytest with --vram-breakdown")
        return lines

    @property
    def ratios(self) -> list[str]:
        """How much recordings need of their references."""
        return ratios(self.modes)


def is_failing(mode: Mapping[str, Any]) -> bool:
    """Whether somebody must look at it."""
    over = any(ratio.get("over") for ratio in mode.get("ratios") or ())
    return mode["verdict"] in FAILING or over_bytes(mode) > 0 or over


def why(mode: Mapping[str, Any]) -> list[str]:
    """What explains a failure, as lines: allocations with their holders, or what was alive when memory ran out."""
    told = mode.get("explanation") or {}
    lines: list[str] = []
    for line in told.get("lines", ()):
        if isinstance(line, str):
            lines.append(line)
            continue
        caller = f" (from {line['caller']})" if line.get("caller") else ""
        made = " ".join(part for part in (line["op"], line["dtype"], line["shape"]) if part)
        lines.append(f"{line['bytes_per_sample']:,.0f} B a sample: {line['where']}{caller}: {made}")
        if line.get("holder"):
            lines.append(f"  held by: {line['holder']}")
    if told.get("note"):
        lines.append(str(told["note"]))
    return lines


def _worst(verdict: str | None) -> int:
    order = ("out of memory", "grows", None, "undecided")
    return order.index(verdict) if verdict in order else len(order)


def over_bytes(mode: Mapping[str, Any]) -> int:
    """How much a recording needs beyond its budget; 0 or less where it holds, or where it has none."""
    if mode.get("budget_bytes") is None or mode["peak_bytes"] is None:
        return 0
    return int(mode["peak_bytes"] - mode.get("besides_bytes", 0) - mode["budget_bytes"])


def read_report(path: Path) -> dict[str, Any]:
    """The JSON of `--vram-report`. Raises ValueError, naming the file, for anything else."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refused)
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"a report must be JSON that --vram-report wrote, got {path}: {reason}") from None
    schema = report.get("schema") if isinstance(report, dict) else None
    if schema != SCHEMA or isinstance(schema, bool):
        raise ValueError(f"a report must be of schema {SCHEMA}, got {schema!r} in {path}")
    wrong = misfit(report, _REPORT) or next(filter(None, map(_misfit_of_a_mode, report["modes"])), "")
    if wrong:
        raise ValueError(f"a report must be as --vram-report writes it, got {path}: {wrong}")
    return dict(report)


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def misfit(value: object, shape: Any, at: str = "the report") -> str:
    """Where `value` has not the shape (types, a list or dictionary of shapes), in words; "" where it has."""
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return f"{at} is no object"
        keys = value if _ANY in shape else shape
        found = (misfit(value.get(key), shape.get(_ANY, shape.get(key)), f"{key} of {at}"[:80]) for key in keys)
        return next(filter(None, found), "")
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{at} is no list"
        return next(filter(None, (misfit(one, shape[0], at) for one in value)), "")
    if isinstance(value, bool):
        return "" if shape in (bool, object) else f"{at} is {value}"
    return "" if isinstance(value, shape) else f"{at} is {str(value)[:40]!r}"


def _misfit_of_a_mode(mode: Mapping[str, Any]) -> str:
    at = f"recording {mode['mode'][:40]}"
    if not all(lap for channel in mode["channels"].values() for lap in channel["bytes"] or [[]]):
        return f"{at} has a channel without readings"
    for name, shape in _OPTIONAL.items():
        if mode.get(name) is not None and (wrong := misfit(mode[name], shape, f"{name} of {at}")):
            return wrong
    lines = (mode.get("explanation") or {}).get("lines", []) if isinstance(mode.get("explanation") or {}, dict) else 0
    if not isinstance(lines, list):
        return f"the explanation of {at} is no list of lines"
    return next(filter(None, (misfit(line, _WHY, at) for line in lines if not isinstance(line, str))), "")


def gathered(report: Mapping[str, Any] | None, history: History) -> Page:
    """The page of a report (None: there is none) and a history, which may be empty."""
    told = report or {}
    return Page(
        environment=told.get("environment", {}),
        modes=told.get("modes", ()),
        tests=told.get("tests", ()),
        history=[_series(key, history) for key in history.by_key],
        skipped=history.skipped,
    )


def _series(key: Key, history: History) -> Series:
    runs = history.by_key[key]
    told = [figures(entry) for _, entry in runs]
    names = list(dict.fromkeys(name for one in told for name in one))
    return Series(
        name=name_of(key),
        place=place_of(key),
        runs=[
            (run.number, run.time[:16].replace("T", " "), run.commit[:12] + ("+" if run.dirty else ""), entry.accepted)
            for run, entry in runs
        ],
        figures={name: [one.get(name) for one in told] for name in names},
        steps={
            name: [(step.index, step.before, step.after) for step in found] for name, found in steps_of(runs).items()
        },
    )
