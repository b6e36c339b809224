"""Judge what the plugin did with a case, and what of it is not what the case expects. No pytest here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.vram.zoo.cases import Case, matches

_ERRORS = {"grows": "MemoryGrowth", "undecided": "Undecided"}
_MOST_LINES = 25  # of a failure, on a terminal


@dataclass(frozen=True)
class Seen:
    """The test's outcome, the failure's name and text ("" where it passed), and the report's entries.

    `snapshot_bytes` is how large the memory viewer's file is, 0 where there is none.
    """

    outcome: str
    error: str
    message: str
    modes: list[dict[str, Any]]
    snapshot_bytes: int = 0


def wrong(case: Case, seen: Seen) -> list[str]:
    """One line for everything that is not as expected; empty where all is."""
    outcome, error = ("passed", "") if case.passes else ("failed", _ERRORS.get(case.expect, case.expect))
    if case.expect == "inconclusive":
        outcome, error = "skipped", ""
    found = [
        _differs("outcome", outcome, seen.outcome),
        _differs("error", error, seen.error),
        _differs("verdict", case.expect, seen.modes[0]["verdict"]) if case.judged else "",
        *(_differs("message", f"*{words}*", seen.message) for words in case.says),
        _differs("suggestions", case.suggests, ", ".join(_patterns(seen))),
    ]
    if case.host is not None:
        found.append(_differs("verdict on the host", case.host, seen.modes[0]["channels"]["host"]["verdict"]))
    if len(seen.message.splitlines()) > _MOST_LINES:
        found.append(f"the failure has {len(seen.message.splitlines())} lines, and {_MOST_LINES} is the most")
    if case.holder is not None:
        found += _wrongly_named(case, seen)
    return [line for line in found if line]


def _patterns(seen: Seen) -> list[str]:
    return [one["pattern"] for mode in seen.modes for one in mode.get("suggestions", ())]


def _wrongly_named(case: Case, seen: Seen) -> list[str]:
    """The line that keeps most: where it is, who holds it, and whether the lines add up to the verdict's rate."""
    explanation = seen.modes[0].get("explanation") or {"lines": [], "note": "nothing was explained"}
    if not explanation["lines"]:
        return [f"no line is named: {explanation['note']}"]
    first = explanation["lines"][0]
    here = f"test_{case.name}.py:{case.here} *"
    explained, verdict = (
        sum(line["bytes_per_sample"] for line in explanation["lines"]),
        seen.modes[0]["bytes_per_sample"],
    )
    return [
        _differs("line", case.line or here, first["where"]),
        _differs("caller", here if case.line else "", first["caller"]),
        _differs("holder", "" if case.holder == "nobody" else case.holder or "", first["holder"]),
        "" if first["op"] and first["shape"] else f"operation: got {first['op']!r}, shape {first['shape']!r}",
        _differs("last line", "  snapshot for pytorch.org/memory_viz: vram-snapshots*", seen.message.splitlines()[-1]),
        "" if seen.snapshot_bytes else "there is no snapshot",
        "" if abs(explained - verdict) <= 0.1 * verdict else f"{explained} B a sample explained, of {verdict}",
    ]


def _differs(what: str, expected: str, got: str) -> str:
    return "" if matches(expected, got) else f"{what}: expected {expected!r}, got {got!r}"
