"""One look at what all objects refer to: the tensors among it, and what the collector does not know."""

from __future__ import annotations

import gc
import sys
import types
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import chain, compress, filterfalse
from typing import Any

from vram.explanation.holders.objects import array_kinds, is_array, referents

MOST_OBJECTS = 3_000_000  # at 1 us each
_CHUNK = 16_384  # objects whose referents are listed at a time
_FEW = 256


class Survey:
    """References of `objects`. `whole` says whether all of them were looked at.

    `referred` are ids of those `targets` that an object refers to. `loose` are objects that the collector does not
    know, and that may keep one: NumPy arrays, dictionaries and tuples of plain values, and those of `native` kinds,
    which are in `natives` with the arrays. `containers` are those of them that hold something, by its id.
    """

    def __init__(self, objects: Sequence[Any], targets: Iterable[Any], native: Iterable[type]) -> None:
        self.whole = len(objects) <= MOST_OBJECTS
        self.referred: set[int] = set()
        self._targets = set(map(id, targets))
        self._kinds = frozenset((dict, tuple, *array_kinds(), *native))
        loose = self._untracked(objects[:MOST_OBJECTS])
        found: dict[int, Any] = {}
        while loose:
            found |= loose
            loose = {
                address: obj for address, obj in self._untracked([*loose.values()]).items() if address not in found
            }
        self.loose = list(found.values())
        self.natives = [obj for obj in self.loose if type(obj) not in (dict, tuple)]
        self.containers: dict[int, list[Any]] = defaultdict(list)
        self._contain(objects)

    def _untracked(self, objects: Sequence[Any]) -> dict[int, Any]:
        """Objects that `objects` refer to and the collector does not know, by id; targets among it are noted."""
        loose: dict[int, Any] = {}
        for start in range(0, len(objects), _CHUNK):
            flat = referents_of_all(objects[start : start + _CHUNK])
            self.referred |= self._targets.intersection(map(id, flat))
            alike = compress(flat, map(self._kinds.__contains__, map(type, flat)))
            found = list(filterfalse(gc.is_tracked, alike))
            loose |= dict(zip(map(id, found), found, strict=True))
        return loose

    def _contain(self, objects: Sequence[Any]) -> None:
        for holding in (*_tasks(objects), *filter(is_array, self.natives)):
            for obj in referents(holding):
                self.containers[id(obj)].append(holding)
        # A container that is not known holds plain values: of interest are those that hold what was found.
        plain = [obj for obj in self.loose if type(obj) in (dict, tuple)]
        inner = set(map(id, self.natives))
        while inner:
            following = [obj for obj in _holding_any(plain, inner) if id(obj) not in inner]
            for holding in following:
                for address in inner.intersection(map(id, gc.get_referents(holding))):
                    self.containers[address].append(holding)
            inner = set(map(id, following))


def referents_of_all(objects: Sequence[Any]) -> list[Any]:
    """Objects that `objects` refer to, in one list; see `referents`."""
    kinds = set(map(type, objects))
    special = {kind for kind in kinds if issubclass(kind, types.ModuleType)}.union(array_kinds()) & kinds
    if not special:
        return gc.get_referents(*objects)
    plain = compress(objects, map(kinds.difference(special).__contains__, map(type, objects)))
    return gc.get_referents(*plain) + list(
        chain.from_iterable(referents(obj) for obj in objects if type(obj) in special)
    )


def _holding_any(objects: Sequence[Any], ids: set[int]) -> list[Any]:
    """Those of `objects` that refer to one of `ids`."""
    found = []
    for start in range(0, len(objects), _FEW):
        few = objects[start : start + _FEW]
        if not ids.isdisjoint(map(id, gc.get_referents(*few))):
            found += [obj for obj in few if not ids.isdisjoint(map(id, gc.get_referents(obj)))]
    return found


def _tasks(objects: Sequence[Any]) -> list[Any]:
    """All tasks of asyncio: as a referrer of its result, CPython 3.11's collector does not name a task."""
    asyncio = sys.modules.get("asyncio")
    task = None if asyncio is None else asyncio.Task
    return list(compress(objects, map((task,).__contains__, map(type, objects)))) if task else []
