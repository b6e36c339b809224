"""A breakdown of a peak in words: which lines of code hold how much of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vram.summary.breakdown import OUTSIDE, sums_text
from vram.units import format_bytes

_MOST_WAYS_OUT = 3


def at_peak_lines(at_peak: Mapping[str, Any], most_lines: int) -> list[str]:
    """A breakdown, as `vram.explanation.peak.breakdown` has it, in at most `most_lines` lines of text.

    Two more say how much is of which category and module, where modules ran.
    """
    title = f"alive at the peak of sample {at_peak['sample']}, run again with tracing: "
    sums = [] if at_peak.get("breakdown") is None else _sums(at_peak["breakdown"])
    return [f"{title}{format_bytes(at_peak['bytes'])}", *sums, *peak_lines(at_peak["lines"], most_lines - 1)]


def _sums(data: Mapping[str, Any]) -> list[str]:
    """The same by category and by module, where modules ran."""
    by_module = {name: n_bytes for name, n_bytes in data["by_module"].items() if name != OUTSIDE}
    if not by_module:
        return []
    return [f"  {sums_text(data['by_category'])}", f"  in {sums_text(by_module, 3)}"]


def way_out_lines(explanation: Mapping[str, Any]) -> list[str]:
    """Ways out of a peak, or of growth, that are certain, what saves most first."""
    return [f"way out: {one['text']}" for one in explanation.get("suggestions", ())[:_MOST_WAYS_OUT]]


def peak_lines(lines: Sequence[Mapping[str, Any]], most_lines: int) -> list[str]:
    """Lines of a breakdown, in at most `most_lines`, the last for those that are not shown."""
    shown = lines if len(lines) <= most_lines else lines[: max(0, most_lines - 1)]
    texts = [
        f"  {format_bytes(line['bytes'])} in {line['count']:,}: "
        + ": ".join(filter(None, [line["line"], " ".join(filter(None, (line["op"], line["dtype"], line["shape"])))]))
        for line in shown
    ]
    rest = lines[len(shown) :]
    if rest and most_lines > 0:
        count = sum(line.get("lines", 1) for line in rest)
        texts.append(f"  and {format_bytes(sum(line['bytes'] for line in rest))} in {count} more lines")
    return texts
