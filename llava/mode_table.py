"""The modes beside one another: figures of each over the same questions, and what it saves against baseline.

Programs, forecasts and the memory suite hand over the figures that they have. Differences, ratios, words and JSON are
made here alone. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from llava.modes import MODES
from vram.text import fitted
from vram.units import format_bytes

_NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class ModeFigures:
    """Figures of one mode. None: not measured.

    `peak_bytes` are the most at once, weights included; `cache_bytes` keys and values after the largest prompt.
    `prefill_seconds` is an average over the answers, `decode_seconds` one over their tokens from the second on.
    `flops_ratio` is the average share of baseline's FLOPs that a prompt takes, `accuracy` is in 0..1. A mode that ran
    `out_of_memory` has no figures that depend on its end.
    """

    mode: str
    peak_bytes: int | None = None
    cache_bytes: int | None = None
    prefill_seconds: float | None = None
    decode_seconds: float | None = None
    flops_ratio: float | None = None
    accuracy: float | None = None
    out_of_memory: bool = False


@dataclass(frozen=True)
class ModeRow:
    """A mode's figures beside `baseline`'s. A difference or a ratio is None where either figure is."""

    figures: ModeFigures
    baseline: ModeFigures

    @property
    def peak_saved_bytes(self) -> int | None:
        """Bytes by which the peak is below baseline's; less than 0 where it is above."""
        return _saved(self.figures.peak_bytes, self.baseline.peak_bytes)

    @property
    def cache_saved_bytes(self) -> int | None:
        """Bytes by which the KV cache is below baseline's."""
        return _saved(self.figures.cache_bytes, self.baseline.cache_bytes)

    @property
    def prefill_ratio(self) -> float | None:
        """Time of a prefill, divided by baseline's."""
        return _ratio(self.figures.prefill_seconds, self.baseline.prefill_seconds)

    @property
    def decode_ratio(self) -> float | None:
        """Time of a token, divided by baseline's."""
        return _ratio(self.figures.decode_seconds, self.baseline.decode_seconds)

    def to_json(self) -> dict[str, Any]:
        """Figures, differences and ratios by name; null: not measured."""
        derived = ("peak_saved_bytes", "cache_saved_bytes", "prefill_ratio", "decode_ratio")
        return asdict(self.figures) | {name: getattr(self, name) for name in derived}


def mode_rows(figures: Sequence[ModeFigures]) -> list[ModeRow]:
    """A row for each mode, compared with the one among them that prunes nothing."""
    baseline = next((each for each in figures if not MODES[each.mode].prunes), ModeFigures(""))
    return [ModeRow(each, baseline) for each in figures]


def table_lines(rows: Sequence[ModeRow], width: int = 0, reasons: Mapping[str, str] | None = None) -> list[str]:
    """The table as aligned lines, and below it how to read it.

    Columns without any figure are named there too, each with its reason if `reasons` has one by the column's title.
    `width` is that of the terminal, 0 where it is not known.
    """
    columns = {title: [cell(row) for row in rows] for title, cell in _COLUMNS.items()}
    measured = {title: cells for title, cells in columns.items() if any(cells)}
    table = [("mode", *(title.split("|")[-1] for title in measured))]
    for at, row in enumerate(rows):
        table.append((row.figures.mode, *(cells[at] or _NOT_MEASURED for cells in measured.values())))
    absent = [title for title in columns if title not in measured and "|" not in title]
    lines = [*fitted(table, width), "saved: bytes less than in baseline; prefill, decode and FLOPs: baseline is 1"]
    if {"prefill", "decode"} & measured.keys():
        lines[-1] += "; times are of this one run, and vary"
    return [*lines, _absent_line(absent, reasons or {})] if absent else lines


def _absent_line(titles: Iterable[str], reasons: Mapping[str, str]) -> str:
    by_reason: dict[str, list[str]] = {}
    for title in titles:
        by_reason.setdefault(reasons.get(title, ""), []).append(title)
    parts = (", ".join(each) + (f" ({reason})" if reason else "") for reason, each in by_reason.items())
    return f"{_NOT_MEASURED} here: {'; '.join(parts)}"


def _peak(row: ModeRow) -> str:
    return "out of memory" if row.figures.out_of_memory else _size(row.figures.peak_bytes)


def _size(n_bytes: int | None) -> str:
    return "" if n_bytes is None else format_bytes(n_bytes)


def _time(ratio: float | None, seconds: float | None) -> str:
    """ "0.44 (150 ms)"; the time alone where baseline's is not known."""
    if seconds is None:
        return ""
    text = f"{seconds * 1000:,.3g} ms" if seconds < 1 else f"{seconds:,.2f} s"
    return text if ratio is None else f"{ratio:.2f} ({text})"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


# Titles, and a cell's text, "" where there is no figure. Before a "|" stands the column that a title belongs to.
_COLUMNS: dict[str, Callable[[ModeRow], str]] = {
    "peak": _peak,
    "peak|saved": lambda row: _size(row.peak_saved_bytes),
    "KV cache after the prompt": lambda row: _size(row.figures.cache_bytes),
    "KV cache after the prompt|saved": lambda row: _size(row.cache_saved_bytes),
    "prefill": lambda row: _time(row.prefill_ratio, row.figures.prefill_seconds),
    "decode": lambda row: _time(row.decode_ratio, row.figures.decode_seconds),
    "FLOPs": lambda row: _number(row.figures.flops_ratio, ".3f"),
    "accuracy": lambda row: _number(row.figures.accuracy, ".2%"),
}


def _saved(own: int | None, baseline: int | None) -> int | None:
    return None if own is None or baseline is None else baseline - own


def _ratio(own: float | None, baseline: float | None) -> float | None:
    return None if own is None or not baseline else own / baseline
