"""Sizes, rates and tables in words: one wording for the terminal, every report and every command."""

from __future__ import annotations

from collections.abc import Sequence

from vram.escaping import shown
from vram.units import format_bytes

NO_FIGURE = "-"


def size_text(n_bytes: float | None) -> str:
    """ "48.00 MiB"; a dash where there is no figure."""
    return NO_FIGURE if n_bytes is None else format_bytes(n_bytes)


def bytes_text(n_bytes: float) -> str:
    """To the byte, or to a tenth of one where it is no whole number: "4,096 B", "512.9 B"."""
    return (f"{n_bytes:,}" if isinstance(n_bytes, int) else f"{n_bytes:,.1f}".removesuffix(".0")) + " B"


def exact_text(n_bytes: float) -> str:
    """ "48.00 MiB (50,331,648 B)"; small figures in bytes alone."""
    return bytes_text(n_bytes) if abs(n_bytes) < 1024 else f"{format_bytes(n_bytes)} ({bytes_text(n_bytes)})"


def rate_text(bytes_per_sample: float | None, interval_bytes: Sequence[float] = ()) -> str:
    """ "4,096 B", "512.9 B (444.4 to 581.4)": with the interval (low, high) where its ends differ."""
    if bytes_per_sample is None:
        return NO_FIGURE
    rate = bytes_text(float(bytes_per_sample))
    if len(set(interval_bytes)) < 2:
        return rate
    low_bytes, high_bytes = interval_bytes
    return f"{rate} ({low_bytes:,.1f} to {high_bytes:,.1f})"


def bare_seconds(seconds: float) -> str:
    """ "60", "1,260"; below ten with one digit: "0.5"."""
    return f"{seconds:,.0f}" if seconds >= 10 else f"{seconds:.1f}".removesuffix(".0")


def apart(n_bytes: float | None, limit_bytes: float | None) -> tuple[str, str]:
    """Two sizes as text, to the byte where they would read alike and are not. A dash is no figure."""
    texts = size_text(n_bytes), size_text(limit_bytes)
    if n_bytes is None or limit_bytes is None or n_bytes == limit_bytes or texts[0] != texts[1]:
        return texts
    return bytes_text(n_bytes), bytes_text(limit_bytes)


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows of cells as lines, columns under one another. Each cell is shown in one line, whatever it is called."""
    rows = [tuple(map(shown, row)) for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
