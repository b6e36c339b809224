"""Sizes, rates and tables in words: one wording for the terminal, every report and every command."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, groupby, repeat
from typing import TypeAlias
from unicodedata import combining, east_asian_width

from vram.escaping import shown
from vram.units import format_bytes

NO_FIGURE = "-"
BAD, OPEN, GOOD = "bad", "open", "good"  # tones of a text: it needs attention, has no decision, is fine
Paint: TypeAlias = Callable[[str, str], str]  # a text and its tone, "" for none -> the text, as a terminal shows it
_ANSI = {BAD: 31, OPEN: 33, GOOD: 32}  # red, yellow, green
_GAP = "  "


def unpainted(text: str, tone: str) -> str:
    """`text` as it is, whatever its tone."""
    return text


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


def packed(values: Iterable[object]) -> str:
    """ "4096x20 8192": twenty times 4096, then 8192; "-" is no figure."""
    groups = [("-" if value is None else f"{value}", len(list(same))) for value, same in groupby(values)]
    return " ".join(f"{value}x{times}" if times > 1 else value for value, times in groups)


def unpacked(text: str, most: int) -> list[int]:
    """Whole numbers behind `packed`, at most so many. Raises ValueError for anything else."""
    numbers: list[int] = []
    for word in text.split():
        number, _, times = word.partition("x")
        if not 0 < int(times or 1) <= most - len(numbers):
            raise ValueError(f"more than {most} numbers")
        numbers += [int(number)] * int(times or 1)
    return numbers


def apart(n_bytes: float | None, limit_bytes: float | None) -> tuple[str, str]:
    """Two sizes as text, to the byte where they would read alike and are not. A dash is no figure."""
    texts = size_text(n_bytes), size_text(limit_bytes)
    if n_bytes is None or limit_bytes is None or n_bytes == limit_bytes or texts[0] != texts[1]:
        return texts
    return bytes_text(n_bytes), bytes_text(limit_bytes)


def columns(text: str) -> int:
    """How many columns of a terminal `text` takes: two for a wide letter, none for a mark on the letter before it."""
    if text.isascii():
        return len(text)
    return sum(0 if combining(letter) else 2 if east_asian_width(letter) in "WF" else 1 for letter in text)


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows of cells as lines, columns under one another. Each cell is shown in one line, whatever it is called."""
    return fitted(rows)


def fitted(
    rows: Sequence[tuple[str, ...]],
    width: int = 0,
    *,
    tones: Sequence[str] = (),
    toned: int = 0,
    paint: Paint = unpainted,
) -> list[str]:
    """`rows`, the first of them the head, as a table where that fits `width` columns (0: any), else as paragraphs.

    A paragraph is a row's first cell, and then each other cell after the name of its column. `tones` has a tone for
    each row below the head: of the cell in column `toned`, or of a paragraph's first line.
    """
    rows = [tuple(map(shown, row)) for row in rows]
    widths = [max(columns(row[column]) for row in rows) for column in range(len(rows[0]))]
    if 0 < width < sum(widths) + len(_GAP) * (len(widths) - 1):
        return [
            line
            for row, tone in zip(rows[1:], _padded(tones), strict=False)
            for line in _paragraph(rows[0], row, width, tone, paint)
        ]
    lines = []
    for row, tone in zip(rows, _padded(["", *tones]), strict=False):
        cells = [
            (paint(cell, tone) if column == toned else cell) + " " * (widths[column] - columns(cell))
            for column, cell in enumerate(row)
        ]
        lines.append(_GAP.join(cells).rstrip())
    return lines


def _padded(tones: Iterable[str]) -> Iterator[str]:
    return chain(tones, repeat(""))


def _paragraph(head: tuple[str, ...], row: tuple[str, ...], width: int, tone: str, paint: Paint) -> list[str]:
    """One row as lines of at most `width` columns; cells without a figure are left out."""
    named = (
        f"{name} {cell}".strip() for name, cell in zip(head[1:], row[1:], strict=True) if cell not in ("", NO_FIGURE)
    )
    title = [paint(line, tone) for line in _wrapped(row[0], width)]
    return title + [f"{_GAP}{line}" for line in _wrapped(", ".join(named), width - len(_GAP))]


def _wrapped(text: str, width: int) -> list[str]:
    """`text` in lines of at most `width` columns, broken between words, and within one that is longer."""
    lines = [""]
    for word in text.split(" "):
        if columns(lines[-1]) + 1 + columns(word) <= width or not lines[-1]:
            lines[-1] += f" {word}" if lines[-1] else word
        else:
            lines.append(word)
        while columns(lines[-1]) > width and len(lines[-1]) > 1:
            whole = lines.pop()
            cut = max(1, next(at for at in range(len(whole), 0, -1) if columns(whole[:at]) <= max(width, 2)))
            lines += [whole[:cut], whole[cut:]]
    return lines if lines != [""] else []


def colours(is_terminal: bool) -> Paint:
    """How a command paints on its standard output: as NO_COLOR and FORCE_COLOR say, else where that is a terminal."""
    if os.environ.get("NO_COLOR"):
        return unpainted
    return _ansi if os.environ.get("FORCE_COLOR") or (is_terminal and os.environ.get("TERM") != "dumb") else unpainted


def _ansi(text: str, tone: str) -> str:
    return f"\x1b[{_ANSI[tone]}m{text}\x1b[0m" if tone else text


def terminal_columns(is_terminal: bool) -> int:
    """How wide the terminal is: as COLUMNS says, else as it says itself. 0 where output goes to a file or a pipe."""
    if is_terminal or os.environ.get("COLUMNS", "").isdecimal():
        return shutil.get_terminal_size((0, 0)).columns
    return 0
