"""Growth in pieces: what a trace has more of at its end than half-way, by line, module and category."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TypeAlias

from vram.explanation.allocations import BEFORE, Allocation
from vram.explanation.categories import Categories
from vram.explanation.groups import Group, group_of, shapes
from vram.explanation.traced import TracedRun
from vram.explanation.tracer import TensorTracer
from vram.summary.breakdown import Piece

# Group, number of dimensions, module, category.
_Key: TypeAlias = tuple[Group, int, str, str]
Sizes: TypeAlias = Mapping[_Key, tuple[int, int]]  # bytes and number of each piece


class Names:
    """Module and category of what the runs of a trace made, as far as it is alive or was at a peak that is known."""

    def __init__(self, tracer: TensorTracer) -> None:
        self._tracer = tracer
        self._known: dict[int, tuple[Allocation, str, str]] = {}  # by identity

    def note(self, traced: TracedRun, run: int) -> None:
        """Name what was alive at the peak of a run, and what is alive after it."""
        for number, allocation in self._tracer.keyed_at_peak().items():
            self._note(traced.categories, number, allocation, run)
        for storage, allocation in self._tracer.living_storages():
            key = self._tracer.key_of(storage) if allocation.run == run else None
            if key is not None:
                self._note(traced.categories, key, allocation, run)

    def _note(self, categories: Categories, key: int, allocation: Allocation, run: int) -> None:
        if allocation.run in (run, BEFORE):  # of others, only that run knew more
            self._put(allocation, categories.path(key, allocation), categories.of(key, allocation))

    def _put(self, allocation: Allocation, module: str, category: str) -> None:
        self._known[id(allocation)] = allocation, module, category

    def find_owners(self, traced: TracedRun) -> None:
        """Look for who owns what is alive after the last run."""
        traced.categories.find_owners()
        for storage, allocation in self._tracer.living_storages():
            owner = traced.categories.owner(self._tracer.key_of(storage))
            if owner:
                self._put(allocation, self.of(allocation)[0], owner)

    def keep(self, allocations: Iterable[Allocation]) -> None:
        """Forget all others."""
        kept = {id(each) for each in allocations}
        self._known = {key: known for key, known in self._known.items() if key in kept}

    def of(self, allocation: Allocation) -> tuple[str, str]:
        """Module and category; of a block that is no tensor's, those of a workspace."""
        _, module, category = self._known.get(id(allocation), (None, "", ""))
        return module, category or ("other" if allocation.dtype else "library workspace")

    def sizes(self, allocations: Iterable[Allocation]) -> Sizes:
        """Bytes and number of each piece."""
        return {key: _size(group) for key, group in self._grouped(allocations).items()}

    def _grouped(self, allocations: Iterable[Allocation]) -> Mapping[_Key, list[Allocation]]:
        groups: defaultdict[_Key, list[Allocation]] = defaultdict(list)
        for one in allocations:
            groups[group_of(one), len(one.shape), *self.of(one)].append(one)
        return groups

    def pieces(self, groups: Collection[Group], then: Sizes, now: Iterable[Allocation]) -> tuple[Piece, ...]:
        """Bytes that `now` has more than `then` had, of the groups named, most first.

        Where a group has less in some module or category and more in another, nobody knows which are the new ones: it
        is one piece, of the category "other".
        """
        grouped = self._grouped(now)
        more: dict[Group, dict[_Key, tuple[int, int]]] = {group: {} for group in groups}
        for key in dict.fromkeys((*grouped, *then)):
            if key[0] in more:
                (n_bytes, count), (before_bytes, before) = _size(grouped.get(key, ())), then.get(key, (0, 0))
                more[key[0]][key] = n_bytes - before_bytes, count - before
        pieces = []
        for of_group in more.values():
            if min(n_bytes for n_bytes, _ in of_group.values()) < 0:
                alike = [one for key in of_group for one in grouped.get(key, ())]
                n_bytes, count = (sum(column) for column in zip(*of_group.values(), strict=True))
                pieces.append(_piece(alike, n_bytes, count, "", "other"))
                continue
            pieces += [_piece(grouped[key], *size, *key[2:]) for key, size in of_group.items() if size[0]]
        return tuple(sorted(pieces, key=lambda piece: -piece.n_bytes))


def _size(group: Collection[Allocation]) -> tuple[int, int]:
    return sum(one.n_bytes for one in group), len(group)


def _piece(alike: Sequence[Allocation], n_bytes: int, count: int, module: str, category: str) -> Piece:
    first = alike[0]
    return Piece(
        n_bytes=n_bytes,
        count=max(1, count),  # one that is replaced by ever larger ones is one
        line="unknown line" if first.line is None else str(first.line),
        op=first.op,
        dtype=first.dtype,
        shape=shapes(alike),
        module=module,
        category=category,
    )
