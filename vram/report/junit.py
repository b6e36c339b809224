"""Properties of a test in pytest's JUnit report; a figure that is absent has none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from vram.escaping import shown
from vram.summary import MarkedSummary, RecordingSummary

PROPERTY = "vram."  # every property of ours begins with it
_FIGURES = (
    "verdict",
    "outcome",
    "bytes_per_sample",
    "climb_bytes",
    "peak_bytes",
    "own_peak_bytes",
    "limit_bytes",
    "limit_headroom",
    "budget_bytes",
    "laps",
    "samples",
)


def properties(recordings: Iterable[RecordingSummary], marked: MarkedSummary | None) -> dict[str, int | float | str]:
    """`vram.NAME.FIGURE` of each recording that the test made or judged, and `vram.FIGURE` of the test itself. The
    second of one name has a number behind it."""
    values: dict[str, int | float | str] = {}
    names: Counter[str] = Counter()
    for one in recordings:
        names[one.name] += 1
        number = f" {names[one.name]}" if names[one.name] > 1 else ""
        stem = f"{PROPERTY}{shown(one.name)}{number}."
        figures = {name: getattr(one, name) for name in _FIGURES}
        values |= {stem + name: value for name, value in figures.items() if value is not None}
        values |= {f"{stem}garbage_bytes": one.garbage_bytes} if one.garbage_bytes else {}
        values |= {f"{stem}ratio.{shown(each.reference)}": each.ratio for each in one.ratios if each.ratio is not None}
        values |= {f"{stem}suggestion.{each['pattern']}": shown(each["text"]) for each in one.suggestions}
    if marked is not None:
        values |= {PROPERTY + name: value for name, value in marked.properties.items()}
        values[PROPERTY + "outcome"] = marked.outcome
    return values
