"""Reads back what `to_json` wrote, and names the field that is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from vram.summary.breakdown import from_json
from vram.summary.kept import kept_from_json
from vram.summary.marked import MarkedSummary
from vram.summary.parts import PEAK, ChannelSummary, Check, RatioSummary
from vram.summary.recording import OWN_KEYS, RecordingSummary
from vram.summary.run import SCHEMA, Failure, RunSummary
from vram.summary.timeline import timeline_from_json

_T = TypeVar("_T")
_NUMBER, _COUNT, _TEXT = (int, float, type(None)), (int, type(None)), (str, type(None))
_ANY = ...  # a dictionary's key that stands for each
_LINE = {"line": str, "op": str, "dtype": str, "shape": str, "bytes": int, "count": int}
_WHY = {"where": str, "op": str, "dtype": str, "shape": str, "bytes_per_sample": (int, float)}
# Each key has one of these types, each item of a list, or a dictionary like this.
_CHANNEL = {
    "verdict": _TEXT,
    "bytes_per_sample": _NUMBER,
    "climb_bytes": _COUNT,
    "late_climb_bytes": _COUNT,
    "exact": bool,
    "tolerance_bytes": int,
    "before_bytes": int,
    "bytes": [[int]],
}
_RECORDING: Any = {
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
_CHECK = {
    "kind": str,
    "status": str,
    "text": str,
    "channel": str,
    "figure_bytes": _COUNT,
    "limit_bytes": _COUNT,
    "besides_bytes": int,
    "over_bytes": int,
    "limit_headroom": _TEXT,
}
# A recording may have these besides, and reports of earlier versions lack some.
_OPTIONAL: Any = {
    "verdict_channel": str,
    "budget_bytes": int,
    "cache_budget_bytes": int,
    "besides_bytes": int,
    "seconds": (int, float),
    "checks": [_CHECK],
    "ratios": [{"text": str}],
    "marks": {_ANY: {"sample": int, "channels": {_ANY: [[int]]}}},
    "at_peak": {"sample": int, "lines": [_LINE]},
    "expected": bool,
    "nothing_allocated": bool,
    "garbage_bytes": int,
    "garbage_kinds": [str],
    "remarks": [str],
    "base_lines": [str],
    "new_fails": bool,
    "named": bool,
    "facts": {_ANY: str},
    "environment": {_ANY: object},
}
_TEST = {"test": str, "peak_bytes": int, "limit_bytes": _COUNT, "kept_bytes": _COUNT, "allow_bytes": _COUNT}
_TEST_OPTIONAL: Any = {
    "new": str,
    "inconclusive": str,
    "expected": bool,
    "new_fails": bool,
    "absent": {_ANY: str},
}
_SUGGESTION = {"pattern": str, "text": str, "saves_bytes": int}
_OF_GROWTH = {"pattern": str, "text": str, "saves_bytes_per_sample": (int, float)}
_FAILURE = {"test": str, "file": str, "line": int, "kind": str, "message": str}
_SAVED = {"storage": str, "run": str, "base": str, "criteria": [str], "accepted": bool}
_REPORT: Any = {"environment": {_ANY: object}, "modes": [_RECORDING], "tests": [_TEST]}


def read_run(path: Path) -> RunSummary:
    """The run that `--vram-report` wrote to `path`. Raises ValueError, naming file and field, for anything else."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"a report must be JSON that --vram-report wrote, got {path}: {reason}") from None
    schema = report.get("schema") if isinstance(report, dict) else None
    if schema != SCHEMA or isinstance(schema, bool):
        raise ValueError(f"a report must be of schema {SCHEMA}, got {schema!r} in {path}")
    try:
        return run_from_json(report)
    except ValueError as error:
        raise ValueError(f"a report must be as --vram-report writes it, got {path}: {error}") from None


def run_from_json(report: Mapping[str, Any]) -> RunSummary:
    """Read back `RunSummary.to_json`. Raises ValueError that names the field that is wrong."""
    _fits(report, _REPORT)
    failures = report.get("failures") or []
    _fits(failures, [_FAILURE], "failures of the report")
    otherwise = report.get("failed_otherwise") or []
    _fits(otherwise, [str], "failed_otherwise of the report")
    missing, missing_fails = report.get("missing") or [], report.get("missing_fails") or False
    _fits(missing, [str], "missing of the report")
    _fits(missing_fails, bool, "missing_fails of the report")
    failed_besides, interrupted = report.get("failed_besides") or 0, report.get("interrupted") or False
    _fits(failed_besides, int, "failed_besides of the report")
    _fits(interrupted, bool, "interrupted of the report")
    saved = report.get("saved") or {}
    if saved:
        _fits(saved, _SAVED, "saved of the report")
    return RunSummary(
        environment=report["environment"],
        recordings=[recording_from_json(mode) for mode in report["modes"]],
        tests=[marked_from_json(test) for test in report["tests"]],
        failures=[Failure(**_only(Failure, failure)) for failure in failures],
        otherwise=otherwise,
        missing=missing,
        missing_fails=missing_fails,
        failed_besides=failed_besides,
        interrupted=interrupted,
        saved=saved,
    )


