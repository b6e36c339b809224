"""A peak in pieces: which line of code, in which module, made how much of it, and what it is. Adds up to the byte."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vram.units import format_bytes

VERSION = 1
CATEGORIES = (
    "weights",
    "buffers",
    "inputs",
    "KV cache",
    "activations",
    "attention maps",
    "logits",
    "gradients",
    "optimizer state",
    "pruning",
    "library workspace",
    "other",
)
OUTSIDE = "(outside modules)"
UNTRACED = "not traced"
_LINE = re.compile(r"(.*):(\d+)(?: (.*))?")
_MOST_PIECES = 150  # in a report
MOST_COMPACT_BYTES = 3000  # of JSON, in an entry of the history
_FIELDS = ("n_bytes", "count", "line", "op", "dtype", "shape", "module", "category")


@dataclass(frozen=True, slots=True)
class Piece:
    """Storages alive at the peak that are alike: `count` of them, `n_bytes` together.

    `line` is "file:number function" of the code that made them, "" for what was alive before the sample; `module` the
    path of the module whose forward ran, with indices folded ("model.layers.*.self_attn"), "" outside of any; of
    weights and buffers, the module that has them. `smaller` counts the pieces that one stands for, of which only the
    category is known; 0 for a piece of its own.
    """

    n_bytes: int
    count: int
    line: str = ""
    op: str = ""
    dtype: str = ""
    shape: str = ""
    module: str = ""
    category: str = "other"
    smaller: int = 0

    @property
    def where(self) -> tuple[str, int, str]:
        """File, number of the line, function."""
        match = _LINE.fullmatch(self.line)
        return (match[1], int(match[2]), match[3] or "") if match else (self.line, 0, "")

    @property
    def text(self) -> str:
        """ "model.py:7 forward: aten.cat float32 [1, 64] in 2 x model.layers.*.mlp (activations)"."""
        if self.smaller:
            return f"{self.smaller:,} smaller pieces ({self.category})"
        made = " ".join(filter(None, (self.op, self.dtype, self.shape)))
        before = "before the sample" if self.category != UNTRACED else self.category
        what = ": ".join(filter(None, (self.line or before, made)))
        times = f"{self.count:,} x " if self.count > 1 else ""
        place = f" in {times}{self.module}" if self.module else f" ({times.rstrip()})" if times else ""
        return f"{what}{place} ({self.category})" if self.category != UNTRACED else f"{what}{place}"


class InPieces:
    """A figure and its pieces. `untraced_bytes` are the rest of the figure, which `untraced` names."""

    pieces: tuple[Piece, ...]
    untraced_bytes: int
    untraced: str

    @property
    def whole(self) -> tuple[Piece, ...]:
        """All pieces, most bytes first, and what was not traced as one more: their sum is the figure."""
        rest = Piece(self.untraced_bytes, 1, category=UNTRACED) if self.untraced_bytes else None
        return (*self.pieces, *([rest] if rest else []))

    @property
    def by_line_alone(self) -> bool:
        """Whether nobody looked for modules and categories."""
        return False

    def by(self, name: Callable[[Piece], str]) -> dict[str, int]:
        """Bytes by what `name` makes of each piece, most first."""
        sums: Counter[str] = Counter()
        for piece in self.whole:
            sums[name(piece)] += piece.n_bytes
        return dict(sums.most_common())

    @property
    def by_category(self) -> dict[str, int]:
        """Bytes by category, most first."""
        return self.by(lambda piece: piece.category)

    @property
    def by_module(self) -> dict[str, int]:
        """Bytes of what the sample made, by module, most first."""
        made = self.by(lambda piece: (piece.module or OUTSIDE) if piece.line else "")
        return {name: n_bytes for name, n_bytes in made.items() if name}

    def parts_to_json(self) -> dict[str, Any]:
        """The parts ready for a report: at most 150 pieces, the smaller ones summed by category."""
        cut = folded(self.pieces, _MOST_PIECES)
        return {
            "untraced_bytes": self.untraced_bytes,
            "untraced": self.untraced,
            "pieces": [{name: getattr(piece, name) for name in (*_FIELDS, "smaller")} for piece in cut],
            "by_category": self.by_category,
            "by_module": self.by_module,
        }


@dataclass(frozen=True)
class Breakdown(InPieces):
    """The recorded peak of the highest sample, as its traced rerun explains it: the pieces add up to it.

    `sample` is None of the body of a marked test, which has none and was followed while it ran.
    """

    sample: int | None
    peak_bytes: int
    pieces: tuple[Piece, ...]
    untraced_bytes: int = 0
    untraced: str = ""

    def to_json(self) -> dict[str, Any]:
        """Ready for a report."""
        parts = self.parts_to_json()
        if self.by_line_alone:
            del parts["by_category"], parts["by_module"]
        return {"version": VERSION, "sample": self.sample, "peak_bytes": self.peak_bytes, **parts}

    @property
    def by_line_alone(self) -> bool:
        """True of the body of a marked test."""
        return self.sample is None

    def compact(self) -> dict[str, Any]:
        """The same for the history, in at most 3 KB of JSON: a text a piece, with numbers for the texts in it."""
        for most in (len(self.pieces), 64, 48, 36, 28, 22, 17, 13, 10, 7, 4, 2, 0):
            data = _packed(self, folded(self.pieces, most)) if most <= len(self.pieces) else None
            if data is not None and json_bytes(data) <= MOST_COMPACT_BYTES:
                return data
        return _packed(self, folded(self.pieces, 0))


def folded(pieces: Sequence[Piece], most: int) -> tuple[Piece, ...]:
    """The `most` largest pieces, and one for the others of each category."""
    if len(pieces) <= most:
        return tuple(pieces)
    ranked = sorted(pieces, key=lambda piece: (bool(piece.smaller), -piece.n_bytes))
    rest: dict[str, Piece] = {}
    for piece in ranked[most:]:
        known = rest.get(piece.category, Piece(0, 0, category=piece.category))
        rest[piece.category] = replace(
            known,
            n_bytes=known.n_bytes + piece.n_bytes,
            count=known.count + piece.count,
            smaller=known.smaller + (piece.smaller or 1),
        )
    return (*ranked[:most], *rest.values())


def from_json(data: Any) -> Breakdown | None:
    """Read back `to_json` or `compact`; None for a later version. Raises ValueError for anything else."""
    try:
        if data["version"] > VERSION:
            return None
        texts = data.get("texts")
        made = tuple(piece_from_json(one) if texts is None else _unpacked(one, texts) for one in data["pieces"])
        numbers = {name: whole_number(data[name]) for name in ("peak_bytes", "untraced_bytes")}
        sample = None if data["sample"] is None else whole_number(data["sample"])
        found = Breakdown(sample, pieces=made, untraced=str(data["untraced"]), **numbers)
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise ValueError(f"not a breakdown: {type(error).__name__}: {error}") from None
    if sum(piece.n_bytes for piece in found.whole) != found.peak_bytes:
        raise ValueError("not a breakdown: its pieces do not add up to its peak")
    return found


def piece_from_json(data: Mapping[str, Any]) -> Piece:
    """Read back a piece of `parts_to_json`. Raises KeyError, TypeError or ValueError for anything else."""
    texts = {name: str(data[name]) for name in _FIELDS[2:]}
    n_bytes, count, smaller = (whole_number(data[name]) for name in ("n_bytes", "count", "smaller"))
    return Piece(n_bytes, count, smaller=smaller, **texts)


def _packed(one: Breakdown, pieces: Iterable[Piece]) -> dict[str, Any]:
    texts: dict[str, int] = {}
    rows = []
    for piece in pieces:
        numbers = [texts.setdefault(getattr(piece, name), len(texts)) for name in _FIELDS[2:]]
        rows.append(" ".join(map(str, (piece.n_bytes, piece.count, *numbers, piece.smaller))))
    return {
        "version": VERSION,
        "sample": one.sample,
        "peak_bytes": one.peak_bytes,
        "untraced_bytes": one.untraced_bytes,
        "untraced": one.untraced,
        "pieces": rows,
        "texts": [text[-200:] for text in texts],
    }


def _unpacked(row: str, texts: Sequence[Any]) -> Piece:
    n_bytes, count, *numbers, smaller = map(int, row.split())
    if len(numbers) != len(_FIELDS) - 2 or min(numbers) < 0:
        raise ValueError(f"no piece: {row[:40]!r}")
    named = dict(zip(_FIELDS[2:], (str(texts[number]) for number in numbers), strict=True))
    return Piece(whole_number(n_bytes), whole_number(count), smaller=whole_number(smaller), **named)


def whole_number(value: Any) -> int:
    """`value`, where it is a whole number of at most 64 bits; else raises ValueError."""
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= 2**63:
        raise ValueError(f"a whole number was expected, got {str(value)[:40]!r}")
    return value


def json_bytes(data: Mapping[str, Any]) -> int:
    """Bytes of it in a file."""
    return len(json.dumps(data, separators=(",", ":")))


def sums_text(sums: Mapping[str, int], most: int = 4, text: Callable[[int], str] = format_bytes) -> str:
    """ "weights 26.00 MiB, activations 12.00 MiB, 2 more 4.00 KiB", each figure as `text` has it."""
    shown = list(sums.items())[:most]
    rest = list(sums.values())[most:]
    texts = [f"{name} {text(n_bytes)}" for name, n_bytes in shown]
    return ", ".join(texts + ([f"{len(rest)} more {text(sum(rest))}"] if rest else []))
