"""A trace as single mallocs and frees, numbered by pool: what a quick replay needs, whatever the sizes and the card."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vram.simulated.allocator import SMALL_BYTES
from vram.simulated.trace import NOTHING, Outside, Scratch, Trace
from vram.simulated.trace_family import Family, OfFamily

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
_MOST_BYTES = 2**40  # of a request
_MOST_PLANS = 32  # of a family
_REACH = 32  # of small requests: about half a part
_SEEN = 8  # requests that decide where a part begins
_NONE = np.zeros(0, dtype=np.int64)
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # 2^64 by the golden ratio: spreads numbers evenly


class Part(NamedTuple):
    """Requests from `first` up to `after`. `earlier`: numbers of blocks that they free and that were there before; then
    `kept`: which blocks, of these and of their own mallocs, are there after them, and the numbers of those."""

    first: int
    after: int
    earlier: tuple[int, ...]
    kept: tuple[int, ...]
    numbers: tuple[int, ...]


@dataclass
class Requests:
    """The requests of one pool. Blocks are numbered: those of other traces, then those of mallocs.

    `entries`: theirs in the plan. `blocks`: which block a request makes or frees. `codes`: as `numeric_pool.play` has
    them, by part; mallocs, which are the requests `taken`, have their sizes there. `outside`: other traces' blocks, as
    places in the plan's. `left`: blocks of mallocs that are not freed; `left_entries` and `numbers`: where those
    mallocs are in the plan and in the trace. `lives`: entries that make mallocs' blocks; those that free them, or the
    end.
    """

    entries: Ints
    blocks: Ints
    codes: Ints
    taken: Ints
    parts: list[Part]
    outside: list[int]
    left: list[int]
    left_entries: Ints
    numbers: list[int]
    lives: tuple[Ints, Ints]


@dataclass
class Plan:
    """A trace as entries: single mallocs and frees, scratch memory too.

    By entry: `position` of the operation that it is part of; `numbers` of mallocs in the trace, -1 for others; and
    `requested`: bytes that are taken, below 0 given back, in the trace that was planned. `outside`: blocks of other
    traces that are freed, and the entries that free them.
    """

    position: Ints
    numbers: Ints
    requested: Ints
    outside: list[Outside]
    outside_entries: Ints
    pools: tuple[Requests, Requests]  # large and small
    # In a family: entries whose sizes grow, with their signs, and places in the family's sizes; for each rule of
    # scratch memory that grows the entries of mallocs and those of frees, a column for each block.
    grown: tuple[Ints, Ints, Ints] = field(default_factory=lambda: (_NONE, _NONE, _NONE))
    scratch: list[tuple[Ints, Ints]] = field(default_factory=list)


def planned(trace: Trace) -> tuple[Plan, Ints] | None:
    """The plan of a trace, and bytes by entry as in `requested`; None where it must be played as it is.

    Traces of a family have one plan, while the same requests are small.
    """
    if not isinstance(trace, OfFamily):
        length = b"%d" % len(trace)  # a recorder's own trace goes on
        if length not in trace.plans:
            trace.plans[length] = _plan(trace)
        plan = trace.plans[length]
        return None if plan is None else (plan, plan.requested)
    family, sizes = trace.family, trace.family.sizes_at(trace.length)
    scratch = [_taken(rule.sizes_at(int(sizes[place]))) for place, rule, _ in family.growing_scratch]
    key = _kinds(sizes[family.growing]).tobytes() + repr([_kinds(np.array(each)).tolist() for each in scratch]).encode()
    if key not in family.plans:
        if len(family.plans) >= _MOST_PLANS:
            family.plans.clear()
        family.plans[key] = plan = _plan(trace)
        if plan is not None:
            _find_grown(plan, trace, family)
    plan = family.plans[key]
    if plan is None:
        return None
    requested = plan.requested.copy()
    entries, signs, places = plan.grown
    requested[entries] = signs * sizes[places]
    for (mallocs, frees), each in zip(plan.scratch, scratch, strict=True):
        requested[mallocs], requested[frees] = each, np.negative(each)
    return plan, requested


def _kinds(sizes: Ints) -> npt.NDArray[np.int8]:
    """Which sizes are small, large, and too large."""
    return (sizes > SMALL_BYTES).astype(np.int8) + (sizes >= _MOST_BYTES)


def _taken(sizes: list[int]) -> list[int]:
    """Sizes of scratch memory that make a block."""
    return [each for each in sizes if each]


def _plan(trace: Trace) -> Plan | None:
    ops = np.frombuffer(trace.ops, dtype=np.int64)
    mallocs, frees = np.flatnonzero(ops > 0), np.flatnonzero(ops < 0)
    sizes, numbers = ops[mallocs], -ops[frees] - 1
    scratch = _scratch_sizes(trace)
    if scratch is None or np.any(sizes >= _MOST_BYTES):
        return None
    counts = np.ones(len(ops), dtype=np.int64)
    for at, each in scratch.items():
        counts[at] = max(1, 2 * len(each))
    starts = np.cumsum(counts) - counts
    requested, owners = np.zeros((2, int(counts.sum())), dtype=np.int64)  # owners: entries of the mallocs; -1 - outside
    requested[starts[mallocs]], owners[starts[mallocs]] = sizes, starts[mallocs]
    requested[starts[frees]], owners[starts[frees]] = -sizes[numbers], starts[mallocs[numbers]]
    for at, each in scratch.items():
        first, n = int(starts[at]), len(each)
        requested[first : first + 2 * n] = [*each, *(-size for size in each)]
        owners[first : first + 2 * n] = [*range(first, first + n)] * 2
    outside = [(at, other) for at, other in trace.others.items() if isinstance(other, Outside)]
    outside_entries = starts[[at for at, _ in outside]] if outside else _NONE
    requested[outside_entries] = [-other.size for _, other in outside]
    owners[outside_entries] = -1 - np.arange(len(outside))
    in_trace = np.full(len(requested), -1, dtype=np.int64)
    in_trace[starts[mallocs]] = np.arange(len(mallocs))
    is_small = np.abs(requested) <= SMALL_BYTES
    there = requested != 0
    small = _requests(np.flatnonzero(there & is_small), requested, owners, in_trace, _REACH)
    large = _requests(np.flatnonzero(there & ~is_small), requested, owners, in_trace, 0)
    position = np.repeat(np.arange(len(ops)), counts)
    return Plan(position, in_trace, requested, [other for _, other in outside], outside_entries, (large, small))


def _scratch_sizes(trace: Trace) -> dict[int, list[int]] | None:
    """Bytes of scratch memory by position; None for a trace with what is neither that nor a free."""
    sizes = {}
    for position, other in trace.others.items():
        if isinstance(other, Scratch):
            sizes[position] = _taken(other.sizes.sizes_at(other.length))
            if other.stream or any(not 0 < each < _MOST_BYTES for each in sizes[position]):
                return None
        elif not isinstance(other, Outside) and other != NOTHING:
            return None
    return sizes


def _requests(entries: Ints, requested: Ints, owners: Ints, numbers: Ints, reach: int) -> Requests:
    """The requests of one pool, which are those at `entries`, in parts."""
    owner, taken, count = owners[entries], requested[entries] > 0, len(entries)
    outside, mallocs = -1 - owner[owner < 0], entries[taken]
    blocks = np.zeros(count, dtype=np.int64)
    blocks[owner < 0] = np.arange(len(outside))
    blocks[owner >= 0] = len(outside) + np.searchsorted(mallocs, owner[owner >= 0])
    made, freed = np.full((2, len(outside) + len(mallocs)), -1, dtype=np.int64)  # by which requests
    made[blocks[taken]], freed[blocks[~taken]] = np.flatnonzero(taken), np.flatnonzero(~taken)
    cuts = _cuts(np.where(taken, freed[blocks], made[blocks]), reach)
    codes, parts = _parts(cuts, blocks, taken, made, freed, all_kept=not reach)
    left = np.flatnonzero((freed < 0) & (made >= 0))
    left_entries = mallocs[left - len(outside)]
    taken_at, in_trace = np.flatnonzero(taken), numbers[left_entries].tolist()
    given = np.where(freed < 0, len(requested), entries[freed])[len(outside) :]
    lists = outside.tolist(), left.tolist(), left_entries, in_trace, (mallocs, given)
    return Requests(entries, blocks, codes, taken_at, parts, *lists)


def _cuts(others: Ints, reach: int) -> Ints:
    """Where parts begin, and the end: so that requests alike, as those of a model's layers, are cut alike.

    `others`: by request the one that frees its block, or that made it; -1 for none. A part begins where a number, made
    of how far these are for the last requests, is the least of all that are `reach` requests or fewer away.
    """
    count = len(others)
    if not count or not reach:
        return np.unique([0, count])
    far = np.where(others < 0, 0, others - np.arange(count)).astype(np.uint64)
    numbers = np.zeros(count, dtype=np.uint64)
    for back in range(min(_SEEN, count)):
        numbers[back:] = (numbers[back:] + far[: count - back]) * _FACTOR
        numbers ^= numbers >> np.uint64(29)
    padded = np.pad(numbers, reach, constant_values=np.iinfo(np.uint64).max)
    least = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1).min(axis=1)
    return np.unique([0, *np.flatnonzero(numbers == least), count])


def _parts(
    cuts: Ints, blocks: Ints, taken: Bools, made: Ints, freed: Ints, *, all_kept: bool
) -> tuple[Ints, list[Part]]:
    """The codes of frees, and the parts. `all_kept`: as if no part freed a block of its own."""
    count = len(blocks)
    part = np.searchsorted(cuts, np.arange(count), side="right") - 1
    there = np.flatnonzero(
        ~taken & ((made[blocks] < 0) | (part[made[blocks]] != part))
    )  # what was there before the part
    firsts = np.searchsorted(there, cuts)  # of the parts, among these
    n_there, mallocs = np.diff(firsts), np.concatenate(([0], np.cumsum(taken)))[cuts]  # mallocs before each part
    n_outside = len(made) - int(taken.sum())
    codes = np.zeros(count, dtype=np.int64)
    frees = np.flatnonzero(~taken)
    codes[frees] = ~(n_there[part[frees]] + blocks[frees] - n_outside - mallocs[part[frees]])
    codes[there] = ~(np.arange(len(there)) - firsts[part[there]])
    stays = np.flatnonzero(taken)
    if not all_kept:
        stays = stays[(freed[blocks[stays]] < 0) | (part[freed[blocks[stays]]] != part[stays])]  # there after it
    lasts = np.searchsorted(stays, cuts)
    parts = []
    for index, (first, after) in enumerate(pairwise(cuts.tolist())):
        earlier = blocks[there[firsts[index] : firsts[index + 1]]]
        numbers = blocks[stays[lasts[index] : lasts[index + 1]]]
        kept = numbers - n_outside - mallocs[index] + n_there[index]
        parts.append(Part(first, after, *(tuple(each.tolist()) for each in (earlier, kept, numbers))))
    return codes, parts


def _find_grown(plan: Plan, trace: Trace, family: Family) -> None:
    """Note which entries have which of the family's sizes, and which grow."""
    sources = np.full(len(plan.requested), -1, dtype=np.int64)
    first = np.searchsorted(plan.position, np.arange(len(trace)))  # entries of operations
    ops = np.frombuffer(trace.ops, dtype=np.int64)
    mallocs, frees = np.flatnonzero(ops > 0), np.flatnonzero(ops < 0)
    sources[first[mallocs]], sources[first[frees]] = mallocs, mallocs[-ops[frees] - 1]
    for at, place in family.places.items():
        if isinstance(trace.others[at], Outside):
            sources[first[at]] = place
    grown = np.flatnonzero(np.isin(sources, family.growing))
    plan.grown = grown, np.sign(plan.requested[grown]), sources[grown]
    for _, _, positions in family.growing_scratch:
        starts = first[positions]
        count = int((plan.position == positions[0]).sum()) // 2
        mallocs = starts[:, None] + np.arange(count)
        plan.scratch.append((mallocs, mallocs + count))
