"""The difference of two peaks, piece by piece: what grew, shrank, came and went. Arithmetic on breakdowns."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from vram.summary.breakdown import OUTSIDE, Breakdown, Piece
from vram.units import format_bytes

_MOST_LINES = 6
_MOST_RENAMED = 3
Key = tuple[object, ...]


@dataclass(frozen=True)
class Moved:
    """One piece of the base, of the head, or both."""

    base: Piece | None
    head: Piece | None

    @property
    def more_bytes(self) -> int:
        """Bytes that the head has more; negative for less."""
        return (self.head.n_bytes if self.head else 0) - (self.base.n_bytes if self.base else 0)

    @property
    def piece(self) -> Piece:
        """The head's; the base's of what is gone."""
        one = self.head or self.base
        assert one is not None
        return one

    @property
    def word(self) -> Literal["came", "went", "grew", "shrank", "same"]:
        """Fate of the piece: it came, grew, shrank, went, or stayed."""
        if self.base is None:
            return "came"
        if self.head is None:
            return "went"
        return "grew" if self.more_bytes > 0 else "shrank" if self.more_bytes < 0 else "same"

    @property
    def text(self) -> str:
        """ "+4.00 KiB grew: model.py:7 forward: aten.cat float32 [2, 64] (activations), [1, 64] before"."""
        before = ""
        if self.base is not None and self.head is not None and not self.head.smaller:
            old = [f"{self.base.count:,} x"] if self.base.count != self.head.count else []
            old += [self.base.dtype] if self.base.dtype != self.head.dtype else []
            old += [self.base.shape] if self.base.shape != self.head.shape else []
            before = f", {' '.join(old)} before" if old else ""
        return f"{signed(self.more_bytes)} {self.word}: {self.piece.text}{before}"


@dataclass(frozen=True)
class Difference:
    """The peak of `head` beside that of `base`. The moved pieces' bytes add up to `more_bytes`."""

    base: Breakdown
    head: Breakdown
    moved: tuple[Moved, ...]

    @property
    def more_bytes(self) -> int:
        """Bytes that the head's peak has more; negative for less."""
        return self.head.peak_bytes - self.base.peak_bytes

    def beside(self, name: Callable[[Piece], str]) -> dict[str, tuple[int, int]]:
        """Bytes of the base and of the head by what `name` makes of each piece, what moved most first; what grew before
        what shrank by as much.

        Pieces of the base have the names that their modules have in the head.
        """
        sums: dict[str, tuple[int, int]] = {}
        for piece in self.base.whole:
            key = name(replace(piece, module=self.renamed.get(piece.module, piece.module)))
            sums[key] = sums.get(key, (0, 0))[0] + piece.n_bytes, 0
        for piece in self.head.whole:
            before, now = sums.get(name(piece), (0, 0))
            sums[name(piece)] = before, now + piece.n_bytes
        return dict(sorted(sums.items(), key=lambda item: (-abs(item[1][1] - item[1][0]), item[1][0] - item[1][1])))

    def by(self, name: Callable[[Piece], str]) -> dict[str, int]:
        """Bytes more by the same; what did not move is left out."""
        return {key: head - base for key, (base, head) in self.beside(name).items() if head != base}

    @property
    def by_category(self) -> dict[str, int]:
        """Bytes more by category."""
        return self.by(lambda piece: piece.category)

    @property
    def by_module(self) -> dict[str, int]:
        """Bytes more by module."""
        return self.by(lambda piece: piece.module or OUTSIDE)

    @cached_property
    def renamed(self) -> dict[str, str]:
        """Modules that the base alone has by the names that they have in the head alone, the largest first."""
        news: defaultdict[str, set[str]] = defaultdict(set)
        olds: defaultdict[str, set[str]] = defaultdict(set)
        before, now = ({piece.module for piece in one.pieces} for one in (self.base, self.head))
        pairs = [(one.base, one.head) for one in self.moved if one.base is not None and one.head is not None]
        for base, head in sorted(pairs, key=lambda pair: -pair[1].n_bytes):
            if base.module and head.module and base.module not in now and head.module not in before:
                news[base.module].add(head.module)
                olds[head.module].add(base.module)
        names = {old: next(iter(new)) for old, new in news.items() if len(new) == 1}
        return {old: new for old, new in names.items() if len(olds[new]) == 1}

    def lines(self, most_lines: int = _MOST_LINES) -> list[str]:
        """The difference in at most `most_lines`: the sum by category, then pieces, the last for those not shown."""
        samples = "" if self.head.sample is None else f" (sample {self.head.sample})"
        if self.head.sample != self.base.sample:
            samples = f" (sample {self.head.sample}, sample {self.base.sample} of the base)"
        sums = ", ".join(f"{name} {signed(more)}" for name, more in list(self.by_category.items())[:4])
        title = f"{signed(self.more_bytes)} at the peak{samples}" + (f": {sums}" if sums else "")
        changed = [one for one in self.moved if one.word != "same"]
        room = most_lines - 1
        shown = changed if len(changed) <= room else changed[: room - 1]
        rest = changed[len(shown) :]
        texts = [f"  {one.text}" for one in shown]
        if rest:
            texts.append(f"  and {signed(sum(one.more_bytes for one in rest))} in {len(rest)} more pieces")
        if self.renamed and len(texts) < room:
            texts.append(f"  renamed: {self._renamed_text}")
        return [title, *texts]

    @property
    def _renamed_text(self) -> str:
        names = list(self.renamed.items())
        rest = f", {len(names) - _MOST_RENAMED} more" if len(names) > _MOST_RENAMED else ""
        return ", ".join(f"{old} is {new} now" for old, new in names[:_MOST_RENAMED]) + rest

    def to_json(self) -> dict[str, Any]:
        """Everything that differs, ready for JSON."""
        return {
            "more_bytes": self.more_bytes,
            "by_category": self.by_category,
            "by_module": self.by_module,
            "renamed": self.renamed,
            "pieces": [
                {
                    "more_bytes": one.more_bytes,
                    "what": one.word,
                    "text": one.piece.text,
                    "line": one.piece.line,
                    "module": one.piece.module,
                    "category": one.piece.category,
                    "base_bytes": one.base.n_bytes if one.base else 0,
                    "head_bytes": one.head.n_bytes if one.head else 0,
                }
                for one in self.moved
                if one.word != "same"
            ],
        }