def recording_from_json(data: Mapping[str, Any]) -> RecordingSummary:
    """Read back `RecordingSummary.to_json`. Raises ValueError that names the field that is wrong."""
    _fits(data, _RECORDING)
    at = f"recording {data['mode'][:40]}"
    if not all(lap for channel in data["channels"].values() for lap in channel["bytes"] or [[]]):
        raise ValueError(f"{at} has a channel without readings")
    for name, shape in _OPTIONAL.items():
        if data.get(name) is not None:
            _fits(data[name], shape, f"{name} of {at}")
    _fit_explanation(data.get("explanation") or {}, at)
    for name, shape in (("at_peak", _SUGGESTION), ("explanation", _OF_GROWTH)):
        _fits((data.get(name) or {}).get("suggestions") or [], [shape], f"suggestions in {name} of {at}")
    for ratio in data.get("ratios") or []:
        for name, of_ratio in (("lines", str), ("suggestions", _SUGGESTION)):
            _fits(ratio.get(name) or [], [of_ratio], f"{name} in ratios of {at}")
    for name, read in (("at_peak", from_json), ("explanation", kept_from_json)):
        _fit_pieces((data.get(name) or {}).get("breakdown"), read, f"the breakdown in {name} of {at}")
    timeline = (data.get("at_peak") or {}).get("timeline")
    if timeline is not None:
        _read(timeline, timeline_from_json, f"the timeline of {at}")
    _fit_pieces(data.get("garbage"), kept_from_json, f"the garbage of {at}")
    known = {name: value for name, value in _only(RecordingSummary, data).items() if value is not None}
    return RecordingSummary(
        **{
            **known,
            "name": data["mode"],
            "channels": {name: ChannelSummary(**_only(ChannelSummary, one)) for name, one in data["channels"].items()},
            "checks": _checks(data),
            "garbage_kinds": tuple(data.get("garbage_kinds") or ()),
            "remarks": tuple(data.get("remarks") or ()),
            "base_lines": tuple(data.get("base_lines") or ()),
            "ratios": tuple(_ratio(ratio) for ratio in data.get("ratios") or ()),
            "notes": {name: value for name, value in data.items() if name not in OWN_KEYS and _is_note(value)},
        }
    )


def marked_from_json(data: Mapping[str, Any]) -> MarkedSummary:
    """Read back `MarkedSummary.to_json`. Raises ValueError that names the field that is wrong."""
    _fits(data, _TEST)
    texts = {name: data.get(name) or [] for name in ("regressions", "lines", "remarks", "base_lines")}
    for name, of_test in texts.items():
        _fits(of_test, [str], f"{name} of {data['test'][:40]}")
    for name, shape in _TEST_OPTIONAL.items():
        if data.get(name) is not None:
            _fits(data[name], shape, f"{name} of {data['test'][:40]}")
    made = data.get("breakdown")
    breakdown = None if made is None else _read(made, from_json, f"the breakdown of {data['test'][:40]}")
    known = {name: value for name, value in _only(MarkedSummary, data).items() if value is not None}
    lines = {name: tuple(of_test) for name, of_test in texts.items()}
    return MarkedSummary(**{**known, **lines, "breakdown": breakdown})


def _checks(data: Mapping[str, Any]) -> tuple[Check, ...]:
    """The checks; of a report of an earlier version, which has none, the one that its budget was."""
    if data.get("checks") is not None or data.get("budget_bytes") is None or data["peak_bytes"] is None:
        return tuple(Check(**_only(Check, check)) for check in data.get("checks") or ())
    besides_bytes = data.get("besides_bytes") or 0
    figure_bytes = data["peak_bytes"] - besides_bytes
    over_bytes = max(0, figure_bytes - data["budget_bytes"])
    text = f"{over_bytes:,} B over its budget" if over_bytes else "within its budget"
    status: Any = "over" if over_bytes else "passed"
    limits = (figure_bytes, data["budget_bytes"], besides_bytes, over_bytes)
    return (Check("budget", status, text, PEAK, *limits),)


def _ratio(data: Mapping[str, Any]) -> RatioSummary:
    several = {name: tuple(data.get(name) or ()) for name in ("lines", "suggestions")}
    return RatioSummary(**{"reference": "", "ratio": None, "over": 0, **_only(RatioSummary, data), **several})


def _only(kind: type[Any], data: Mapping[str, Any]) -> dict[str, Any]:
    names = {each.name for each in fields(kind)}
    return {name: value for name, value in data.items() if name in names}


def _is_note(value: object) -> bool:
    return value is None or isinstance(value, int | float | str)


def _is_countable(value: object) -> bool:
    """False for numbers that are no bytes, nor made of bytes: too large for 64 bits, infinite."""
    return not isinstance(value, int | float) or abs(value) < 2**63


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _fit_explanation(explanation: object, at: str) -> None:
    lines = explanation.get("lines", []) if isinstance(explanation, dict) else None
    if not isinstance(lines, list):
        raise ValueError(f"the explanation of {at} is no object with a list of lines")
    for line in lines:
        if not isinstance(line, str):
            _fits(line, _WHY, f"the explanation of {at}")


def _fit_pieces(data: Any, read: Callable[[Any], object], at: str) -> None:
    if data is None:
        return
    _read(data, read, at)
    for name in ("by_category", "by_module"):
        _fits(data.get(name), {_ANY: int}, f"{name} of {at}"[:80])


def _read(data: Any, read: Callable[[Any], _T], at: str) -> _T:
    try:
        return read(data)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{at} can't be read: {error}") from None


def _fits(value: object, shape: Any, at: str = "the report") -> None:
    """Raise ValueError where `value` has not the shape: types, or a list or dictionary of shapes."""
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            raise ValueError(f"{at} is no object")
        for key in value if _ANY in shape else shape:
            _fits(value.get(key), shape.get(_ANY, shape.get(key)), f"{key} of {at}"[:80])
    elif isinstance(shape, list):
        if not isinstance(value, list):
            raise ValueError(f"{at} is no list")
        for one in value:
            _fits(one, shape[0], at)
    elif isinstance(value, bool):
        if shape not in (bool, object):
            raise ValueError(f"{at} is {value}")
    elif not isinstance(value, shape) or not _is_countable(value):
        raise ValueError(f"{at} is {str(value)[:40]!r}")
