"""A traced peak in pieces that add up to the recorded one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from vram.explanation.allocations import Allocation
from vram.explanation.categories import Categories
from vram.explanation.groups import shapes
from vram.recording import Recording
from vram.summary.breakdown import Breakdown, Piece
from vram.units import format_bytes

_UNSEEN = {
    "cuda": "blocks that are no tensor's, such as workspaces of libraries, and what was not alive in this run",
}
NOT_ALIVE = "alive in the {}, and not when the sample ran again"


def in_pieces(
    alive: Mapping[int, Allocation], categories: Categories, sample: int, recording: Recording
) -> tuple[Breakdown | None, str]:
    """The recorded peak in pieces, from what was `alive` at that of the traced run; None, and why, where that run
    needed more than was recorded."""
    peak_bytes = recording.peak_bytes()
    untraced_bytes = peak_bytes - sum(one.n_bytes for one in alive.values())
    if untraced_bytes < 0:
        more = format_bytes(-untraced_bytes)
        return None, f"sample {sample}, run again with tracing, needed {more} more than was recorded"
    unseen = _UNSEEN.get(recording.device.partition(":")[0], NOT_ALIVE.format("recorded peak"))
    made = tuple(pieces(alive, categories))
    return Breakdown(sample, peak_bytes, made, untraced_bytes, unseen if untraced_bytes else ""), ""


def pieces(alive: Mapping[int, Allocation], categories: Categories) -> list[Piece]:
    """Allocations that are alike in line, operation, dtype, dimensions, module and category; most bytes first."""
    groups: defaultdict[tuple[object, ...], list[Allocation]] = defaultdict(list)
    places: dict[tuple[object, ...], tuple[str, str]] = {}
    for key, one in alive.items():
        module, category = categories.path(key, one), categories.of(key, one)
        alike = one.line, one.op, one.dtype, len(one.shape), module, category
        groups[alike].append(one)
        places[alike] = module, category
    return sorted((_piece(group, *places[alike]) for alike, group in groups.items()), key=lambda one: -one.n_bytes)


def _piece(group: list[Allocation], module: str, category: str) -> Piece:
    first = group[0]
    return Piece(
        n_bytes=_sum(group),
        count=len(group),
        line="" if first.line is None else str(first.line),
        op=first.op,
        dtype=first.dtype,
        shape=shapes(group),
        module=module,
        category=category,
    )


def _sum(group: Iterable[Allocation]) -> int:
    return sum(one.n_bytes for one in group)
