"""A timeline as stacked bands: places of the bands, the peak, ticks and the base's outline. Arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vram.report.charts import Scale, Tick, stairs
from vram.report.icicle import tone_of
from vram.summary.timeline import Made, Timeline
from vram.text import packed, size_text

_MOST_LABELS = 8  # of ticks
_LONGEST = 16  # letters of a label
_MOSTLY = 2  # what is alive throughout is below the drawing where it is over the peak's so-manyth part

Outline = Sequence[tuple[int, int]]  # place in thousandths, bytes


@dataclass(frozen=True)
class Band:
    """One category. `path` is the area below its upper edge in a box of 100 x 100, which lower bands are drawn over.

    `text` says how much it is at the peak. Figures of the moments are packed; `below_bytes` of each are not drawn.
    """

    name: str
    tone: int
    text: str
    path: str
    values: str
    largest: str
    largest_bytes: str
    below_bytes: int


@dataclass(frozen=True)
class Stack:
    """A timeline as it is drawn, the upmost band first. Places are percent, `full_bytes` fill the height."""

    title: str
    label: str
    bands: Sequence[Band]
    levels: Sequence[Tick]
    ticks: Sequence[Tick]
    bounds: Sequence[float]
    peak: Tick
    peak_at: float
    full_bytes: float
    notes: Sequence[str]
    base: str
    base_text: str
    operations: int
    at: str
    values: str
    began: str
    ended: str
    made: Sequence[Made]

    @property
    def gutter(self) -> int:
        """Letters of the longest level."""
        return max((len(level.text) for level in self.levels), default=0)


def stacked(one: Timeline, base: Outline = (), base_name: str = "", why_no_base: str = "") -> Stack:
    """The drawing of a timeline, with the total of a base on its own operations, stretched to the same width.

    `why_no_base` says why there is no outline of a base that has a peak; "" where there is no base.
    """
    whole = max(1, one.operations)
    places = [round(100 * at / whole, 2) for at in one.at]
    throughout = sum(one.least.values())
    below = dict(one.least) if _MOSTLY * throughout > one.peak_bytes else dict.fromkeys(one.least, 0)
    below_bytes = sum(below.values())
    scale = Scale([0, max([one.peak_bytes, *(n_bytes for _, n_bytes in base)]) - below_bytes])
    bands, edge = [], [0] * len(places)
    for name, values in one.bytes.items():
        edge = [lower + n_bytes - below[name] for lower, n_bytes in zip(edge, values, strict=True)]
        bands.append(_band(one, name, below[name], list(zip(places, edge, strict=True)), scale))
    of_base = [(place / 10, max(0, n_bytes - below_bytes)) for place, n_bytes in base]
    peak_text = f"peak {size_text(one.peak_bytes)}"
    every = max(1, -(-len(one.ticks) // _MOST_LABELS))
    return Stack(
        title=f"Sample {one.sample} over time, by category, with figures at the peak",
        label=f"{peak_text} after operation {one.at[one.peak]:,} of {one.operations:,}: "
        + ", ".join(band.text for band in reversed(bands)),
        bands=bands[::-1],
        levels=scale.levels()[0],
        ticks=[Tick(round(100 * at / whole, 2), _short(name)) for at, name in one.ticks[::every]],
        bounds=[round(100 * at / whole, 2) for at, _ in one.ticks],
        peak=Tick(places[one.peak], peak_text),
        peak_at=scale.at(one.peak_bytes - below_bytes),
        full_bytes=scale.full_bytes,
        notes=_notes(one, below, why_no_base),
        base=stairs(of_base, scale) if base else "",
        base_text=f"base ({base_name}), total" if base else "",
        operations=one.operations,
        at=packed(one.at),
        values=packed(one.totals),
        began=packed(one.began),
        ended=packed(one.ended),
        made=one.made,
    )


def _short(name: str) -> str:
    """A name as a label, with its number, which stands at the end."""
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 9]}...{name[-6:]}"


def _band(one: Timeline, name: str, below_bytes: int, edge: Sequence[tuple[float, int]], scale: Scale) -> Band:
    values = one.bytes[name]
    line = stairs(edge, scale).replace("M", "M0 100L", 1)
    return Band(
        name=name,
        tone=tone_of(name),
        text=f"{name} {size_text(values[one.peak])}",
        path=f"{line}V100Z",
        values=packed(values),
        largest=packed(one.largest[name]),
        largest_bytes=packed(one.largest_bytes[name]),
        below_bytes=below_bytes,
    )


def _notes(one: Timeline, below: dict[str, int], why_no_base: str) -> list[str]:
    notes = [one.merged_text]
    throughout = ", ".join(f"{name} {size_text(n_bytes)}" for name, n_bytes in below.items() if n_bytes)
    if throughout:
        notes.append(f"levels are above what is alive throughout: {throughout}")
    if one.ticks:
        left_out = f", {one.ticks_left_out:,} between them left out" if one.ticks_left_out else ""
        notes.append(f"ticks from {one.ticks[0][1]} to {one.ticks[-1][1]}{left_out}")
    return [*notes, *([why_no_base] if why_no_base else [])]