def difference(base: Breakdown, head: Breakdown) -> Difference:
    """Match the pieces of two peaks: first those that are alike in all but the number of their line, then ever less.

    A line may move, a shape grow, a dtype change, a module be renamed: function and operation, or module and category,
    stay. A class may be renamed, where all else is equal and no other piece is like it. What finds no partner came or
    went.
    """
    before, now = list(base.whole), list(head.whole)
    pairs: list[Moved] = []
    for key in _KEYS:
        pairs += _matched(before, now, key)
    pairs += _only_ones(before, now)
    pairs += [Moved(piece, None) for piece in before] + [Moved(None, piece) for piece in now]
    pairs.sort(key=lambda one: (one.word == "same", -abs(one.more_bytes), one.piece.line))
    return Difference(base, head, tuple(pairs))


def signed(n_bytes: int) -> str:
    """ "+4.00 KiB", "-12 B", "0 B"."""
    return ("+" if n_bytes > 0 else "") + format_bytes(n_bytes)


def _matched(before: list[Piece], now: list[Piece], key: Callable[[Piece], Key]) -> list[Moved]:
    """Pairs of equal keys, taken out of both lists; of several, those whose lines and sizes are nearest."""
    groups: defaultdict[Key, list[Piece]] = defaultdict(list)
    for piece in before:
        groups[key(piece)].append(piece)
    pairs = []
    for piece in list(now):
        if candidates := groups.get(key(piece)):
            partner = min(candidates, key=lambda one: _distance(one, piece))
            candidates.remove(partner)
            before.remove(partner)
            now.remove(piece)
            pairs.append(Moved(partner, piece))
    return pairs


def _only_ones(before: list[Piece], now: list[Piece]) -> list[Moved]:
    """Pairs that differ in the names of class and module alone, taken out of both lists; none where more are alike."""
    counts = [Counter(map(_unnamed, pieces)) for pieces in (before, now)]
    alone = {key for key in counts[0] if counts[0][key] == counts[1][key] == 1}
    partners = {_unnamed(piece): piece for piece in before}
    pairs = [Moved(partners[key], piece) for piece in now if piece.line and (key := _unnamed(piece)) in alone]
    for pair in pairs:
        before.remove(pair.base)  # type: ignore[arg-type]
        now.remove(pair.head)  # type: ignore[arg-type]
    return pairs


def _unnamed(piece: Piece) -> Key:
    """All of a piece but its module, its class and the number of its line."""
    file, _, function = piece.where
    method = function.rpartition(".")[2]
    return (*_kind(piece), file, method, piece.op, piece.dtype, piece.shape, piece.count, piece.n_bytes)


def _distance(one: Piece, other: Piece) -> tuple[bool, int, int]:
    return one.shape != other.shape, abs(one.n_bytes - other.n_bytes), abs(one.where[1] - other.where[1])


def _kind(piece: Piece) -> Key:
    """Facts that no partner may differ in."""
    return piece.category, bool(piece.smaller), bool(piece.line)


def _function(piece: Piece) -> Key:
    file, _, function = piece.where
    return file, function


def _dimensions(piece: Piece) -> int:
    return piece.shape.count(",")


_KEYS: Sequence[Callable[[Piece], Key]] = (
    lambda piece: (*_kind(piece), piece.line, piece.op, piece.dtype, piece.shape, piece.module),
    lambda piece: (*_kind(piece), *_function(piece), piece.op, piece.dtype, piece.shape, piece.module),
    lambda piece: (*_kind(piece), *_function(piece), piece.op, piece.dtype, _dimensions(piece), piece.module),
    lambda piece: (*_kind(piece), *_function(piece), piece.op, _dimensions(piece), piece.module),
    lambda piece: (*_kind(piece), *_function(piece), piece.op, _dimensions(piece)),
)
