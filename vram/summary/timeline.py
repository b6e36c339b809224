"""Live bytes of one sample by category, over its allocations and frees. Arithmetic on what a trace has counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from vram.summary.breakdown import whole_number
from vram.text import packed, unpacked

VERSION = 1
NONE = -1  # the number of no line
_OUTLINES = (40, 24, 12)  # moments of an outline: the most that have room
_MOST_NUMBERS = 10_000  # of a packed text


@dataclass(frozen=True)
class Made:
    """One line that allocates: its text, as of a piece of a breakdown, and the call stack, innermost frame first."""

    text: str
    stack: tuple[str, ...] = ()


@dataclass(frozen=True)
class Timeline:
    """Moments of a sample that was run again with tracing, the highest of them exact.

    `at` counts the allocations and frees before each moment, of `operations` in all; where there are more than moments,
    those kept are the lowest and the highest of every `merged`. `bytes` has what is alive by category, one figure a
    moment, and `least` the lowest of all operations. `lines` are numbers of `made`: `largest` what most of a category
    is at each moment, `largest_bytes` how much that is; `began` and `ended` what the operation before the moment made
    or freed. `ticks` are marks, or forwards of the model after the first, `ticks_left_out` those not kept.
    """

    sample: int
    operations: int
    merged: int
    at: tuple[int, ...]
    bytes: Mapping[str, tuple[int, ...]]
    least: Mapping[str, int]
    largest: Mapping[str, tuple[int, ...]]
    largest_bytes: Mapping[str, tuple[int, ...]]
    began: tuple[int, ...]
    ended: tuple[int, ...]
    made: tuple[Made, ...]
    ticks: tuple[tuple[int, str], ...] = ()
    ticks_left_out: int = 0

    @property
    def totals(self) -> list[int]:
        """Bytes alive at each moment."""
        return [sum(column) for column in zip(*self.bytes.values(), strict=True)]

    @property
    def peak(self) -> int:
        """The index of the highest moment, the first where there are several."""
        totals = self.totals
        return totals.index(max(totals))

    @property
    def peak_bytes(self) -> int:
        """Bytes alive at the highest moment."""
        return max(self.totals)

    @property
    def merged_text(self) -> str:
        """ "1,234 allocations and frees, of each 17 the lowest and the highest moment"."""
        text = f"{self.operations:,} allocations and frees"
        return f"{text}, of each {self.merged:,} the lowest and the highest moment" if self.merged > 1 else text

    def outline(self, most_letters: int) -> str:
        """The total alone, "PLACE:BYTES ..." with places in thousandths: the highest of each few moments, in at most so
        many letters; "" where there is no room."""
        points = [(1000 * at // max(1, self.operations), total) for at, total in zip(self.at, self.totals, strict=True)]
        for most in _OUTLINES:
            each = -(-len(points) // most)
            bins = [points[begin : begin + each] for begin in range(0, len(points), each)]
            text = " ".join("{}:{}".format(*max(one, key=itemgetter(1))) for one in bins)
            if len(text) <= most_letters:
                return text
        return ""

    def to_json(self) -> dict[str, Any]:
        """Ready for a report: numbers are packed, and each frame is there once."""
        frames: dict[str, int] = {}
        made = [
            {"text": one.text, "stack": packed(frames.setdefault(frame, len(frames)) for frame in one.stack)}
            for one in self.made
        ]
        of_category = {
            name: {
                "least": self.least[name],
                "bytes": packed(self.bytes[name]),
                "largest": packed(self.largest[name]),
                "largest_bytes": packed(self.largest_bytes[name]),
            }
            for name in self.bytes
        }
        return {
            "version": VERSION,
            "sample": self.sample,
            "operations": self.operations,
            "merged": self.merged,
            "at": packed(self.at),
            "categories": of_category,
            "began": packed(self.began),
            "ended": packed(self.ended),
            "ticks": [f"{at} {name}" for at, name in self.ticks],
            "ticks_left_out": self.ticks_left_out,
            "made": made,
            "frames": list(frames),
        }


def timeline_from_json(data: Any) -> Timeline | None:
    """Read back `Timeline.to_json`; None for a later version. Raises ValueError for anything else."""
    try:
        if data["version"] > VERSION:
            return None
        frames = [str(frame) for frame in data["frames"]]
        made = tuple(
            Made(str(one["text"]), tuple(frames[number] for number in _numbers(one["stack"]))) for one in data["made"]
        )
        of_category = data["categories"].items()
        found = Timeline(
            sample=whole_number(data["sample"]),
            operations=whole_number(data["operations"]),
            merged=whole_number(data["merged"]),
            ticks_left_out=whole_number(data["ticks_left_out"]),
            at=_numbers(data["at"]),
            least={name: whole_number(one["least"]) for name, one in of_category},
            bytes={name: _numbers(one["bytes"]) for name, one in of_category},
            largest={name: _numbers(one["largest"]) for name, one in of_category},
            largest_bytes={name: _numbers(one["largest_bytes"]) for name, one in of_category},
            began=_numbers(data["began"]),
            ended=_numbers(data["ended"]),
            made=made,
            ticks=tuple(_tick(text) for text in data["ticks"]),
        )
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise ValueError(f"not a timeline: {type(error).__name__}: {error}") from None
    _check(found)
    return found


def _numbers(text: Any) -> tuple[int, ...]:
    return tuple(whole_number(number) for number in unpacked(text, _MOST_NUMBERS))


def _tick(text: str) -> tuple[int, str]:
    at, _, name = text.partition(" ")
    return whole_number(int(at)), name


def _check(found: Timeline) -> None:
    """Raise ValueError where columns are not of one length, or a number is of nothing."""
    columns = [*found.bytes.values(), *found.largest.values(), *found.largest_bytes.values(), found.began, found.ended]
    lines = [*found.largest.values(), found.began, found.ended]
    if not found.at or not found.bytes or any(len(column) != len(found.at) for column in columns):
        raise ValueError("not a timeline: its columns are not of one length")
    if any(not NONE <= number < len(found.made) for column in lines for number in column):
        raise ValueError("not a timeline: a line is named that is not there")
    places = (*found.at, *(at for at, _ in found.ticks))
    if min(*places, found.operations) < 0 or max(places) > found.operations or list(found.at) != sorted(found.at):
        raise ValueError("not a timeline: a moment is outside of it")
    if any(not 0 <= found.least[name] <= min(column) for name, column in found.bytes.items()):
        raise ValueError("not a timeline: a category is lower than its lowest")
