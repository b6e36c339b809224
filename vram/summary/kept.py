"""Bytes that samples leave behind, in pieces: what grows, and what only the garbage collector frees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vram.summary.breakdown import OUTSIDE, VERSION, InPieces, Piece, piece_from_json, sums_text, whole_number
from vram.text import bytes_text
from vram.units import format_bytes


@dataclass(frozen=True)
class Kept(InPieces):
    """`n_bytes` of `runs` samples that were run again with tracing: the pieces, and what was not traced, add up to it.

    `sample` is the one that was run, None where it is all of them in turn.
    """

    n_bytes: int
    runs: int
    pieces: tuple[Piece, ...]
    untraced_bytes: int = 0
    untraced: str = ""
    sample: int | None = None

    @property
    def rate_lines(self) -> list[str]:
        """Bytes a sample by category and by module, in two lines; nothing where no module ran."""
        by_module = {name: n_bytes for name, n_bytes in self.by_module.items() if name != OUTSIDE}
        if not by_module:
            return []
        category, module = (sums_text(sums, 3, self._rate_text) for sums in (self.by_category, by_module))
        return [f"by category, a sample: {category}", f"by module, a sample: {module}"]

    @property
    def rate_text(self) -> str:
        """Bytes a sample, of all pieces."""
        return self._rate_text(self.n_bytes)

    def _rate_text(self, n_bytes: int) -> str:
        return bytes_text(n_bytes // self.runs if n_bytes % self.runs == 0 else n_bytes / self.runs)

    def piece_lines(self, most_lines: int) -> list[str]:
        """The pieces in at most `most_lines` lines, the last for those that are not shown."""
        shown = self.whole if len(self.whole) <= most_lines else self.whole[: most_lines - 1]
        rest = self.whole[len(shown) :]
        lines = [f"{format_bytes(piece.n_bytes)} {piece.text}" for piece in shown]
        more = format_bytes(sum(piece.n_bytes for piece in rest))
        return lines + ([f"{more} in {len(rest)} more pieces"] if rest else [])

    def to_json(self) -> dict[str, Any]:
        """Ready for a report."""
        figure = {"version": VERSION, "n_bytes": self.n_bytes, "runs": self.runs, "sample": self.sample}
        return {**figure, **self.parts_to_json()}


def garbage_lines(kept: Kept, most_lines: int = 6) -> list[str]:
    """Garbage of a sample in at most `most_lines` lines of text."""
    title = f"garbage of sample {kept.sample}, run again with tracing: {format_bytes(kept.n_bytes)}"
    return [title, *(f"  {line}" for line in kept.piece_lines(most_lines - 1))]


def kept_from_json(data: Any) -> Kept | None:
    """Read back `Kept.to_json`; None for a later version. Raises ValueError for anything else."""
    try:
        if data["version"] > VERSION:
            return None
        numbers = {name: whole_number(data[name]) for name in ("n_bytes", "runs", "untraced_bytes")}
        sample = None if data["sample"] is None else whole_number(data["sample"])
        pieces = tuple(map(piece_from_json, data["pieces"]))
        found = Kept(**numbers, pieces=pieces, untraced=str(data["untraced"]), sample=sample)
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise ValueError(f"no pieces of what is kept: {type(error).__name__}: {error}") from None
    if found.runs < 1 or sum(piece.n_bytes for piece in found.whole) != found.n_bytes:
        raise ValueError("no pieces of what is kept: they do not add up")
    return found
