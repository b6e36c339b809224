"""A figure as an icicle: what it is, in which module, by which line; each bar as wide as its bytes. Arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from vram.summary.breakdown import CATEGORIES, UNTRACED, InPieces, Piece
from vram.units import format_bytes

_LEAST = 0.4  # percent: narrower bars are drawn together
_Group: TypeAlias = tuple[str, list[Piece]]


@dataclass(frozen=True)
class Bar:
    """One bar: `row` counts from the top, `left` and `width` are percent of the drawing. `text` says all of it."""

    row: int
    left: float
    width: float
    label: str
    text: str
    tone: int


@dataclass(frozen=True)
class Icicle:
    """Bars of one figure, from the whole at the top to lines of code."""

    title: str
    bars: Sequence[Bar]

    @property
    def rows(self) -> int:
        """How many rows it has."""
        return max((bar.row for bar in self.bars), default=0) + 1


def icicle(one: InPieces, title: str, most_bytes: int | None = None, *, name: str = "peak") -> Icicle:
    """The bars of a figure called `name`; `most_bytes` fill the width, so that two can be drawn on one scale.

    A figure that is known by line alone has no bars of categories and modules.
    """
    n_bytes = _bytes(one.whole)
    scale = 100 / max(1, n_bytes if most_bytes is None else most_bytes)
    bars = [Bar(0, 0.0, round(scale * n_bytes, 2), name, f"{name} {_size(n_bytes)}", -1)]
    _draw(list(one.whole), _LEVELS[-1:] if one.by_line_alone else _LEVELS, 1, 0, scale, bars, -1)
    return Icicle(title, bars)


def _draw(
    pieces: list[Piece],
    levels: Sequence[Callable[[Piece], str]],
    row: int,
    start_bytes: int,
    scale: float,
    bars: list[Bar],
    tone: int,
) -> None:
    if not levels:
        return
    groups: dict[str, list[Piece]] = {}
    for piece in pieces:
        groups.setdefault(levels[0](piece), []).append(piece)
    ranked = sorted(groups.items(), key=lambda group: -_bytes(group[1]))
    narrow = [group for group in ranked if scale * _bytes(group[1]) < _LEAST]
    for name, group in ranked[: len(ranked) - len(narrow)]:
        n_bytes = _bytes(group)
        of = tone_of(group[0].category) if row == 1 else tone
        width = round(scale * n_bytes, 2)
        text = f"{_size(n_bytes)} {name}" if len(levels) > 1 else _all(group)
        bars.append(Bar(row, round(scale * start_bytes, 2), width, name, text, of))
        _draw(group, levels[1:], row + 1, start_bytes, scale, bars, of)
        start_bytes += n_bytes
    rest = [piece for _, group in narrow for piece in group]
    if rest and scale * _bytes(rest) >= _LEAST:
        text = f"{_size(_bytes(rest))} in {len(narrow)} smaller"
        bars.append(Bar(row, round(scale * start_bytes, 2), round(scale * _bytes(rest), 2), "", text, tone))


def _line(piece: Piece) -> str:
    if piece.smaller:
        return f"{piece.smaller} smaller pieces"
    return piece.line or ("not traced" if piece.category == UNTRACED else "before the sample")


_LEVELS: tuple[Callable[[Piece], str], ...] = (
    lambda piece: piece.category,
    lambda piece: piece.module or "outside modules",
    _line,
)


def _all(group: Sequence[Piece]) -> str:
    """ "48.00 MiB model.py:7 forward: aten.cat float32 [1, 64] in model (activations); 12 B ..."."""
    return "; ".join(f"{_size(piece.n_bytes)} {piece.text}" for piece in group[:4]) + ("; ..." if group[4:] else "")


def tone_of(category: str) -> int:
    """The number of a category's colour."""
    return CATEGORIES.index(category) if category in CATEGORIES else len(CATEGORIES)


def _bytes(group: Sequence[Piece]) -> int:
    return sum(piece.n_bytes for piece in group)


def _size(n_bytes: int) -> str:
    return format_bytes(n_bytes)
