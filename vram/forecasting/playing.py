"""A card on which traces are played: figures, what is alive at the highest peak, and whether there is room."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple

from vram import cards
from vram.cards import Card
from vram.explanation.allocations import BEFORE, Allocation, Event
from vram.explanation.snapshot import viewer_snapshot
from vram.simulated.allocator import Block, CachingAllocator
from vram.simulated.allocator_settings import environment_settings
from vram.simulated.peak_blocks import Sized
from vram.simulated.quick_replay import QuickReplay
from vram.simulated.trace import Played, Trace

ENDLESS_BYTES = 2**50  # of a card that every recording fits
_MAX_HOLDERS = 10
_MAX_EVENTS = 100_000  # in the snapshot; the oldest are dropped, as PyTorch's own ring buffer does


@dataclass(frozen=True)
class Holder:
    """Allocations of one line of code at a peak: bytes in blocks, and how many blocks."""

    n_bytes: int
    count: int
    line: str


class NoRoom(Exception):
    """The card does not hold what is there before the first sample: CUDA's message."""


class _Change(NamedTuple):
    """One malloc or free: the block's number, the bytes requested, and its allocation (None: before lines were
    followed)."""

    is_malloc: bool
    block: int
    requested_bytes: int
    tag: Any


class CardPlayer:
    """Plays traces on a card, one after the other. Raises NoRoom where `setup`, the first, does not fit."""

    def __init__(self, card: Card, setup: Trace, *, named: bool = True, logged: bool = False) -> None:
        """`named`: holders are wanted. `logged`: `snapshot` is, which takes ten times as long."""
        self.card = card
        settings = environment_settings(os.environ)
        self.allocator = CachingAllocator(card.total_bytes, card.context_bytes, settings=settings)
        self.replay = QuickReplay(self.allocator, named=named)
        self._live: dict[Block, int] = {}  # number of each live block
        self._numbers: Iterator[int] = count()
        self._events: deque[_Change] = deque(maxlen=_MAX_EVENTS)
        if logged:
            self.allocator.observer = self._note
        self.built = self.replay.play(setup)
        if self.built.oom is not None:
            raise NoRoom(str(self.built.oom))

    def play(self, traces: Iterable[Trace]) -> tuple[list[Played], tuple[Holder, ...]]:
        """Play traces as far as the card has room; returns what each did, and the holders at their highest peak."""
        plays: list[Played] = []
        highest: list[Sized] = []
        peak_bytes = -1
        for trace in traces:
            plays.append(played := self.replay.play(trace))
            if self.replay.named and played.allocated_peak_bytes > peak_bytes:
                peak_bytes, highest = played.allocated_peak_bytes, self.replay.at_peak()
            if played.oom is not None:
                break
        return plays, _holders(highest)

    def go_on_unnamed(self) -> None:
        """Name no holders from now on, and take no snapshot."""
        self.allocator.observer = None
        self._live.clear()
        self._events.clear()
        self.replay.named = False

    def alive(self) -> tuple[Holder, ...]:
        """The holders of what is alive now."""
        return _holders(self.replay.in_use())

    def drop(self, played: Played) -> None:
        """Free what a play left."""
        self.replay.drop(played)

    def snapshot(self) -> dict[str, Any]:
        """The last 100,000 events and what is live now, for PyTorch's memory viewer."""
        events = [
            Event(
                "alloc" if change.is_malloc else "free", change.block, _allocation(change.requested_bytes, change.tag)
            )
            for change in self._events
        ]
        live = [(number, _allocation(block.requested, block.tag)) for block, number in self._live.items()]
        return viewer_snapshot(events, live)

    def _note(self, action: str, block: Block | None) -> None:
        if block is None:
            return
        is_malloc = action == "malloc"
        if is_malloc:
            number = self._live[block] = next(self._numbers)
        else:
            number = self._live.pop(block)
        self._events.append(_Change(is_malloc, number, block.requested, block.tag))


def spare_bytes(card: Card, reserved_bytes: int) -> int:
    """Bytes of the card that `reserved_bytes` of segments and the context leave; less than 0 where they are more."""
    return card.total_bytes - card.context_bytes - reserved_bytes


def until_full(card: Card, reserved_bytes: int, kept_bytes: int) -> int | None:
    """How often `kept_bytes` more may stay behind until the card is full; None where nothing stays."""
    return max(0, spare_bytes(card, reserved_bytes)) // kept_bytes if kept_bytes > 0 else None


def first_that_fits(fits: Callable[[Card], bool], least_bytes: int = 0) -> Card | None:
    """The smallest listed card of at least `least_bytes` of which `fits` is true; None where there is none."""
    large_enough = (card for card in cards.CARDS if card.total_bytes >= least_bytes)
    return next((card for card in sorted(large_enough, key=lambda card: card.total_bytes) if fits(card)), None)


def _allocation(n_bytes: int, tag: Any) -> Allocation:
    return Allocation(n_bytes, "", (), "", (), BEFORE) if tag is None else tag._replace(n_bytes=n_bytes)


def _holders(live: Iterable[Sized]) -> tuple[Holder, ...]:
    """The lines that hold most, largest first, and of equal ones by name."""
    sizes: dict[str, list[int]] = {}
    for n_bytes, tag in live:
        line = "the model, and what was there before" if tag is None or tag.line is None else str(tag.line)
        sizes.setdefault(line, []).append(n_bytes)
    holders = [Holder(sum(each), len(each), line) for line, each in sizes.items()]
    return tuple(sorted(holders, key=lambda holder: (-holder.n_bytes, holder.line))[:_MAX_HOLDERS])
