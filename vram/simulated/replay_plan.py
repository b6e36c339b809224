"""A trace as single mallocs and frees, small ones numbered in parts: what a quick replay needs, whatever the card."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from vram.simulated.allocator import SMALL_BYTES
from vram.simulated.small_pool import EARLIER, Outcome
from vram.simulated.trace import NOTHING, Family, Outside, Scratch, Trace

Ints = npt.NDArray[np.int64]
UNIT = 512  # all blocks are so many bytes, or a multiple
_MOST_BYTES = 2**40  # of a request
_PART = 256  # requests, where no large malloc ends a part before
_MOST_PLANS = 32  # of a family
WAITING = ("free", "outside", "give")  # what no large malloc depends on before the next


def _none() -> Ints:
    return np.zeros(0, dtype=np.int64)


@dataclass
class Plan:
    """A trace as entries: single mallocs and frees, scratch memory too.

    By entry: `position` of the operation that it is part of; bytes that are taken, below 0 given back: `blocks` of
    small requests, `requested` of all. `large`: what to do for each large one, in order. `outside`: other traces'
    blocks that are freed, and whether they are small. By small request: `entries`; `codes`, as `small_pool` has them;
    what is freed of `earlier` parts: at which request, and the malloc's order, or -1 - the place in `outside`. `parts`:
    where parts begin, and the end. `small`: bytes of small blocks before each entry and at the end, from 0; `highest`
    and `highest_at`: the most of them from each large request to the next, and where.
    """

    position: Ints
    blocks: Ints
    requested: Ints
    mallocs: Ints = field(default_factory=_none)  # positions
    large: list[tuple[int, str, int, tuple[int, ...]]] = field(default_factory=list)  # entry, kind, which, bytes
    outside: list[tuple[int, Outside, bool]] = field(default_factory=list)  # entry, whose, small
    entries: Ints = field(default_factory=_none)
    codes: Ints = field(default_factory=_none)
    earlier: tuple[Ints, Ints] = field(default_factory=lambda: (_none(), _none()))
    parts: list[int] = field(default_factory=list)
    orders: Ints = field(default_factory=_none)  # of the first malloc of each part
    levels: list[int] = field(default_factory=lambda: [0])  # entries from which on large requests have changed
    small: Ints = field(default_factory=_none)
    highest: Ints = field(default_factory=_none)
    sources: Ints = field(default_factory=_none)  # by entry: the place of its size in those of a family, or -1
    grown: Ints = field(default_factory=_none)  # entries whose sizes grow in a family
    large_sources: Ints = field(default_factory=_none)  # of the large mallocs
    # Outcomes of all small requests where no segment is made, by what was cached before and the places of `outside`.
    outcomes: dict[Any, Outcome] = field(default_factory=dict)


def planned(trace: Trace) -> tuple[Plan, Ints, list[int]] | None:
    """The plan of a trace, bytes by entry as in `requested`, and those of its large mallocs, in order.

    None where it must be played as it is. Traces of a family have one plan, while their small requests are the same.
    """
    family = trace.family
    sizes = None if family is None else family.sizes_at(trace.length)
    key = b"" if family is None or sizes is None else _signature(family, sizes)
    plans = trace.plans if family is None else family.plans
    if key not in plans:
        if len(plans) >= _MOST_PLANS:
            plans.clear()
        plans[key] = plan = _plan(trace)
        if family is not None and plan is not None:
            _find_grown(plan, family)
    plan = plans[key]
    if plan is None:
        return None
    if sizes is None or family is None:
        return plan, plan.requested, [n_bytes[0] for _, kind, _, n_bytes in plan.large if kind == "malloc"]
    requested = plan.requested.copy()
    requested[plan.grown] = np.sign(requested[plan.grown]) * sizes[plan.sources[plan.grown]]
    return plan, requested, sizes[plan.large_sources].tolist()


def _signature(family: Family, sizes: Ints) -> bytes:
    """Bytes of small requests that grow, rounded, and of scratch memory: all that may make another plan."""
    rounded = -(-sizes[family.growing] // UNIT) * UNIT
    scratch = [rule.sizes_at(int(sizes[place])) for place, rule in family.growing_scratch]
    large = -1 - (rounded >= _MOST_BYTES)
    return np.where(rounded > SMALL_BYTES, large, rounded).tobytes() + repr(scratch).encode()


def _find_grown(plan: Plan, family: Family) -> None:
    """Note which entries have which of the family's sizes, and which grow."""
    for entry, _, _ in plan.outside:
        plan.sources[entry] = family.places.get(int(plan.position[entry]), -1)
    plan.grown = np.flatnonzero(np.isin(plan.sources, family.growing))
    plan.large_sources = plan.sources[[entry for entry, kind, *_ in plan.large if kind == "malloc"]]


