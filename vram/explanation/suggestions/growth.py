"""Evidence for suggestions on growth: what stays alive, and what one more lap of the samples does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from vram.explanation.allocations import Allocation


@dataclass(frozen=True)
class GrownLine:
    """One line that keeps `rate` bytes a sample more: its allocations that are alive, and words for who holds one."""

    alive: Sequence[Allocation]
    rate: float
    holder: str


@dataclass(frozen=True)
class Lap:
    """One more lap. `kept_bytes` were made in it and are alive after it; `read` are ids of the allocations from before
    a sample that something in it read; `recorded` says whether autograd recorded an operation, `backward` whether a
    backward pass ran."""

    kept_bytes: int
    read: frozenset[int]
    recorded: bool
    backward: bool


@dataclass(frozen=True)
class FoundGrowth:
    """A pattern that is certain, its way out in one sentence, and the bytes a sample that it saves.

    `exact` is False where other figures of the same trace differ.
    """

    text: str
    saves_bytes: float
    exact: bool = True


@dataclass(frozen=True)
class GrowthEvidence:
    """Traced laps, of which the last kept `kept_bytes` of what its `samples` samples made.

    `lap_within` runs a further lap within a context; None where that raises. `category` is that of an allocation,
    `storages` has those that are alive now (`torch.UntypedStorage`).
    """

    lines: Sequence[GrownLine]
    samples: int
    kept_bytes: int
    category: Callable[[Allocation], str]
    storages: Callable[[], Iterator[tuple[Any, Allocation]]]
    lap_within: Callable[[AbstractContextManager[object]], Lap | None]
