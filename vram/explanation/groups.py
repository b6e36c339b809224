"""Allocations that are alike: of one line of code, one operation and one dtype."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

from vram.explanation.allocations import Allocation

Group: TypeAlias = tuple[object, str, str]


def group_of(allocation: Allocation) -> Group:
    """Line of code, operation and dtype."""
    return allocation.line, allocation.op, allocation.dtype


def by_line(allocations: Iterable[Allocation]) -> dict[Group, list[Allocation]]:
    """Allocations by line of code, operation and dtype."""
    groups: dict[Group, list[Allocation]] = {}
    for allocation in allocations:
        if allocation.n_bytes:
            groups.setdefault(group_of(allocation), []).append(allocation)
    return groups


def shapes(allocations: Sequence[Allocation]) -> str:
    """ "[1, 64]", "[1, 5..24]" where sizes differ, "various shapes" where the number of dimensions does."""
    distinct = {allocation.shape for allocation in allocations}
    if not allocations[0].dtype:
        return ""
    if len({len(shape) for shape in distinct}) > 1:
        return "various shapes"
    sizes = [sorted(set(column)) for column in zip(*distinct, strict=True)]
    return f"[{', '.join(str(size[0]) if len(size) == 1 else f'{size[0]}..{size[-1]}' for size in sizes)}]"