def _plan(trace: Trace) -> Plan | None:
    ops = np.frombuffer(trace.ops, dtype=np.int64)
    mallocs, frees = np.flatnonzero(ops > 0), np.flatnonzero(ops < 0)
    sizes, numbers = ops[mallocs], -ops[frees] - 1
    scratch = _scratch_sizes(trace)
    if scratch is None or np.any(sizes >= _MOST_BYTES):
        return None
    counts = np.ones(len(ops), dtype=np.int64)
    for position, each in scratch.items():
        counts[position] = max(1, 2 * len(each))
    starts = np.cumsum(counts) - counts
    blocks, requested, owners = np.zeros((3, int(counts.sum())), dtype=np.int64)
    plan = Plan(np.repeat(np.arange(len(ops)), counts), blocks, requested, mallocs, sources=np.full(len(blocks), -1))
    rounded = -(-sizes // UNIT) * UNIT
    small, taken_at, freed_at = rounded <= SMALL_BYTES, starts[mallocs], starts[frees]
    small_frees = small[numbers]
    requested[taken_at], requested[freed_at] = sizes, -sizes[numbers]
    plan.sources[taken_at], plan.sources[freed_at] = mallocs, mallocs[numbers]
    blocks[taken_at[small]] = rounded[small]
    blocks[freed_at[small_frees]] = -rounded[numbers[small_frees]]
    owners[freed_at[small_frees]] = taken_at[numbers[small_frees]]  # entries of the mallocs
    for position, each in scratch.items():
        _add_scratch(plan, owners, int(starts[position]), each)
    large = zip(taken_at[~small].tolist(), np.flatnonzero(~small).tolist(), sizes[~small].tolist(), strict=True)
    plan.large += [(entry, "malloc", number, (size,)) for entry, number, size in large]
    large_frees = zip(freed_at[~small_frees].tolist(), numbers[~small_frees].tolist(), strict=True)
    plan.large += [(entry, "free", number, ()) for entry, number in large_frees]
    _add_outside(trace, plan, owners, starts)
    _cut(plan, owners, starts)
    plan.levels += [entry + 1 for entry, *_ in plan.large]
    plan.small = np.concatenate(([0], np.cumsum(blocks)))
    plan.highest = np.maximum.reduceat(plan.small, plan.levels)
    return plan


def _scratch_sizes(trace: Trace) -> dict[int, list[int]] | None:
    """Bytes of scratch memory by position; None for a trace with what is neither that nor a free."""
    sizes = {}
    for position, other in trace.others.items():
        if isinstance(other, Scratch):
            sizes[position] = [each for each in other.sizes.sizes_at(other.length) if each]
            if other.stream or any(not 0 < each < _MOST_BYTES for each in sizes[position]):
                return None
        elif not isinstance(other, Outside) and other != NOTHING:
            return None
    return sizes


def _add_scratch(plan: Plan, owners: Ints, start: int, sizes: list[int]) -> None:
    """Add mallocs of scratch memory from entry `start` on, and after them the frees; all large ones are taken first,
    which leaves the sum of all as it is."""
    for entry, size in enumerate(sizes, start=start):
        plan.requested[entry], plan.requested[entry + len(sizes)] = size, -size
        rounded = -(-size // UNIT) * UNIT
        if rounded <= SMALL_BYTES:
            plan.blocks[entry], plan.blocks[entry + len(sizes)] = rounded, -rounded
            owners[entry + len(sizes)] = entry
    if max(sizes, default=0) > SMALL_BYTES:
        plan.large += (start, "take", start, tuple(sizes)), (start + len(sizes), "give", start, ())


def _add_outside(trace: Trace, plan: Plan, owners: Ints, starts: Ints) -> None:
    """Add frees of other traces' blocks, and bring large requests into their order."""
    for position, other in trace.others.items():
        if isinstance(other, Outside):
            entry, rounded = int(starts[position]), -(-other.size // UNIT) * UNIT
            plan.requested[entry] = -other.size
            is_small = rounded <= SMALL_BYTES
            if is_small:
                plan.blocks[entry], owners[entry] = -rounded, -1 - len(plan.outside)
            else:
                plan.large.append((entry, "outside", len(plan.outside), ()))
            plan.outside.append((entry, other, is_small))
    plan.large.sort(key=lambda each: each[0])


def _cut(plan: Plan, owners: Ints, starts: Ints) -> None:
    """Number the small requests, in parts that end where memory for large ones is taken.

    `owners`: entries of the mallocs that frees belong to; below 0: -1 - the place in `outside`.
    """
    entries = plan.entries = np.flatnonzero(plan.blocks)
    sizes, owner = plan.blocks[entries], owners[entries]
    taken, count = sizes > 0, len(entries)
    large = np.array([entry for entry, kind, *_ in plan.large if kind not in WAITING], dtype=np.int64)
    long = starts[plan.position[entries[_PART::_PART]]]  # whole operations
    cuts = np.unique(np.searchsorted(entries, np.concatenate((large, long))))
    parts = np.concatenate(([0], cuts[(cuts > 0) & (cuts < count)], [count])) if count else np.zeros(1, dtype=np.int64)
    plan.parts = parts.tolist()
    part = np.searchsorted(parts, np.arange(count), side="right") - 1
    order = np.cumsum(taken) - 1
    plan.orders = np.concatenate(([0], order + 1))[parts]  # of the first malloc of each part
    own = ~taken & (owner >= 0)
    malloc = np.searchsorted(entries, owner[own])
    within = np.zeros(count, dtype=bool)
    within[own] = part[malloc] == part[own]
    freed = np.where(owner < 0, owner, 0)
    freed[own] = order[malloc]
    plan.codes = np.where(taken, sizes, np.where(within, plan.orders[part] - freed - 1, EARLIER + sizes))
    plan.earlier = np.flatnonzero(~taken & ~within), freed[~taken & ~within]
