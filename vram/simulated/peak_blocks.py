"""Blocks that are in use at the peak of a replay: their bytes, and the tags that say who has them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from vram.simulated.allocator import Block, CachingAllocator

Sized = tuple[int, Any]  # bytes of a block, and its tag


def in_use(allocator: CachingAllocator) -> list[Sized]:
    """All blocks that are in use now."""
    return [(block.size, block.tag) for block in allocator.blocks() if block.allocated]


@contextmanager
def watched(allocator: CachingAllocator) -> Iterator[Callable[[], list[Sized]]]:
    """Inside, follow an allocator's blocks, beside who observes it already; the result says which were in use at the
    highest point, the first of several."""
    before = {id(block): (block.size, block.tag) for block in allocator.blocks() if block.allocated}
    changes: list[tuple[bool, int, Sized]] = []
    observer = allocator.observer

    def note(action: str, block: Block | None) -> None:
        if block is not None:
            changes.append((action == "malloc", id(block), (block.size, block.tag)))
        if observer is not None:
            observer(action, block)

    allocator.observer = note
    try:
        yield lambda: _highest(before, changes)
    finally:
        allocator.observer = observer


def _highest(before: dict[int, Sized], changes: list[tuple[bool, int, Sized]]) -> list[Sized]:
    total = peak = at = 0
    for position, (is_malloc, _, (n_bytes, _)) in enumerate(changes, start=1):
        total += n_bytes if is_malloc else -n_bytes
        if total > peak:
            peak, at = total, position
    there = dict(before)
    for is_malloc, block, sized in changes[:at]:
        if is_malloc:
            there[block] = sized
        else:
            del there[block]
    return list(there.values())
